"""Cohorts: sites of a few rows each, and rounds of them together and alone; used by the tests beside it."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from client.cohort_training import Member, train_cohort
from client.gradient.layers import Rows
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import Stacked, StackedClip
from client.plan import PrivacyPlan
from client.private_training import TrainedRound, train_round
from shared.batch import Batch, Samples
from shared.config import RunConfig, TrainingSettings
from shared.model.encoders import preprocessor
from shared.model.multimodal import MultimodalModel
from shared.model.parameters import trainable_names
from shared.privacy.mechanism import Clip
from shared.privacy.noise import RandomSource, reproducible_source
from tests.client.layered import names_of
from tests.client.toy import plan_of, training_settings
from tests.shared.example_runs import finished


class How(TypedDict):
    """What all sites of a cohort share."""

    names: tuple[str, ...]
    training: TrainingSettings
    round_number: int
    rounds: int
    modality_dropout: float


def sources(site: int) -> tuple[RandomSource, RandomSource]:
    """A site's noise and sampling, the same each time."""
    return reproducible_source(site, purpose="noise"), reproducible_source(site, purpose="sampling")


def member(samples: Samples, plan: PrivacyPlan | None, *, site: int, nominal_size: int = 6) -> Member:
    noise, sampling = sources(site)
    return Member(samples, plan, nominal_size, noise, sampling)


def alone(model: nn.Module, one: Member, how: How) -> TrainedRound:
    """What the site is given by itself."""
    plan, size = one.plan, one.nominal_size
    return train_round(model, one.samples, plan=plan, nominal_size=size, noise=one.noise, sampling=one.sampling, **how)


def together(model: nn.Module, members: Sequence[Member], *, training: TrainingSettings | None = None) -> list[Tensor]:
    """Updates of a round in float64, each as one vector."""
    names = names_of(model)
    how = How(names=names, training=training or training_settings(), round_number=1, rounds=1, modality_dropout=0.0)
    return [one_vector(each, names).double() for each in train_cohort(model, members, **how)]


def one_vector(trained: TrainedRound, names: Sequence[str]) -> Tensor:
    return torch.cat([trained.update[name].reshape(-1) for name in names])


def rows(num: int, *shape: int, seed: int = 0, subjects: int = 1) -> Samples:
    """Rows of a Chain, so many of each subject."""
    return Samples(
        inputs={"x": torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed))},
        present=torch.ones(num, 1, dtype=torch.bool),
        targets=torch.arange(float(num)) / 5,
        subjects=tuple(str(row // subjects) for row in range(num)),
        groups={},
    )


def rows_of_run(run: RunConfig, num: int, *, seed: int, lacking: str | None) -> Samples:
    """A site's samples, some without a modality; of a site that lacks one, none with it."""
    draws = torch.Generator().manual_seed(seed)
    present = torch.rand(num, len(run.modalities), generator=draws) < 0.7
    present[:, [name == lacking for name in run.modalities]] = False
    kept = next(place for place, name in enumerate(run.modalities) if name != lacking)
    present[:, kept] |= ~present.any(dim=1)
    inputs = {
        name: finished(name, shape=preprocessor(run, name).shape, rows=num, seed=seed)
        for name in run.modalities
        if name != lacking
    }
    classes = torch.randint(3, (num,), generator=draws)
    return Samples(
        inputs=inputs,
        present=present,
        targets=classes.float() if run.data.task == "rating" else classes,
        subjects=tuple(str(row // 2) for row in range(num)),
        groups={},
    )


def small_cohort(num: int) -> list[Member]:
    """Sites of different sizes, norms and numbers of steps."""
    plans = [plan_of(clip_norm=0.1 + 0.1 * site, steps_per_round=1 + site % 3) for site in range(num)]
    return [member(rows(1 + 3 * site % 7, 4, seed=site), plan, site=site) for site, plan in enumerate(plans)]


def assert_sites_are_told_apart(
    models: Sequence[MultimodalModel], batch: Batch, *, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """Rows of two sites in one batch, three each, every site through its own weights: its sum is the one it has alone."""
    names = trainable_names(models[0], models[0].modalities)
    weights = torch.stack(
        [torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names]) for model in models]
    )
    found = Stacked(models[0], names=names).clipped_sums(
        weights,
        batch,
        rows=Rows(2, 3),
        real=torch.ones(2, 3, dtype=torch.bool),
        clip=StackedClip(torch.full((2,), 0.05, dtype=torch.float64)),
    )
    for number, (model, site) in enumerate(zip(models, found.sums, strict=True)):
        half = batch.take(torch.arange(3 * number, 3 * number + 3))
        wanted = ReferenceEngine().clipped_sum(model, half, names=names, clip=Clip(0.05)).sums
        torch.testing.assert_close(site, torch.cat([wanted[name].reshape(-1) for name in names]), rtol=rtol, atol=atol)
