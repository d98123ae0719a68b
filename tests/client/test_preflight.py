"""Preflight: every built-in part passes every check, in every unit and way of clipping; a run that fails is refused."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client import preflight as package
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.choice import AutoEngine
from client.gradient.reference import ReferenceEngine
from client.preflight import assert_sound, preflight
from client.preflight.chance import FALSE_ALARM, coins_are_plausible, scale_is_plausible
from client.preflight.gradients import independent, own_gradient
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import Rehearsal, rehearse
from shared.config import PrivacySettings, RunConfig
from shared.errors import ModelError
from shared.model.registry import (
    EncoderPart,
    EncoderPlace,
    encoder_registry,
)
from shared.preflight import PreflightCheck
from shared.preprocess.features import FeaturesOptions, FeaturesPreprocessor
from shared.privacy.mechanism import Clip, ClippedSum
from shared.settings import Settings
from tests.shared.example_runs import AUGMENT, OF_KIND, example_run, small
from tests.shared.pretrained_folders import pretrained_folder

LOCAL_CHECKS = (
    "own-gradient",
    "bounded",
    "independent",
    "empty-batch",
    "absent-modality",
    "noise-scale",
    "noise-fresh",
    "poisson-sampling",
    "public-denominator",
    "composition",
    "allow-list",
)
RECORD: Mapping[str, object] = {
    "unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.3,
}  # fmt: skip
SUBJECT: Mapping[str, object] = {**RECORD, "unit": "subject"}
SITE: Mapping[str, object] = {**RECORD, "unit": "site", "trust": "server"}
SLOW = pytest.mark.slow


def of_kinds(*names: str) -> dict[str, dict[str, object]]:
    """The named encoders, each for its kind of modality."""
    return {next(kind for kind, known in OF_KIND.items() if name in known): small(name) for name in names}


RUNS: dict[str, RunConfig] = {
    "concat": example_run(of_kinds("cnn", "transformer", "mel-cnn", "conv1d", "linear")),
    "gated": example_run(of_kinds("embedding-mean", "mfcc-lstm"), fusion="gated", head="mlp"),
    "attention": example_run(of_kinds("bag-of-ngrams", "statistics"), fusion="attention", rating=True),
    "average": example_run(of_kinds("mel-statistics", "linear"), fusion="average"),
    "mean": example_run(of_kinds("linear"), fusion="mean", head="identity", width=3),
    "sum": example_run(of_kinds("conv1d", "linear"), fusion="sum"),
}
"""parts together; each by itself: test_a_run_with_it_passes_the_whole_preflight"""


def private(run: RunConfig, privacy: Mapping[str, object], **training: object) -> RunConfig:
    """The run with privacy, and training settings of its own."""
    table = run.model_dump()
    return RunConfig.model_validate(
        {
            **table,
            "privacy": PrivacySettings.model_validate(privacy).model_dump(),
            "training": {**table["training"], **training},
        }
    )


def failed(checks: tuple[PreflightCheck, ...]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    package.forget()
    yield
    package.forget()


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "mean" else SLOW) for name in RUNS])
def test_runs_of_many_parts_pass(name: str) -> None:
    checks = preflight(private(RUNS[name], RECORD))

    assert failed(checks) == {}
    assert tuple(check.name for check in checks) == LOCAL_CHECKS


def test_a_run_that_augments_and_drops_passes() -> None:
    """What training draws for a sample is left out of a rehearsal, whose replies may differ by their noise alone."""
    run = example_run({"vector": {"name": "linear", "augment": AUGMENT["vector"]}})
    run = run.model_copy(update={"model": run.model.model_copy(update={"dropout": 0.3})})

    assert failed(preflight(private(run, RECORD, augment_multiplicity=2))) == {}


def test_a_run_whose_fusion_names_a_folder_passes(tmp_path: Path) -> None:
    path = {"path": str(pretrained_folder(tmp_path / "bert", kind="bert"))}
    words = {"name": "tokens", "options": path, "preprocess": {"max_tokens": 6}}
    run = example_run({"vector": {"name": "linear"}, "words": words}, fusion="prefix", fusion_options=path)

    assert failed(preflight(private(run, RECORD), only={"own-gradient", "allow-list"})) == {}


@pytest.mark.parametrize(
    ("privacy", "training"),
    [
        ({**SUBJECT, "clipping": "per-layer"}, {"records_per_subject": 3}),
        pytest.param({**RECORD, "clipping": "adaptive"}, {"gradient_engine": "hooks"}, marks=SLOW),
        pytest.param({**SUBJECT, "clipping": "adaptive"}, {"gradient_engine": "reference"}, marks=SLOW),
    ],
)
def test_every_unit_clipping_and_engine_passes(privacy: Mapping[str, object], training: dict[str, object]) -> None:
    assert failed(preflight(private(RUNS["sum"], privacy, **training))) == {}


@pytest.mark.parametrize("engine", ["bookkeeping", "functional", "hooks", "reference", "auto"])
def test_whichever_engine_is_named_is_tried_out_as_it_would_train(engine: str) -> None:
    """Whole numbers too, which a site's owner may choose whatever engine the run names."""
    checks = preflight(private(RUNS["mean"], RECORD, gradient_engine=engine), only={"own-gradient", "bounded"})

    assert [(check.name, check.passed) for check in checks] == [("own-gradient", True), ("bounded", True)], checks


@pytest.mark.parametrize("engine", ["auto", "bookkeeping"])
def test_whole_numbers_beyond_their_bound_are_noticed_whichever_engine_is_named(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped sums of whole numbers twice as long as they may be, and no others."""
    right = ReferenceEngine.clipped_sum

    def twice_as_long(self: ReferenceEngine, *args: object, clip: Clip, **kwargs: object) -> ClippedSum:
        norm = clip.norm if clip.grid is None else 2 * clip.norm
        result: ClippedSum = right(self, *args, clip=dataclasses.replace(clip, norm=norm), **kwargs)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr(ReferenceEngine, "clipped_sum", twice_as_long)

    (check,) = preflight(private(RUNS["mean"], RECORD, gradient_engine=engine), only={"bounded"})

    assert not check.passed
    assert "of what is allowed" in check.detail


@pytest.mark.parametrize("name", ["mean", "gated"])
def test_what_is_rehearsed_is_the_engine_that_trains_two_rows_at_a_time(name: str) -> None:
    with rehearse(private(RUNS[name], RECORD)) as rehearsal:
        assert own_gradient(rehearsal).passed
        engine = rehearsal.engine

    assert isinstance(engine, AutoEngine)
    assert isinstance(engine.engine, BookkeepingEngine)
    assert engine.engine.microbatch_size == 2


def test_where_the_server_adds_the_noise_the_length_of_updates_is_checked_instead() -> None:
    checks = preflight(private(RUNS["mean"], SITE))

    assert [check.name for check in checks] == ["allow-list", "update-clipped"]
    assert failed(checks) == {}


def test_records_and_sites_together_are_both_checked() -> None:
    run = private(RUNS["mean"], RECORD).model_copy(update={"site_privacy": PrivacySettings.model_validate(SITE)})
    only = {"noise-fresh", "composition", "allow-list", "update-clipped"}

    checks = preflight(run, only=only)

    assert failed(checks) == {}
    assert {check.name for check in checks} == only


def test_a_run_without_privacy_is_checked_for_what_leaves() -> None:
    assert [check.name for check in preflight(RUNS["mean"])] == ["allow-list"]


def test_equal_runs_get_equal_answers_and_no_global_generator_moves() -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False)
    only = {"own-gradient", "noise-fresh", "composition"}

    first, second = (preflight(private(RUNS["mean"], RECORD), only=only) for _ in range(2))

    assert first == second
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state(legacy=False)) == str(before[1])


class _NoOptions(Settings):
    """None."""


class _Mixing(nn.Module):
    """A part of somebody's own that subtracts the mean of the batch: no layer that a list of names would refuse."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(5, width)

    def forward(self, values: Tensor) -> Tensor:
        embedding: Tensor = self.layer(values)
        return embedding - embedding.mean(dim=0)


@encoder_registry.register("mixing-in-a-test", options=_NoOptions, takes="features")
def _mixing(place: EncoderPlace, _options: _NoOptions) -> EncoderPart:
    way = FeaturesPreprocessor(place.preprocess(FeaturesOptions), width=place.schema.width or 1)
    return EncoderPart(preprocessor=way, module=lambda: _Mixing(place.width))


def test_a_run_that_fails_its_preflight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_LOCAL", {"own-gradient": own_gradient, "independent": independent})
    run = private(example_run({"vector": {"name": "mixing-in-a-test"}}), RECORD)

    with pytest.raises(ModelError, match="independent: a sample's loss and gradient moved") as caught:
        assert_sound(run)

    assert "No data was read" in str(caught.value)


def test_equal_settings_are_looked_into_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run, made = private(RUNS["mean"], RECORD), []

    def counted(_: Rehearsal) -> Outcome:
        made.append(1)
        return Outcome(True, "")

    monkeypatch.setattr(package, "_LOCAL", {"counted": counted})

    assert_sound(run)
    assert_sound(run.model_copy(update={"data": run.data.model_copy(update={"groups": ("age",)})}))

    assert len(made) == 1


def test_a_check_that_breaks_down_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_LOCAL", {"broken": lambda _: 1 / 0})

    (check,) = preflight(private(RUNS["mean"], RECORD), only={"broken"})

    assert not check.passed
    assert "ZeroDivisionError" in check.detail


def test_made_up_rows_lack_each_modality_somewhere_and_none_lacks_all() -> None:
    with rehearse(private(RUNS["gated"], RECORD)) as rehearsal:
        present = rehearsal.samples.present
        folder = rehearsal.folder

    assert present.any(dim=1).all()
    assert present[:4].all()
    assert (~present[4:]).sum(dim=1).eq(1).all()
    assert not folder.exists()


def test_plausible_scales_are_let_through_and_those_5_percent_off_are_not() -> None:
    """Fails by chance for one seed in a million."""
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    assert scale_is_plausible(noise, std=1.0)
    assert not scale_is_plausible(noise, std=1.05)
    assert not scale_is_plausible(noise, std=1 / 1.05)
    assert not scale_is_plausible(noise * float("nan"), std=1.0)


def test_false_alarms_come_as_seldom_as_stated() -> None:
    """At a rate of 5 % in place of one in a million, where it can be counted: 250 of 5000, between 180 and 330."""
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(5_000, 50, generator=draws, dtype=torch.float64)
    alarms = sum(not scale_is_plausible(row, std=1.0, false_alarm=0.05) for row in noise)
    coins = (torch.rand(1_000, 30, 20, generator=draws) < 0.3).long()
    refused = sum(bool(coins_are_plausible(each, chance=0.3, false_alarm=0.05)) for each in coins)

    assert FALSE_ALARM == 1e-6
    assert 180 < alarms < 330
    # the chi-square is an approximation for coins; it errs towards silence
    assert 0 < refused < 0.07 * 1_000
