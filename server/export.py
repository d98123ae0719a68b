"""Export: a trained model as one file for machines that have neither Motet nor a network: edge inference.

in        a TrainedModel and the server's held-out data, where it is still there
out       a folder: model.onnx or model.pt2, with 8-bit weights beside it on request, and model.json, which says what
          goes in and what comes out; or nothing at all, where the file does not agree with the model
relies on onnx_file.py for ONNX and on torch.export; preprocessing stays with whoever calls the file, as model.json says
"""

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from server.about import about
from server.evaluation import predict, score
from server.given import Readers
from server.heldout import load_held_out
from server.onnx_file import OUTPUTS, PRESENT, OnnxModel, write_onnx, write_quantised
from server.trained import MODEL_FILE, TrainedModel
from shared.batch import Samples, only
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.encoders.language import READ_ELSEWHERE
from shared.model.multimodal import MultimodalModel
from shared.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

Form = Literal["onnx", "torch-export"]
FILES: dict[Form, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
QUANTISED, DESCRIPTION = "model.int8.onnx", "model.json"
AGREEMENT = 1e-4
"""largest difference of an output, as a share of the largest output, that rounding may make"""
MADE_UP_ROWS = 64
LATENCY_REPEATS = 200
_SCORES = ("macro_f1", "mae")


class Measured(Settings):
    """One form of the model."""

    file: str
    num_bytes: int
    score: float | None
    """`score_name` on the held-out test part; None where that is gone"""
    largest_difference: float
    """of any output from the model's own"""
    same_answers: float
    """share of samples"""
    latency_ms: float
    """median for one sample, one thread"""


class Exported(Settings):
    """What was written and how it compares."""

    folder: Path
    checked_on: str
    score_name: str
    forms: tuple[Measured, ...]
    """the run's own model, the exported one, the one of 8 bits"""


class Positional(nn.Module):
    """The model with its inputs one after the other, in the order of its modalities, and `present` last."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *values: Tensor) -> Tensor:
        """The outputs [B, K]."""
        outputs: Tensor = self.model(dict(zip(self.model.modalities, values[:-1], strict=True)), values[-1])
        return outputs


class Program(nn.Module):
    """A .pt2 file behind the face of the model that it was made from."""

    def __init__(self, path: Path, *, modalities: tuple[str, ...]) -> None:
        super().__init__()
        # no module of this one: it cannot be told to train or not to
        self._run, self._modalities = partial(torch.export.load(path).module()), modalities

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """The outputs [B, K]; every input of the file is needed."""
        outputs: Tensor = self._run(*(inputs[name] for name in self._modalities), present)
        return outputs


@dataclass(frozen=True)
class _Check:
    """Rows that all forms are compared on."""

    samples: Samples
    is_held_out: bool

    @property
    def name(self) -> str:
        """What they are, for a reader."""
        count = len(self.samples)
        return f"{count} held-out rows" if self.is_held_out else f"{count} made-up rows (the held-out data is gone)"


def export(trained: TrainedModel, *, to: Form, out: Path, int8: bool = False) -> Exported:
    """The model's file, its description and, on request, its file of 8-bit weights.

    Args:
        trained: whose weights.
        to: which kind of file.
        out: folder; files of the same names in it are replaced, all of them, once everything was found good.
        int8: ONNX only.

    Raises:
        RunError: an operation that the form lacks, or an exported model that does not agree; nothing was written then.
        ManifestError: the held-out data is there and has faults.
    """
    if int8 and to != "onnx":
        raise RunError("8-bit weights are written for ONNX alone, whose runtime computes with them; use: --to onnx")
    _refuse_language_models(trained.run)
    readers = Readers(trained.run)
    check = _rows_to_check(trained, readers=readers)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as made:
        folder, models = Path(made), dict[str, nn.Module]({MODEL_FILE: trained.model})
        program = _program(trained.model, like=made_up_samples(trained, readers=readers, rows=2))
        path = folder / FILES[to]
        if to == "onnx":
            write_onnx(program, path, inputs=(*trained.run.modalities, PRESENT))
            models[path.name] = OnnxModel(path)
        else:
            _write_program(program, path)
            models[path.name] = Program(path, modalities=trained.run.modalities)
        _assert_agreement(models[path.name], trained=trained, samples=check.samples)
        if int8:
            write_quantised(path, folder / QUANTISED)
            models[QUANTISED] = OnnxModel(folder / QUANTISED)
        exported = _measured(models, trained=trained, check=check, folder=folder, out=out)
        description = _description(trained, exported=exported, readers=readers, samples=check.samples, to=to)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            shutil.move(file, out / file.name)
    return exported


def _refuse_language_models(run: RunConfig) -> None:
    """Their own code lays words out by what each row holds, which no graph of fixed operations can follow.

    Raises:
        RunError: the run's fusion is one.
    """
    readers = [name for name in run.modalities if run.model.encoders[name].name in READ_ELSEWHERE]
    if readers:
        raise RunError(
            f"fusion {run.model.fusion.name!r} reads {', '.join(readers)} through a language model, and such models "
            "are not exported; use motet predict or motet serve"
        )


def made_up_samples(trained: TrainedModel, *, readers: Readers, rows: int) -> Samples:
    """Rows of the model's shapes that show nobody: noise, and words of no language."""
    draws = torch.Generator().manual_seed(0)
    inputs = {}
    for name, shape in readers.shapes.items():
        if trained.run.data.modalities[name].kind == "text":
            texts = [f"made up {int(number)}" for number in torch.randint(10_000, (rows,), generator=draws)]
            inputs[name] = readers.batch([{name: readers.prepared(name, text)} for text in texts]).inputs[name]
        else:
            inputs[name] = torch.randn(rows, *shape, generator=draws)
    numbers = tuple(str(row) for row in range(rows))
    present = torch.ones(rows, len(inputs), dtype=torch.bool)
    targets = torch.zeros(rows, dtype=torch.int64)
    return Samples(inputs=inputs, present=present, targets=targets, subjects=numbers, groups={})


def _rows_to_check(trained: TrainedModel, *, readers: Readers) -> _Check:
    if trained.settings.held_out.is_dir():
        return _Check(load_held_out(trained.settings).test, is_held_out=True)
    return _Check(made_up_samples(trained, readers=readers, rows=MADE_UP_ROWS), is_held_out=False)


def _program(model: MultimodalModel, *, like: Samples) -> torch.export.ExportedProgram:
    """The model as a graph for any number of rows, made from rows that show nobody: the file keeps them.

    Raises:
        RunError: the model asks something of its numbers that a graph cannot.
    """
    batch = torch.export.Dim("batch", min=1, max=65_536)
    values = (*(like.inputs[name] for name in model.modalities), like.present)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # torch warns about itself
            warnings.simplefilter("ignore")
            program = torch.export.export(
                Positional(model).eval(), values, dynamic_shapes=(tuple({0: batch} for _ in values),)
            )
    except Exception as error:
        raise RunError(
            f"torch.export cannot follow the model ({type(error).__name__}: {str(error).splitlines()[0][:200]}); use "
            "motet predict or motet serve"
        ) from error
    for node in program.graph.nodes:
        # folders of the machine that exported
        node.meta.pop("stack_trace", None)
    return program


def _write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)


def _assert_agreement(exported: nn.Module, *, trained: TrainedModel, samples: Samples) -> None:
    """The exported model says what the model says, of all rows and of rows with one modality each.

    Raises:
        RunError: it does not.
    """
    names = trained.run.modalities
    views = [samples]
    if len(names) > 1:
        views += [_view(samples, name, of=names) for name in names]
    for view in views:
        if not len(view):
            continue
        wanted, found = predict(trained.model, view), predict(exported, view)
        difference, most = float((wanted - found).abs().max()), AGREEMENT * max(1.0, float(wanted.abs().max()))
        same = _same_answers(wanted, found, trained=trained)
        if not difference <= most or same < 1:
            raise RunError(
                f"the exported model does not agree with the run's on {len(view)} rows: outputs differ by up to "
                f"{difference:.2g} (allowed: {most:.2g}), {1 - same:.1%} of answers are others; nothing was written"
            )


def _view(samples: Samples, name: str, *, of: tuple[str, ...]) -> Samples:
    limited, usable = only(samples, (name,), of=of)
    everything = Samples(
        inputs=limited.inputs,
        present=limited.present,
        targets=limited.targets,
        subjects=samples.subjects,
        groups={},
    )
    return everything.subset(usable.nonzero()[:, 0])


def _same_answers(first: Float[Tensor, "N K"], second: Float[Tensor, "N K"], *, trained: TrainedModel) -> float:
    """Share of samples of which both say the same in every task; ratings differ by rounding and always agree."""
    agree = torch.ones(len(first), dtype=torch.bool)
    start = 0
    for part in trained.run.data.parts.values():
        width = max(1, len(part.labels))
        one, other = first[:, start : start + width], second[:, start : start + width]
        start += width
        if part.kind == "single-label":
            agree &= one.argmax(dim=1) == other.argmax(dim=1)
        elif part.kind == "multi-label":
            agree &= ((one >= 0) == (other >= 0)).all(dim=1)
    return float(agree.float().mean())


def _measured(
    models: Mapping[str, nn.Module], *, trained: TrainedModel, check: _Check, folder: Path, out: Path
) -> Exported:
    wanted, forms = predict(trained.model, check.samples), []
    latencies = _latencies_ms(models, sample=check.samples.subset(torch.tensor([0])))
    score_name = "mae" if trained.run.data.task == "rating" else "macro_f1"
    for name, model in models.items():
        outputs, reached = predict(model, check.samples), None
        if check.is_held_out:
            metrics = score(model, check.samples, run=trained.run).metrics
            score_name = next((each for each in _SCORES if each in metrics), next(iter(metrics)))
            reached = metrics[score_name].value
        path = folder / name if (folder / name).is_file() else trained.folder / name
        forms.append(
            Measured(
                file=name,
                num_bytes=path.stat().st_size,
                score=reached,
                largest_difference=float((outputs - wanted).abs().max()),
                same_answers=_same_answers(wanted, outputs, trained=trained),
                latency_ms=latencies[name],
            )
        )
    return Exported(folder=out, checked_on=check.name, score_name=score_name, forms=tuple(forms))


def _latencies_ms(models: Mapping[str, nn.Module], *, sample: Samples) -> dict[str, float]:
    """Median time for one sample, the models in alternation, so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(LATENCY_REPEATS):
                for name, model in models.items():
                    began = time.perf_counter()
                    model(sample.inputs, sample.present)
                    times[name].append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return {name: sorted(each)[len(each) // 2] for name, each in times.items()}


def _description(
    trained: TrainedModel, *, exported: Exported, readers: Readers, samples: Samples, to: Form
) -> dict[str, object]:
    """model.json: all that a caller of the file has to know."""
    run = trained.run
    meaning = {
        "single-label": "logits of its labels, in order; softmax gives probabilities",
        "multi-label": "a logit for each of its labels, in order; sigmoid gives probabilities",
        "rating": "the rating itself",
    }
    encoders = run.model.encoders
    return {
        "format": to,
        "inputs": [
            {
                "name": name,
                "kind": run.data.modalities[name].kind,
                "shape": ["batch", *readers.shapes[name]],
                "type": str(samples.inputs[name].dtype).removeprefix("torch."),
                "encoder": encoders[name].name,
                "preprocess": readers.options(name),
                "preprocess_digest": readers.digests[name],
                "if_absent": "all zeros, and false in present",
            }
            for name in run.modalities
        ]
        + [{"name": PRESENT, "shape": ["batch", len(run.modalities)], "type": "bool", "columns": list(run.modalities)}],
        "outputs": {
            "name": OUTPUTS,
            "columns": [
                {"task": task, "kind": part.kind, "labels": list(part.labels), "meaning": meaning[part.kind]}
                for task, part in run.data.parts.items()
            ],
        },
        "check": exported.model_dump(mode="json", exclude={"folder"}),
        "about": about(trained).model_dump(mode="json"),
    }


def export_table(exported: Exported) -> "Table":
    """What was written, for the terminal."""
    from rich.table import Table

    first, named = exported.forms[0], exported.score_name.replace("_", "-")
    table = Table(title=f"{exported.folder}: agrees with the run's model on {exported.checked_on}", min_width=60)
    table.add_column("file", no_wrap=True)
    for heading in ("bytes", named, "lost", "same answers", "off by", "ms"):
        table.add_column(heading, justify="right")
    for form in exported.forms:
        lost = None if form.score is None or first.score is None else first.score - form.score
        sign = -1 if exported.score_name == "mae" else 1
        table.add_row(
            form.file,
            f"{form.num_bytes:,}",
            "not known" if form.score is None else f"{form.score:.4f}",
            "not known" if lost is None else f"{sign * lost + 0.0:.4f}",
            f"{form.same_answers:.1%}",
            f"{form.largest_difference:.2g}",
            f"{form.latency_ms:.3f}",
        )
    table.caption = (
        "lost: of the score; off by: largest difference of an output; ms: median of one sample on this machine's CPU, "
        "one thread, without preprocessing"
    )
    return table
