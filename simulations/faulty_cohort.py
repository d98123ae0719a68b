"""Faulty cohort: faults that only sites trained in one pass can have; never used but through planted_faults.py.

in        nothing
out       one context manager a fault, which breaks the real modules while it lasts
relies on the names of cohort_draws.py, noisy_optimizer.py and gradient/stacked.py
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from client import noisy_optimizer
from client.cohort_draws import CohortDraws, Drawn
from client.gradient.stacked import Stacked, StackedSum
from client.noisy_optimizer import StackedNoisyOptimizer
from shared.config import NoiseKind
from shared.privacy.noise import RandomSource, normal_rows


@contextlib.contextmanager
def empty_batch_skipped() -> Iterator[None]:
    """A site of a cohort that drew nobody has no noise."""
    step, add_noise, drawn = CohortDraws.step, StackedNoisyOptimizer.add_noise, threading.local()

    def noted(self: CohortDraws, number: int, *, active: int) -> Drawn | None:
        found = step(self, number, active=active)
        drawn.counts = found.counts.tolist() if found is not None else [0] * active
        return found

    def quiet(self: StackedNoisyOptimizer) -> None:
        before = self.protections
        self.protections = tuple(
            each if place >= len(drawn.counts) or drawn.counts[place] else replace(each, noise_multiplier=0.0)
            for place, each in enumerate(before)
        )
        add_noise(self)
        self.protections = before

    with mock.patch.object(CohortDraws, "step", noted), mock.patch.object(StackedNoisyOptimizer, "add_noise", quiet):
        yield


@contextlib.contextmanager
def noise_shared() -> Iterator[None]:
    """All sites of a cohort get the numbers of the first, each in its own scale."""

    def shared(
        sources: Sequence[RandomSource], out: Tensor, *, stds: Sequence[float], kind: NoiseKind = "float64"
    ) -> None:
        normal_rows(sources[:1], out[:1], stds=[1.0], kind=kind)
        out.copy_(out[:1] * torch.tensor(stds, dtype=out.dtype)[:, None])

    with mock.patch.object(noisy_optimizer, "normal_rows", shared):
        yield


@contextlib.contextmanager
def padding_counted() -> Iterator[None]:
    """Rows that fill up the draw of a small site count as its own."""
    original = CohortDraws.step

    def full(self: CohortDraws, number: int, *, active: int) -> Drawn | None:
        drawn = original(self, number, active=active)
        return None if drawn is None else replace(drawn, real=torch.ones_like(drawn.real))

    with mock.patch.object(CohortDraws, "step", full):
        yield


@contextlib.contextmanager
def weights_of_a_neighbour() -> Iterator[None]:
    """From the second step on each site's gradients are those of the next site's weights."""
    clipped, plain = Stacked.clipped_sums, Stacked.plain_sums

    def turned(self: Stacked, weights: Tensor, *rest: object, **how: object) -> StackedSum:
        return clipped(self, weights.roll(1, dims=0), *rest, **how)  # type: ignore[arg-type]

    def turned_plain(self: Stacked, weights: Tensor, *rest: object, **how: object) -> Tensor:
        return plain(self, weights.roll(1, dims=0), *rest, **how)  # type: ignore[arg-type]

    with mock.patch.object(Stacked, "clipped_sums", turned), mock.patch.object(Stacked, "plain_sums", turned_plain):
        yield
