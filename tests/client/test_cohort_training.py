"""Tests of client/cohort_training.py: each site of a cohort gets what it would have been given alone, noise included."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.cohort_training import Member, train_cohort, why_apart
from client.plan import PrivacyPlan
from client.preflight.chance import FALSE_ALARM, scale_is_plausible
from shared.config import Clipping, NoiseKind, RunConfig, TrainingSettings
from shared.errors import PrivacyError
from shared.model.multimodal import build_model
from shared.model.parameters import trainable_names
from tests.client.cohorts import How, alone, member, one_vector, rows, rows_of_run, together
from tests.client.layered import Chain, names_of
from tests.client.toy import plan_of, training_settings
from tests.shared.example_runs import FUSIONS, OF_KIND, augment_of, example_run, small

CLIPPINGS: tuple[Clipping, ...] = ("flat", "per-layer", "adaptive")
OUT, IN = 140, 150
"""of a layer with enough weights to judge noise by"""


ENCODERS = [name for names in OF_KIND.values() for name in names if name != "mfcc-lstm"]


def kind_of(encoder: str) -> str:
    return next(kind for kind, names in OF_KIND.items() if encoder in names)


@dataclass(frozen=True)
class Case:
    """A cohort of some run; sites differ in sizes, plans and steps."""

    encoders: list[str]
    fusion: str
    head: str
    is_rating: bool
    sizes: list[int]
    steps: list[int]
    lacks_one: bool
    """the sites have no values of one modality"""
    is_frozen: bool
    is_private: bool
    per_subject: int
    """records drawn of each subject; 0 where records are protected"""
    clipping: Clipping
    noise: NoiseKind
    dropout: float
    """of modalities"""
    drops: float
    """of an embedding's numbers"""
    augments: bool
    copies: int
    """of each record"""
    by_epochs: bool
    training: dict[str, object]

    @property
    def run(self) -> RunConfig:
        encoders = {kind_of(name): small(name) for name in self.encoders}
        if self.augments:
            encoders |= {
                kind: {**encoder, "augment": augment_of(str(encoder["name"]))} for kind, encoder in encoders.items()
            }
        run = example_run(encoders, fusion=self.fusion, head=self.head, rating=self.is_rating)
        return run.model_copy(update={"model": run.model.model_copy(update={"dropout": self.drops})})

    def plan(self, site: int) -> PrivacyPlan | None:
        if not self.is_private:
            return None
        return plan_of(
            unit="subject" if self.per_subject else "record",
            records_per_unit=self.per_subject or 1,
            clipping=self.clipping,
            noise=self.noise,
            clip_norm=0.2 + 0.3 * site,
            noise_multiplier=0.3 + 0.2 * site,
            sample_rate=0.7 - 0.15 * site,
            expected_batch_size=3.0 + site,
            steps_per_round=self.steps[site],
        )


CASES = st.builds(
    Case,
    encoders=st.lists(st.sampled_from(ENCODERS), min_size=1, max_size=2, unique_by=kind_of),
    fusion=st.sampled_from(FUSIONS),
    head=st.sampled_from(["linear", "mlp"]),
    is_rating=st.booleans(),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    steps=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    lacks_one=st.booleans(),
    is_frozen=st.booleans(),
    is_private=st.sampled_from([True, True, False]),
    per_subject=st.sampled_from([0, 1, 3]),
    clipping=st.sampled_from(CLIPPINGS),
    noise=st.sampled_from(["float64", "float32"]),
    dropout=st.sampled_from([0.0, 0.4]),
    drops=st.sampled_from([0.0, 0.3]),
    augments=st.booleans(),
    copies=st.sampled_from([1, 1, 2]),
    by_epochs=st.booleans(),
    training=st.fixed_dictionaries(
        {
            "optimizer": st.sampled_from(["sgd", "momentum", "adam"]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "proximal_mu": st.sampled_from([0.0, 0.5]),
            "schedule": st.sampled_from(["constant", "cosine"]),
        }
    ),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=CASES)
def test_every_site_gets_what_it_would_have_been_given_alone(case: Case) -> None:
    """Any model, sizes and settings: the same change to 1e-5, the same counts, and not one random number more or less.

    In float64: at a kink of a ReLU float32 takes one side or the other by the order of its additions.
    """
    run, model = case.run, build_model(case.run).double()
    lacking = run.modalities[-1] if case.lacks_one and len(run.modalities) > 1 else None
    names = trainable_names(model, tuple(name for name in run.modalities if name != lacking))
    if case.is_frozen:
        names = tuple(name for name in names if not name.startswith("encoders.")) or names
    length = {"local_steps": None, "local_epochs": 1.3} if case.by_epochs else {"local_steps": 2}
    training = TrainingSettings.model_validate({"learning_rate": 0.1, "sample_rate": 0.5, **length, **case.training})
    training = training.model_copy(update={"augment_multiplicity": case.copies})
    how = How(names=names, training=training, round_number=2, rounds=3, modality_dropout=case.dropout)

    def members() -> list[Member]:
        found = []
        for site, size in enumerate(case.sizes):
            samples = rows_of_run(run, size, seed=site, lacking=lacking)
            values = {key: each.double() if each.is_floating_point() else each for key, each in samples.inputs.items()}
            found.append(member(replace(samples, inputs=values), case.plan(site), site=site))
        return found

    cohort = members()
    for one, beside, found in zip(members(), cohort, train_cohort(model, cohort, **how), strict=True):
        wanted = alone(model, one, how)
        assert found.unclipped_share == wanted.unclipped_share
        assert set(found.update) == set(wanted.update)
        first, second = one_vector(found, names), one_vector(wanted, names)
        assert float((first - second).norm()) <= 1e-5 * float(second.norm())
        for left, right in ((one.noise, beside.noise), (one.sampling, beside.sampling)):
            assert float(left.uniform(1)) == float(right.uniform(1))


@pytest.mark.parametrize("encoder", [*ENCODERS, "mfcc-lstm"])
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_in_float32_every_encoder_is_trained_as_alone_to_rounding(encoder: str, clipping: Clipping) -> None:
    run = example_run({kind_of(encoder): small(encoder)})
    model = build_model(run)
    training = training_settings("momentum", learning_rate=0.1, local_steps=2)
    how = How(names=names_of(model), training=training, round_number=1, rounds=1, modality_dropout=0.0)

    def members() -> list[Member]:
        plans = [plan_of(clip_norm=0.2 + site, steps_per_round=2, clipping=clipping) for site in range(3)]
        samples = [rows_of_run(run, size, seed=size, lacking=None) for size in (1, 6, 3)]
        return [member(samples[site], plan, site=site) for site, plan in enumerate(plans)]

    for one, found in zip(members(), train_cohort(model, members(), **how), strict=True):
        wanted = alone(model, one, how)
        first, second = one_vector(found, how["names"]), one_vector(wanted, how["names"])
        assert float((first - second).norm()) <= 1e-5 * float(second.norm())
        assert found.unclipped_share == wanted.unclipped_share


def of_noise(
    noise_multipliers: Sequence[float], *, steps: Sequence[int], kind: NoiseKind = "float64", size: int = 4
) -> list[Member]:
    """Sites at which nobody is ever drawn."""
    return [
        member(
            rows(size, IN, seed=site),
            plan_of(
                noise_multiplier=multiplier,
                clip_norm=0.5 + site,
                sample_rate=1e-9,
                expected_batch_size=4.0 + 3 * site,
                steps_per_round=count,
                noise=kind,
            ),
            site=site,
        )
        for site, (multiplier, count) in enumerate(zip(noise_multipliers, steps, strict=True))
    ]


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("empty", [True, False])
def test_every_site_of_a_cohort_has_noise_of_its_own(kind: NoiseKind, empty: bool) -> None:
    """Of the scale of its own plan, whoever was drawn, and unrelated to the others': seven tests share a rate of 1e-6."""
    model = Chain(nn.Linear(IN, OUT, bias=False), seed=1)
    sites = of_noise([0.7, 1.3, 2.9], steps=[1, 1, 1], kind=kind)
    if not empty:  # some are drawn, whose contribution is as nothing
        full = [
            replace(each.plan, sample_rate=0.5, clip_norm=1e-6, noise_multiplier=each.plan.noise_multiplier * 1e6)
            for each in sites
            if each.plan is not None
        ]
        sites = [replace(each, plan=plan) for each, plan in zip(sites, full, strict=True)]
    plans = [each.plan for each in sites if each.plan is not None]
    stds = [plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size for plan in plans]
    noise = together(model, sites)
    rate = FALSE_ALARM / 6

    for own, std in zip(noise, stds, strict=True):
        assert scale_is_plausible(own, std=std, false_alarm=rate)
        assert not scale_is_plausible(own, std=std * 1.05, false_alarm=rate)
        assert not scale_is_plausible(own, std=std / 1.05, false_alarm=rate)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        # correlation times sqrt(P) is standard normal; beyond 5.1 with a chance of 3.4e-7, for all three together 1e-6
        related = float(noise[first] @ noise[second]) / (stds[first] * stds[second] * math.sqrt(OUT * IN))
        assert abs(related) < 5.1
        assert abs(float(noise[first] @ noise[first]) / (stds[first] ** 2 * math.sqrt(OUT * IN))) > 5.1


@pytest.mark.parametrize(("optimizer", "kept"), [("sgd", 0.0), ("momentum", 0.9)])
def test_every_site_of_a_cohort_makes_its_own_steps(optimizer: Literal["sgd", "momentum"], kept: float) -> None:
    """As many as its plan says, the noise of each drawn one after the other from the site's own source, and no more."""
    sites, fresh = (of_noise([0.5] * 4, steps=[3, 1, 2, 1]) for _ in range(2))
    updates = together(Chain(nn.Linear(IN, 3)), sites, training=training_settings(optimizer))
    for own, site, each in zip(updates, sites, fresh, strict=True):
        assert each.plan is not None
        step, expected = torch.zeros(len(own)).double(), torch.zeros(len(own)).double()
        for _ in range(each.plan.steps_per_round):
            noise = each.noise.normal((len(own),), std=0.5 * each.plan.clip_norm)
            step = kept * step + noise / each.plan.expected_batch_size
            expected -= step
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(site.noise.normal((3,), std=1.0), each.noise.normal((3,), std=1.0))


def test_a_cohort_divides_by_each_sites_public_number() -> None:
    """Twice the rows at a site leave its noise and its denominator as they were; sums are over the expected number."""
    model = Chain(nn.Linear(IN, 2))
    few, many = (together(model, of_noise([1.0, 1.0], steps=[1, 2], size=size)) for size in (4, 8))
    for first, second in zip(few, many, strict=True):
        assert torch.equal(first, second)

    planted = replace(rows(2, 3), inputs={"x": torch.ones(2, 3)}, targets=torch.ones(2, 1))
    sums = together(
        Chain(nn.Linear(3, 1)),
        [
            member(
                planted, plan_of(noise_multiplier=0.0, sample_rate=1.0, expected_batch_size=size, clip_norm=9.0), site=0
            )
            for size in (1.0, 8.0, 2.0)
        ],
    )
    for own, size in zip(sums, (1.0, 8.0, 2.0), strict=True):
        assert own.tolist() == pytest.approx([-2 / size] * 4)


@settings(max_examples=15, deadline=None)
@given(
    one=st.lists(st.sampled_from([0.0, 0.3, -7.0, 1e18, 3e38, math.nan, math.inf]), min_size=4, max_size=4),
    place=st.integers(0, 2),
    clipping=st.sampled_from(["flat", "per-layer"]),
    per_subject=st.sampled_from([0, 2]),
)
def test_one_unit_moves_its_own_site_by_at_most_its_norm_and_no_other(
    one: list[float], place: int, clipping: str, per_subject: int
) -> None:
    """A subject with 50 rows all alike, or one record, at one of three sites."""
    model, rate = Chain(nn.Linear(3, 1)), 1.0

    def updates(*, with_one: bool) -> list[Tensor]:
        members = []
        for site in range(3):
            samples, more = rows(4, 3, seed=site), (50 if per_subject else 1) * (with_one and site == place)
            row = torch.tensor(one).expand(more, -1)
            targets = torch.cat([torch.ones(4, 1), row[:, 3:]])
            owners = (*samples.subjects, *["one"] * more)
            samples = replace(samples, inputs={"x": torch.cat([samples.inputs["x"], row[:, :3]])}, targets=targets)
            samples = replace(samples, present=torch.ones(len(owners), 1, dtype=torch.bool), subjects=owners)
            plan = plan_of(
                unit="subject" if per_subject else "record",
                records_per_unit=max(1, per_subject),
                clip_norm=0.2 + site,
                clipping=clipping,
                sample_rate=rate,
                expected_batch_size=4.0,
                noise_multiplier=0.01,
            )
            members.append(member(samples, plan, site=site))
        return together(model, members)

    moved = [
        float((first - second).norm())
        for first, second in zip(updates(with_one=True), updates(with_one=False), strict=True)
    ]
    assert moved[place] <= (0.2 + place) / 4 * (1 + 1e-5)
    assert [moved[site] for site in range(3) if site != place] == pytest.approx([0, 0], abs=1e-7)


def test_members_that_cannot_share_a_pass_are_refused() -> None:
    model, base = Chain(nn.Linear(4, 2)), plan_of()
    for changes in ({"unit": "subject"}, {"clipping": "adaptive"}, {"unit": "subject", "records_per_unit": 2}):
        with pytest.raises(PrivacyError, match="members of 2 kinds"):
            together(model, [member(rows(3, 4), plan, site=0) for plan in (base, plan_of(**changes))])
    for other in (None, plan_of(noise="discrete")):
        with pytest.raises(PrivacyError, match="members of 2 kinds"):
            together(model, [member(rows(3, 4), plan, site=0) for plan in (base, other)])
    with pytest.raises(PrivacyError, match="discrete noise in a cohort"):
        together(model, [member(rows(3, 4), plan_of(noise="discrete"), site=site) for site in range(2)])


def test_who_is_trained_apart_is_told_why() -> None:
    model, plan = Chain(nn.Linear(4, 2)), plan_of()
    names = names_of(model)
    assert why_apart(model, names=names, training=training_settings(), plan=plan) is None
    assert why_apart(model, names=names, training=training_settings(), plan=None) is None

    reason = why_apart(model, names=names, training=training_settings(), plan=plan_of(noise="discrete"))
    assert "each row is computed apart" in (reason or "")
    asked = training_settings(gradient_engine="hooks")
    assert "'hooks' is asked for" in (why_apart(model, names=names, training=asked, plan=plan) or "")
    other = Chain(nn.Bilinear(2, 2, 2))
    assert "Bilinear" in (why_apart(other, names=names_of(other), training=training_settings(), plan=plan) or "")
