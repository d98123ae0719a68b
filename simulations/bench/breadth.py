"""Breadth: every part in the registries, what it takes and gives, and what a private step with it costs.

in        `python -m simulations.bench.breadth [--budget-s S] [--only NAME]`: the registries, and random files
out       results/breadth.json, and the tables of docs/model.md; `--page` writes these from the file alone
relies on random files: what a step costs does not depend on what the numbers say. Ratios are of processor time, in
          turns in one process

A part that needs a folder is tried with public weights out of an installed package, and where no package has any, on a
tiny network of random weights, as its row says; one that cannot be built here is told with that reason. A part that
somebody registers appears by itself.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from client.gradient.choice import AutoEngine, choose_engine
from client.preflight.made_up import write_folder
from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.errors import MotetError
from shared.model.encoders import preprocessor
from shared.model.encoders.language import READ_ELSEWHERE
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.model.registry import Part, encoder_registry, fusion_registry, head_registry
from shared.preprocess.frozen import FrozenPreprocessor
from shared.preprocess.pretrained import local_checkpoint, minilm_checkpoint
from shared.preprocess.pretrained_onnx import WakewordPreprocessor
from shared.privacy.mechanism import Clip
from shared.settings import parse_settings
from simulations.bench.alternate import Job, Turns, alternate, reason
from simulations.bench.breadth_page import write_page
from simulations.bench.breadth_result import Breadth, PartResult, Recurrence, breadth_path, source_in
from simulations.bench.harness import ROOT
from simulations.bench.machine import commit, machine, tree_is_clean, versions
from simulations.bench.models import RECURRENT
from simulations.bench.random_networks import pretrained_folder
from simulations.bench.results import spread
from simulations.bench.step import OPACUS, STEPS, TORCH, TORCH_LSTM, motet_update, preparing
from simulations.bench.step_opacus import LEARNING_RATE
from simulations.engine.held_memory import keep_freed_memory

BATCH, WIDTH, LABELS, CLIP_NORM = 32, 32, 10, 1.0
FEW_ROWS = 4
"""of a batch that goes through a large public network in training"""
TURNS = 3
"""at the least"""
WHOLE_ROWS = 4
"""of the made-up folder's rows, the first that have every modality"""
SCHEMAS: Mapping[str, Mapping[str, object]] = {
    "image": {"kind": "image"},
    "text": {"kind": "text"},
    "audio": {"kind": "audio"},
    "video": {"kind": "video"},
    "signal": {"kind": "signal", "channels": 3},
    "features": {"kind": "features", "width": WIDTH},
}
MATCHING = ("pair",)
"""fusions that are for matching alone"""
BESIDE: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "prefix": {"words": ("text", "tokens"), "vector": ("features", "linear")},
    "verbalise": {"motion": ("signal", "description"), "words": ("text", "tokens")},
}
"""fusions that vectors alone will not do for: modality -> its kind and encoder"""
RANDOM: Mapping[str, str] = {"pretrained-image": "vit", "pretrained-audio": "ast"}
"""parts whose folder no package has -> the kind of tiny random network that stands in for it"""
MODES: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("minilm", "efficientnet-lite0", "prefix", "verbalise"), ("frozen", "lora")
)
"""parts with public weights that are measured in several modes"""


@dataclass(frozen=True)
class Candidate:
    """A part, and the mode in which it is tried; empty where it has no modes."""

    kind: str
    name: str
    about: str
    takes: str = ""
    mode: str = ""


def candidates() -> Iterator[Candidate]:
    """Every part that comes with the product, in the order of kinds and names."""
    for name in encoder_registry.names():
        part = encoder_registry.get(name)
        if _is_ours(part):
            for mode in MODES.get(name, ("",)):
                yield Candidate("encoder", name, part.about, part.takes, mode)
    for fusion in fusion_registry.names():
        if _is_ours(fusion_registry.get(fusion)):
            for mode in MODES.get(fusion, ("",)):
                yield Candidate("fusion", fusion, fusion_registry.get(fusion).about, mode=mode)
    for head in head_registry.names():
        if _is_ours(head_registry.get(head)):
            yield Candidate("head", head, head_registry.get(head).about)


def run_of(part: Candidate, *, folder: Path | None) -> RunConfig:
    """A run with the part and as little else as there can be, everything in its default size.

    Args:
        folder: with the network that the part needs.
    """
    task: dict[str, object] = {"task": "single-label", "labels": [f"class-{number}" for number in range(LABELS)]}
    encoders = _encoders(part, folder=folder)
    if part.name in MATCHING:
        task = {"task": "matching", "pair": list(encoders)}
    fusion: dict[str, object] = {"name": part.name if part.kind == "fusion" else "sum"}
    if part.kind == "fusion" and part.mode:
        fusion["options"] = {"mode": part.mode}
    elif part.name in READ_ELSEWHERE:
        fusion = {"name": "prefix"}
    table = {
        "name": "breadth",
        "seed": 0,
        "data": {**task, "modalities": {name: SCHEMAS[takes] for name, (takes, _) in encoders.items()}},
        "model": {
            # the head that is none gives the embedding as the answer
            "embedding_width": LABELS if part.name == "identity" else WIDTH,
            "encoders": {name: encoder for name, (_, encoder) in encoders.items()},
            "fusion": fusion,
            "head": {"name": part.name if part.kind == "head" else "linear"},
        },
        "training": {"optimizer": "sgd", "learning_rate": 1e-4, "sample_rate": 1.0, "local_steps": 1},
        "privacy": "none",
        "federation": {"rounds": 1},
    }
    return parse_settings(RunConfig, table, place=f"{part.kind} {part.name}")


def _encoders(part: Candidate, *, folder: Path | None) -> dict[str, tuple[str, dict[str, object]]]:
    """Modality -> its kind and encoder; the first is the one that is looked at."""
    vector: tuple[str, dict[str, object]] = ("features", {"name": "linear"})
    if part.kind == "fusion":
        named = BESIDE.get(part.name)
        if named:
            return {name: (takes, {"name": encoder}) for name, (takes, encoder) in named.items()}
        return dict.fromkeys(("first", "second") if part.name in MATCHING else ("first", "second", "third"), vector)
    if part.kind == "head":
        return {"value": vector}
    encoder: dict[str, object] = {"name": part.name}
    if part.mode:
        encoder["mode"] = part.mode
    if folder is not None:
        encoder["options"] = {"path": str(folder)}
    own = {"value": (part.takes, encoder)}
    return {**own, "beside": vector} if part.name in READ_ELSEWHERE else own


def look_at(part: Candidate, *, budget_s: float) -> PartResult:
    """What the part is and costs; with a reason in the place of what could not be found out."""
    try:
        with _folder_of(part) as folder:
            return _measured(part, folder=folder, budget_s=budget_s)
    except (MotetError, ImportError, OSError, KeyError) as error:
        text = {"about": part.about.split("\n")[0], "source": source_in(part.about), "why_not": reason(error)}
        return PartResult.model_validate({**_what(part), **text})


def _what(part: Candidate) -> dict[str, str]:
    return {"kind": part.kind, "name": part.name, "mode": part.mode, "takes": part.takes}


def _measured(part: Candidate, *, folder: Path | None, budget_s: float) -> PartResult:
    """What the part is and costs.

    Args:
        folder: with the network that it needs, which stays until its steps are taken.
    """
    run = run_of(part, folder=folder)
    batch = FEW_ROWS if part.mode == "lora" or part.name in (*READ_ELSEWHERE, *BESIDE) else BATCH
    model, samples = build_model(run).train(), _samples(run, rows=batch)
    module = _module(model, part.kind)
    found = {
        **_what(part),
        "about": part.about.split("\n")[0],
        "source": source_in(part.about, *_docs(module)),
        "inputs": _inputs(run, part),
        "outputs": _outputs(model, run, part, samples),
        "gives": "tokens for a language model" if part.name in READ_ELSEWHERE else "",
        "tried_on": _tried_on(part, folder),
        "parameters": sum(each.numel() for each in module.parameters()),
        "trained": sum(each.numel() for each in module.parameters() if each.requires_grad),
        "batch": batch,
        "is_behind_network": part.kind == "encoder" and _is_behind_network(run),
        "engine": _engine(model, run, samples),
    }
    turns = _turns(model, samples, budget_s=budget_s)
    failed = next((each.why_not for each in turns.values() if each.why_not), "")
    times = {} if failed else {f"{name}_cpu_s": spread(each.cpu_s) for name, each in turns.items()}
    return PartResult.model_validate({**found, **times, "why_not": failed})


def look_at_recurrence(*, batch: int, budget_s: float) -> tuple[Recurrence, ...]:
    """A private step of each recurrent model: Motet's, Opacus' own layer with hooks, torch's without privacy."""
    wanted = {TORCH_LSTM, TORCH, next(iter(OPACUS)), "Motet auto"}
    found = []
    for model in RECURRENT:
        made = {name: prepare for name, prepare in preparing(model, batch=batch).items() if name in wanted}
        turns = alternate(made, per_call=STEPS, budget_s=budget_s)
        times = {name: spread(each.cpu_s) for name, each in turns.items() if not each.why_not}
        found.append(Recurrence(model=model, batch=batch, cpu_s=times))
    return tuple(found)


def _is_ours(part: Part[object, object] | object) -> bool:
    return isinstance(part, Part) and part.options.__module__.startswith("shared.")


@contextmanager
def _folder_of(part: Candidate) -> Iterator[Path | None]:
    """A folder for a part that needs one: MiniLM's, out of its package, or a random network's; None for all others."""
    if part.kind != "encoder" or "path" not in encoder_registry.get(part.name).options.model_fields:
        yield None
    elif part.name in RANDOM:
        with tempfile.TemporaryDirectory(prefix="motet-breadth-") as name:
            yield pretrained_folder(Path(name) / "network", kind=RANDOM[part.name])
    else:
        yield minilm_checkpoint().path if part.takes == "text" else None


def _tried_on(part: Candidate, folder: Path | None) -> str:
    if folder is None or part.name not in RANDOM:
        return ""
    return f"a random {RANDOM[part.name]} network, {local_checkpoint(folder).width} wide, in the place of a public one"


def _samples(run: RunConfig, *, rows: int) -> Samples:
    """A batch of whole rows out of random files, each of which comes several times."""
    with tempfile.TemporaryDirectory(prefix="motet-breadth-") as name:
        folder = Path(name)
        write_folder(folder / "data", run=run)
        samples = load_samples(folder / "data", run=run, cache=folder / "cache")
    return samples.subset(torch.arange(rows) % WHOLE_ROWS)


def _module(model: MultimodalModel, kind: str) -> nn.Module:
    first = next(model.encoders.children())
    return {"encoder": first, "fusion": model.fusion, "head": model.head}[kind]


def _docs(module: nn.Module) -> Sequence[str]:
    """Docstrings of the part's own classes, the outermost first."""
    kinds = dict.fromkeys(type(each) for each in module.modules())
    return [kind.__doc__ or "" for kind in kinds if kind.__module__.startswith("shared.model.")]


def _inputs(run: RunConfig, part: Candidate) -> Sequence[int]:
    width = run.model.embedding_width
    if part.kind == "encoder":
        return preprocessor(run, run.modalities[0]).shape
    if part.name in BESIDE:
        return []
    return [len(run.modalities), width] if part.kind == "fusion" else [width]


@torch.no_grad()
def _outputs(model: MultimodalModel, run: RunConfig, part: Candidate, samples: Samples) -> Sequence[int]:
    if part.name in READ_ELSEWHERE:
        # its zeros in the place of an embedding are read by nobody
        return _inputs(run, part)
    if part.kind == "encoder":
        given: Tensor = _module(model, part.kind)(samples.inputs[run.modalities[0]][:1])
        return tuple(given.shape[1:])
    decides = part.kind == "head" or model.fusion.level == "decision"
    return [LABELS] if decides else [run.model.embedding_width]


def _is_behind_network(run: RunConfig) -> bool:
    """Whether the encoder's values went through a public network in preprocessing, where no gradient comes."""
    return isinstance(preprocessor(run, run.modalities[0]), FrozenPreprocessor | WakewordPreprocessor)


def _engine(model: MultimodalModel, run: RunConfig, samples: Samples) -> str:
    """Which engine has the gradients of the model when a site leaves the choice to the code."""
    names, engine = trainable_names(model, run.modalities), choose_engine("auto", model)
    engine.clipped_sum(model, samples.take(torch.arange(2)), names=names, clip=Clip(CLIP_NORM))
    chosen = engine.engine if isinstance(engine, AutoEngine) else engine
    return type(chosen).__name__.removesuffix("Engine").lower()


def _turns(model: MultimodalModel, samples: Samples, *, budget_s: float) -> dict[str, Turns]:
    """A private step and a plain one, in turns."""
    jobs: dict[str, Callable[[], Job]] = {
        "plain": lambda: _plain_step(model, samples),
        "private": lambda: partial(_private_step, model, samples),
    }
    return alternate(jobs, budget_s=budget_s, least=TURNS)


def _plain_step(model: MultimodalModel, samples: Samples) -> Job:
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(model(samples.inputs, samples.present), samples.targets).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _private_step(model: MultimodalModel, samples: Samples) -> None:
    motet_update("Motet auto", model, samples, noise=1.0, steps=1)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, store and write the page."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.breadth", description=__doc__)
    parser.add_argument("--budget-s", type=float, default=2.0, help="seconds for each part; three turns in any case")
    parser.add_argument("--only", default="", help="a part's name: measured anew, all others stay as they are stored")
    parser.add_argument("--page", action="store_true", help="write the page from what is stored")
    options = parser.parse_args(words)
    if not options.page:
        torch.set_num_threads(1)
        keep_freed_memory()
        _store(budget_s=options.budget_s, only=options.only)
    write_page()


def _store(*, budget_s: float, only: str) -> None:
    before = Breadth.read() if only else None
    facts, begun, parts = machine(), datetime.now(UTC), list[PartResult]()
    for part in candidates():
        known = before.of(part.kind, part.name, part.mode) if before and part.name != only else None
        parts.append(known or look_at(part, budget_s=budget_s))
        print(parts[-1].model_dump_json(exclude_defaults=True, include={"kind", "name", "mode", "engine", "why_not"}))
    if before:
        later = tuple(sorted({*before.later, only}))
        result = before.model_copy(update={"parts": tuple(parts), "later": later})
    else:
        result = Breadth(
            started=begun.isoformat(timespec="seconds"),
            machine=facts,
            versions=versions(),
            commit=commit(ROOT),
            tree_is_clean=tree_is_clean(ROOT),
            parts=tuple(parts),
            recurrence=look_at_recurrence(batch=64, budget_s=5 * budget_s),
        )
    breadth_path().write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
