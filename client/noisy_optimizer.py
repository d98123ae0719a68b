"""Noisy optimizers: Opacus' optimizer, its noise from a cipher's stream, for one site or for many side by side.

in        clipped sums, and for each site who protects them: noise multiplier, clip, denominator, a RandomSource
out       a step of an ordinary torch optimizer on the noised, divided sums
relies on Opacus for the order of things: accumulate, add noise, divide, hook, step
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from client.plan import PrivacyPlan
from shared.config import NoiseKind, TrainingSettings
from shared.privacy.mechanism import GRIDS_PER_NORM, Clip, split_noise, whole_number_sensitivity
from shared.privacy.noise import PIECE, RandomSource, normal_rows


@dataclass(frozen=True)
class Protection:
    """How the sums of one site are protected and divided."""

    clip: Clip
    noise_multiplier: float
    """of the sum, over the clip norm; 0 without a plan"""
    denominator: float
    """expected batch size; public"""
    kind: NoiseKind
    source: RandomSource

    @property
    def std(self) -> float:
        """Standard deviation of the noise of each number of the sum, where it is no whole number."""
        return self.noise_multiplier * self.clip.norm if self.noise_multiplier else 0.0


def protection_of(plan: PrivacyPlan | None, *, expected_batch_size: float, source: RandomSource) -> Protection:
    """How a plan protects a step's sum; without a plan, not at all."""
    # PRIVACY: noise of the scale the accountant was told. test_noise_has_the_promised_scale
    multiplier = plan.noise_multiplier if plan else 0.0
    if plan is not None and plan.clipping == "adaptive":
        # PRIVACY: a little more than the accountant was told; the difference pays for the count.
        # test_sum_and_count_together_cost_what_one_gaussian_does
        multiplier, _ = split_noise(multiplier)
    return Protection(
        clip=clip_of(plan),
        noise_multiplier=multiplier,
        # PRIVACY: divide by the expected batch size; the drawn one depends on who is there. test_denominator_is_public
        denominator=expected_batch_size,
        kind=plan.noise if plan else "float64",
        source=source,
    )


def clip_of(plan: PrivacyPlan | None) -> Clip:
    """How a plan bounds each unit's contribution; without a plan, not at all."""
    if plan is None:
        return Clip(math.inf)
    return Clip(
        plan.clip_norm,
        per_layer=plan.clipping == "per-layer",
        grid=plan.clip_norm / GRIDS_PER_NORM if plan.noise == "discrete" else None,
    )


def inner_optimizer(
    parameters: Sequence[nn.Parameter], *, training: TrainingSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """The run's optimizer of local steps; its state lasts one round."""
    decay = training.weight_decay
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=decay)
    momentum = training.momentum if training.optimizer == "momentum" else 0.0
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=decay)


class NoisyOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimizer, its noise drawn from a cipher's stream, and added to whole numbers where the clip has a grid.

    Opacus draws in float32 from a generator that a seed of 32 bits gives back; its uniform numbers have 24 bits, so
    that no draw passes 5.77 deviations. A Gaussian passes them eight times in a thousand million: over all weights and
    steps, more than a delta of 1e-5 has room for.
    """

    clipped_sums: Sequence[Tensor]
    """of each parameter in order, set before each step; int64 where the clip has a grid"""

    def __init__(self, inner: torch.optim.Optimizer, *, protection: Protection) -> None:
        super().__init__(
            inner,
            noise_multiplier=protection.noise_multiplier,
            max_grad_norm=protection.clip.norm,
            expected_batch_size=protection.denominator,
        )
        self.protection = protection

    def accumulate(self) -> None:
        """Takes over `clipped_sums`."""
        for parameter, clipped in zip(self.params, self.clipped_sums, strict=True):
            parameter.summed_grad = clipped

    def add_noise(self) -> None:
        """Leaves the clipped sum with its noise in every parameter's `grad`."""
        grid = self.protection.clip.grid
        numbers = torch.split(self._noise(), [parameter.numel() for parameter in self.params])
        for parameter, noise in zip(self.params, numbers, strict=True):
            clipped = parameter.summed_grad
            noised = clipped + noise.view(clipped.shape).to(clipped.device) if self.noise_multiplier else clipped
            parameter.grad = (noised if grid is None else noised.double() * grid).to(parameter.dtype)

    def _noise(self) -> Tensor:
        """Noise of all parameters, one behind the other."""
        protection, size = self.protection, sum(parameter.numel() for parameter in self.params)
        if not protection.noise_multiplier:
            return torch.empty(size)
        if protection.clip.grid is None:
            # PRIVACY: drawn with 53 bits unless the owner chose float32. test_noise_is_drawn_in_double_precision
            return protection.source.normal((size,), std=protection.std, kind=protection.kind)
        # PRIVACY: rounding to whole numbers lengthens a contribution, and the noise with it.
        # test_discrete_noise_covers_the_rounding
        sensitivity = whole_number_sensitivity(
            clip_norm=protection.clip.norm, grid=protection.clip.grid, num_parameters=size
        )
        return protection.source.discrete_normal((size,), std=protection.noise_multiplier * sensitivity)


class StackedNoisyOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """The same for one parameter [K, P], the weights of K sites: each row noised and divided as its site asks.

    The numbers of a row are those that NoisyOptimizer would have drawn for the site alone.
    """

    clipped_sums: Tensor
    """[K, P], set before each step"""

    def __init__(self, inner: torch.optim.Optimizer, *, protections: Sequence[Protection]) -> None:
        super().__init__(inner, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=1)
        self.protections = tuple(protections)
        (parameter,) = self.params
        self._denominators = torch.tensor(
            [each.denominator for each in protections], dtype=parameter.dtype, device=parameter.device
        )[:, None]
        self._come_divided = all(each.denominator == 1 for each in protections)
        self.active = len(protections)
        """so many sites, from the first on, have a step to make; the others' rows get no noise, and are not read"""

    def accumulate(self) -> None:
        """Takes over `clipped_sums`."""
        self.params[0].summed_grad = self.clipped_sums

    def add_noise(self) -> None:
        """Leaves the clipped sums with their noise in the parameter's `grad`."""
        (parameter,) = self.params
        sums, protections = parameter.summed_grad[: self.active], self.protections[: self.active]
        for kind in {each.kind for each in protections if each.noise_multiplier}:
            places = [place for place, each in enumerate(protections) if each.kind == kind and each.noise_multiplier]
            # a few rows at a time, which stay in the cache
            few = max(1, PIECE // sums.shape[1])
            numbers = torch.empty(few, sums.shape[1], dtype=torch.float32 if kind == "float32" else torch.float64)
            for start in range(0, len(places), few):
                some = places[start : start + few]
                chosen, rows = [protections[place] for place in some], numbers[: len(some)]
                # PRIVACY: each site's own noise, of its own scale. test_every_site_of_a_cohort_has_noise_of_its_own
                normal_rows([each.source for each in chosen], rows, stds=[each.std for each in chosen], kind=kind)
                # added in the noise's precision, then rounded once, as for one site
                for place, row in zip(some, rows.to(sums.device), strict=True):
                    sums[place].copy_(row.add_(sums[place]))
        parameter.grad = parameter.summed_grad

    def scale_grad(self) -> None:
        """Divides each row by its site's denominator."""
        # PRIVACY: public numbers. test_a_cohort_divides_by_each_sites_public_number
        if not self._come_divided:
            self.params[0].grad /= self._denominators
