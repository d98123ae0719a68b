"""Mechanism: what one unit can add to a sum is bounded, so that noise of a known scale can hide it.

in        per-unit gradients, one tensor [B, ...] for each parameter; or the whole update of a site
out       the sum of what was clipped, to which client/private_training.py or server/central.py adds the noise
relies on each row being the gradient of one unit alone (client/gradient/)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shared.config import PrivacySettings

PIECE = 4096
SMALLEST_FACTOR = 1e-30
GRIDS_PER_NORM = 2**20
"""noise on whole numbers: how many grid widths a clip norm has; the factor is a power of two, so nothing is rounded"""
COUNT_RATIO = 5.0
"""adaptive clipping: noise of the count, over its sensitivity of 1/2, in units of the whole mechanism's noise"""


@dataclass(frozen=True)
class Clip:
    """How one unit's contribution is bounded: its L2 norm over all parameters is at most `norm`, however it is done."""

    norm: float
    """above 0; infinity leaves every finite contribution as it is"""
    per_layer: bool = False
    """each of L layers to norm / sqrt(L), so that the whole is at most norm"""
    grid: float | None = None
    """width of the grid that clipped contributions are rounded to, for noise on whole numbers; None: no rounding"""


@dataclass
class ClippedSum:
    """Clipped contributions, added up."""

    sums: dict[str, Tensor]
    """parameter -> sum; with a grid, int64 numbers of grid widths"""
    unclipped: float
    """how many units were within the norm already"""

    def add(self, more: "ClippedSum") -> None:
        """Adds the sum over other units, in place."""
        for name, total in self.sums.items():
            total.add_(more.sums[name])
        self.unclipped += more.unclipped


def sum_of_none(parameters: Mapping[str, Tensor], *, clip: Clip) -> ClippedSum:
    """The sum over no units: exact zeros, of the shapes and places of the parameters."""
    dtype = None if clip.grid is None else torch.int64
    zeros = {name: torch.zeros_like(value, dtype=dtype, requires_grad=False) for name, value in parameters.items()}
    return ClippedSum(sums=zeros, unclipped=0.0)


def sample_norms(gradients: Mapping[str, Tensor]) -> Float[Tensor, "B"]:
    """L2 norm of each sample's gradient over all parameters jointly, 0-d ones included; not finite where it is not.

    Ours differs from a plain float32 norm, which came out 0.04 % too small for ten million numbers: pieces of 4096
    are normed in float32 and put together in float64, 20 times as fast as float64 throughout.
    """
    pieces = []
    for gradient in gradients.values():
        flat = gradient.reshape(len(gradient), -1)
        even = flat.shape[1] - flat.shape[1] % PIECE
        blocks = flat[:, :even].reshape(len(flat), even // PIECE, PIECE)
        pieces.append(torch.linalg.vector_norm(blocks, dim=2).double())
        pieces.append(torch.linalg.vector_norm(flat[:, even:], dim=1, keepdim=True).double())
    norms: Tensor = torch.linalg.vector_norm(torch.cat(pieces, dim=1), dim=1)
    return norms


def clip_factors(norms: Float[Tensor, "*B"], *, clip_norm: float | Tensor) -> Float[Tensor, "*B"]:
    """What to multiply each sample's gradient with, in [0, 1]: at most `clip_norm` remains, nothing of a broken one.

    Args:
        norms: of any shape.
        clip_norm: one for all, or a tensor that broadcasts to the shape of the norms.
    """
    # PRIVACY: at most clip_norm of a sample remains. test_one_unit_moves_the_sum_by_at_most_the_clip_norm
    factors = (clip_norm / norms.clamp(min=1e-30)).clamp(max=1.0)
    # PRIVACY: NaN passes every comparison, so it is named here; and a factor near the end of float32's range would be
    # rounded, perhaps up. test_a_broken_gradient_contributes_exactly_zero
    return torch.where(norms.isfinite() & (factors > SMALLEST_FACTOR), factors, 0.0)


def clipped_sum(gradients: Mapping[str, Tensor], *, clip: Clip) -> ClippedSum:
    """Sum over the units of their gradients, each clipped.

    A unit whose norm is NaN, infinite or 1e30 clip norms long contributes exactly zero. For no units see `sum_of_none`.

    Args:
        gradients: parameter -> [B, *shape], B at least 1.
        clip: how.

    Source: per layer: McMahan et al. 2018, arXiv:1710.06963, section 2.3.
    """
    norms = sample_norms(gradients)
    finite = norms.isfinite()
    factors, within = _factors(gradients, norms=norms, clip=clip)
    rows = {name: gradient.reshape(len(norms), -1) for name, gradient in gradients.items()}
    if not finite.all():
        # PRIVACY: zero times NaN is NaN, so its row is emptied. test_a_broken_gradient_contributes_exactly_zero
        rows = {name: torch.where(finite[:, None], row, 0.0) for name, row in rows.items()}
    if clip.grid is None:
        sums = {name: factors[name].to(row.dtype) @ row for name, row in rows.items()}
    else:
        sums = _sum_of_whole_numbers(rows, factors=factors, norm=clip.norm, grid=clip.grid)
    shaped = {name: sums[name].reshape(gradient.shape[1:]) for name, gradient in gradients.items()}
    return ClippedSum(sums=shaped, unclipped=float(within.sum()))


def whole_number_sensitivity(*, clip_norm: float, grid: float, num_parameters: int) -> float:
    """Largest L2 norm, in grid widths, of a clipped contribution after rounding to the nearest whole numbers.

    Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, section 4.2, for the worst rounding.
    """
    return clip_norm / grid + math.sqrt(num_parameters) / 2


def clip_update(update: Mapping[str, Tensor], *, clip_norm: float, per_layer: bool) -> tuple[dict[str, Tensor], bool]:
    """A whole update clipped as one unit, and whether it was within the norm; one that is not finite becomes zeros."""
    alone = {name: value[None] for name, value in update.items()}
    clipped, within = clip_updates(alone, clip_norm=clip_norm, per_layer=per_layer)
    return {name: value[0] for name, value in clipped.items()}, bool(within[0])


def clip_updates(
    updates: Mapping[str, Tensor], *, clip_norm: float, per_layer: bool, in_place: bool = False
) -> tuple[dict[str, Tensor], Bool[Tensor, "K"]]:
    """Whole updates of K sites, [K, ...] a parameter, clipped as `clip_update` clips one; `in_place`, those given."""
    norms = sample_norms(updates)
    factors, within = _factors(updates, norms=norms, clip=Clip(clip_norm, per_layer=per_layer))
    clipped, broken = {}, ~norms.isfinite()
    for name, given in updates.items():
        value = given if in_place else given.clone()
        if bool(broken.any()):
            # PRIVACY: zero times NaN is NaN, so a broken update is emptied. test_an_update_is_clipped_as_one_unit
            value[broken] = 0.0
        clipped[name] = value.mul_(factors[name].to(value.dtype).reshape(-1, *[1] * (value.dim() - 1)))
    return clipped, within


def layers_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parameters by the module they lie in: weight and bias of a layer belong together."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return {layer: tuple(members) for layer, members in layers.items()}


def split_noise(noise_multiplier: float) -> tuple[float, float]:
    """Noise multiplier of the sum and standard deviation of the count that together cost what one sum would.

    A unit moves the sum by 1 (in clip norms) and the count of (is it within the norm, minus a half) by 1/2.

    Source: Andrew et al. 2021, arXiv:1905.03871, theorem 1, solved for the two.
    """
    if not noise_multiplier:
        return 0.0, 0.0
    of_count = COUNT_RATIO * noise_multiplier
    return (noise_multiplier**-2 - of_count**-2) ** -0.5, of_count / 2


def next_clip_norm(clip_norm: float, *, unclipped_share: float, settings: PrivacySettings) -> float:
    """The clip norm of the next round, which moves towards the quantile that is asked for; within what is allowed.

    Source: Andrew et al. 2021, arXiv:1905.03871, section 2.1, the geometric update.
    """
    share = min(1.0, max(0.0, unclipped_share))
    moved = clip_norm * math.exp(-settings.quantile_rate * (share - settings.target_quantile))
    return min(1e6, max(1e-6, moved))


def _factors(
    gradients: Mapping[str, Tensor], *, norms: Float[Tensor, "B"], clip: Clip
) -> tuple[dict[str, Tensor], Bool[Tensor, "B"]]:
    """What each unit's part of each parameter is multiplied with, and whether nothing of the unit is shortened."""
    if not clip.per_layer:
        joint = clip_factors(norms, clip_norm=clip.norm)
        return dict.fromkeys(gradients, joint), norms <= clip.norm
    layers = layers_of(tuple(gradients))
    # PRIVACY: L layers of this norm have the clip norm together.
    # test_each_layer_has_its_share_of_the_norm_and_0d_weights_too
    share = clip.norm / math.sqrt(len(layers))
    factors, within = {}, torch.ones_like(norms, dtype=torch.bool)
    for names in layers.values():
        layer_norms = sample_norms({name: gradients[name] for name in names})
        within &= layer_norms <= share
        factors.update(dict.fromkeys(names, clip_factors(layer_norms, clip_norm=share)))
    return factors, within


def _sum_of_whole_numbers(
    rows: Mapping[str, Tensor], *, factors: Mapping[str, Tensor], norm: float, grid: float
) -> dict[str, Tensor]:
    """Clipped rows [B, n] in grid widths, each rounded to whole numbers, added up in int64."""
    num_parameters = sum(row.shape[1] for row in rows.values())
    bound = whole_number_sensitivity(clip_norm=norm, grid=grid, num_parameters=num_parameters)
    scales = {name: (factor / grid).to(rows[name].dtype)[:, None] for name, factor in factors.items()}
    total = {name: row.new_zeros(row.shape[1], dtype=torch.int64) for name, row in rows.items()}
    # Float32 adds whole numbers exactly below 2^24: a few units at a time, which also stay in the cache.
    few = max(1, int(2**24 / bound))
    for start in range(0, len(next(iter(rows.values()))), few):
        some = slice(start, start + few)
        whole = {name: (row[some] * scales[name][some]).round_() for name, row in rows.items()}
        lengths = [torch.linalg.vector_norm(row, dim=1, dtype=torch.float64) for row in whole.values()]
        # PRIVACY: whole numbers are added without any rounding, and a contribution that passes the bound is left out.
        # test_whole_number_contributions_keep_their_bound
        kept = torch.linalg.vector_norm(torch.stack(lengths), dim=0) <= bound
        for name, row in whole.items():
            total[name] += (row if kept.all() else torch.where(kept[:, None], row, 0.0)).sum(dim=0).to(torch.int64)
    return total
