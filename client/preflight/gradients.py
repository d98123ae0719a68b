"""Gradients: each unit's is its own, what it adds is bounded, and nobody else's row moves it.

in        a Rehearsal
out       Outcomes of own-gradient, bounded and independent
relies on torch's autograd on one row at a time, which nothing of the product has part in
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from client import private_training
from client.gradient.engine import only_trained, sample_losses
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import Rehearsal, copies, flat
from shared.batch import Batch
from shared.privacy import mechanism
from shared.privacy.mechanism import GRIDS_PER_NORM, Clip, whole_number_sensitivity

NUM_UNITS = 3
TOLERANCE = 1e-3
"""relative; float32 gradients of one model by two ways differ by 1e-6 to 1e-4"""
ROUNDING = 1e-4
"""relative; what float32 may add to a sum of a few clipped gradients, far below what any fault does"""


def own_gradient(rehearsal: Rehearsal) -> Outcome:
    """Alone and among others, what the engine takes for a unit's gradient is that of a backward pass of its own."""
    worst, clip = 0.0, Clip(math.inf)
    for rows_per_unit in _rows_per_unit(rehearsal):
        batch = _batch(rehearsal, rows_per_unit=rows_per_unit)
        own = _own_gradients(rehearsal, batch, rows_per_unit=rows_per_unit)
        alone = _alone(rehearsal, batch, clip=clip, rows_per_unit=rows_per_unit)
        among = _among(rehearsal, batch, clip=clip, rows_per_unit=rows_per_unit)
        norms = own.norm(dim=1)
        worst = max(worst, _largest((alone - own).norm(dim=1) / (norms + TOLERANCE * norms.max()).clamp(min=1e-30)))
        # a difference of two sums is as exact as the largest gradient in them
        worst = max(worst, _largest((among - own).norm(dim=1) / norms.max().clamp(min=1e-30)))
    return Outcome(
        worst <= TOLERANCE,
        f"largest relative difference from a backward pass of the unit's own {worst:.1e}, allowed {TOLERANCE:g}",
    )


def bounded(rehearsal: Rehearsal) -> Outcome:
    """No unit moves the clipped sum, nor a whole round, by more than the clip norm, however it is clipped."""
    worst = max(*_made_up_gradients(rehearsal), *_engine_bounds(rehearsal), *_round_bounds(rehearsal))
    return Outcome(
        worst <= 1 + ROUNDING,
        f"one unit moved a sum by at most {worst:.4g} of what is allowed (clipping {_clipping(rehearsal)}; made-up "
        "gradients of 0 to 3 dimensions, the run's engine, and whole rounds)",
    )


def independent(rehearsal: Rehearsal) -> Outcome:
    """No sample's loss or gradient moves when another sample is exchanged or taken away."""
    samples, kept = rehearsal.samples, NUM_UNITS - 1
    batches = [[*range(kept), kept], [*range(kept), len(samples) - 1], [*range(kept)]]
    losses, gradients = zip(
        *(_losses_and_gradients(rehearsal, samples.take(torch.tensor(rows)), num=kept) for rows in batches), strict=True
    )
    moved = 0.0
    for measured in (losses, gradients):
        scale = float(torch.stack(measured).abs().max().clamp(min=1e-30))
        moved = max(moved, *(_largest((other - measured[0]).abs().flatten()) / scale for other in measured[1:]))
    return Outcome(
        moved <= ROUNDING,
        f"a sample's loss and gradient moved by {moved:.1e} of their size when another was exchanged, "
        f"allowed {ROUNDING:g}",
    )


def _clipping(rehearsal: Rehearsal) -> str:
    privacy = rehearsal.run.local_privacy
    return privacy.clipping if privacy is not None else "flat"


def _rows_per_unit(rehearsal: Rehearsal) -> tuple[int, ...]:
    """One row a unit, and several: the run's own number, or two where it has one, to see that they count as one."""
    return 1, max(2, rehearsal.rows_per_unit)


def _batch(rehearsal: Rehearsal, *, rows_per_unit: int) -> Batch:
    num = len(rehearsal.samples)
    # a stride that mixes whole rows with those that lack a modality
    rows = [(3 * row) % num for row in range(NUM_UNITS * rows_per_unit)]
    return rehearsal.samples.take(torch.tensor(rows))


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    chosen = torch.tensor(rows, dtype=torch.int64)
    return Batch(
        inputs={name: values[chosen] for name, values in batch.inputs.items()},
        present=batch.present[chosen],
        targets=batch.targets[chosen],
    )


def _own_gradients(rehearsal: Rehearsal, batch: Batch, *, rows_per_unit: int) -> Float[Tensor, "U P"]:
    """Mean gradient of each unit's rows, each row by itself in a batch of one."""
    of_rows = [_losses_and_gradients(rehearsal, _rows(batch, [row]), num=1)[1][0] for row in range(len(batch))]
    return torch.stack(of_rows).reshape(len(of_rows) // rows_per_unit, rows_per_unit, -1).mean(dim=1)


def _losses_and_gradients(
    rehearsal: Rehearsal, batch: Batch, *, num: int
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N P"]]:
    """Loss and gradient of the first `num` samples, all of them in one forward pass."""
    weights = [rehearsal.model.get_parameter(name) for name in rehearsal.names]
    with only_trained(rehearsal.model, rehearsal.names):
        losses = sample_losses(rehearsal.model, batch)[:num]
        gradients = [
            torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in losses
        ]
    flats = [flat(dict(zip(rehearsal.names, gradient, strict=True))) for gradient in gradients]
    return losses.detach().double(), torch.stack(flats)


def _alone(rehearsal: Rehearsal, batch: Batch, *, clip: Clip, rows_per_unit: int) -> Float[Tensor, "U P"]:
    """What each unit gives to the engine's sum by itself."""
    units = _units(batch, rows_per_unit=rows_per_unit)
    return torch.stack([_sum_of(rehearsal, batch, [unit], clip=clip) for unit in units])


def _among(rehearsal: Rehearsal, batch: Batch, *, clip: Clip, rows_per_unit: int) -> Float[Tensor, "U P"]:
    """What each unit gives to the engine's sum among others: the difference that its absence makes."""
    units = _units(batch, rows_per_unit=rows_per_unit)
    whole = _sum_of(rehearsal, batch, units, clip=clip)
    fewer = [[other for other in units if other is not unit] for unit in units]
    return torch.stack([whole - _sum_of(rehearsal, batch, others, clip=clip) for others in fewer])


def _units(batch: Batch, *, rows_per_unit: int) -> list[list[int]]:
    return [list(range(start, start + rows_per_unit)) for start in range(0, len(batch), rows_per_unit)]


def _sum_of(rehearsal: Rehearsal, batch: Batch, units: list[list[int]], *, clip: Clip) -> Float[Tensor, "P"]:
    rows = [row for unit in units for row in unit]
    result = rehearsal.engine.clipped_sum(
        rehearsal.model, _rows(batch, rows), names=rehearsal.names, clip=clip, rows_per_unit=len(units[0])
    )
    return flat({name: result.sums[name] for name in rehearsal.names})


def _largest(values: Tensor) -> float:
    """The largest of them; infinity if one is not a number."""
    return float(values.nan_to_num(nan=math.inf).max())


def _made_up_gradients(rehearsal: Rehearsal) -> Iterator[float]:
    """What clipping leaves of gradients of every size and shape, over the clip norm."""
    draws = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"a.scale": (), "a.bias": (3,), "b.weight": (3, 4), "c.filter": (2, 3, 2)}
    for size in (1e-3, 1.0, 1e4, 1e20, math.inf, math.nan):
        gradients = {name: size * torch.randn(1, *shape, generator=draws) for name, shape in shapes.items()}
        # much of the norm in the one number without a dimension
        gradients["a.scale"] *= 10
        result = mechanism.clipped_sum(gradients, clip=Clip(0.7, per_layer=_clipping(rehearsal) == "per-layer"))
        yield _largest(flat(result.sums).norm()) / 0.7


def _engine_bounds(rehearsal: Rehearsal) -> Iterator[float]:
    """What a unit gives to the engine's sum over what it may: at the run's clip norm, and where all have to be clipped.

    Rounding to whole numbers, which an owner may choose, is tried as well, against its own bound and by the engine that
    would train with it.
    """
    per_layer = _clipping(rehearsal) == "per-layer"
    privacy, small = rehearsal.run.local_privacy, 1.0
    for rows_per_unit in _rows_per_unit(rehearsal):
        batch = _batch(rehearsal, rows_per_unit=rows_per_unit)
        norms = _own_gradients(rehearsal, batch, rows_per_unit=rows_per_unit).norm(dim=1)
        small = float(norms[norms > 0].min()) / 10 if bool((norms > 0).any()) else 1.0
        among = _among(rehearsal, batch, clip=Clip(small, per_layer=per_layer), rows_per_unit=rows_per_unit)
        yield _largest(among.norm(dim=1)) / small
    single, norm = _batch(rehearsal, rows_per_unit=1), privacy.clip_norm if privacy is not None else small
    among = _among(rehearsal, single, clip=Clip(norm, per_layer=per_layer), rows_per_unit=1)
    yield _largest(among.norm(dim=1)) / norm
    grid = small / GRIDS_PER_NORM
    # not the run's engine: whichever that is, train_round computes whole numbers with one of its own
    whole_numbers = replace(rehearsal.plan(), noise="discrete")
    engine = private_training.engine_of(rehearsal.model, training=rehearsal.run.training, plan=whole_numbers)
    rounded = replace(rehearsal, engine=engine)
    among = _among(rounded, single, clip=Clip(small, per_layer=per_layer, grid=grid), rows_per_unit=1)
    allowed = whole_number_sensitivity(clip_norm=small, grid=grid, num_parameters=rehearsal.num_weights)
    yield _largest(among.norm(dim=1)) / allowed


def _round_bounds(rehearsal: Rehearsal) -> Iterator[float]:
    """How far one unit, with all its rows, moves a whole round without noise, over clip norm by denominator."""
    plan = rehearsal.plan(noise_multiplier=0.0)
    # where subjects are protected, each has another number of rows, all alike: then it does not matter which are drawn
    times = (3, 1, 2) if plan.unit == "subject" else (1, 1, 1)
    together = flat(rehearsal.train(copies(rehearsal.samples, times=times), plan=plan, noise_seed=0).update)
    for left_out in range(len(times)):
        fewer = tuple(0 if unit == left_out else count for unit, count in enumerate(times))
        without = flat(rehearsal.train(copies(rehearsal.samples, times=fewer), plan=plan, noise_seed=0).update)
        yield _largest((together - without).norm()) / rehearsal.step_size / plan.clip_norm
