"""Private training: one round at one site, from the model as it came to the change that may leave.

in        a model, the site's Samples, a PrivacyPlan whose round is in the ledger already
out       TrainedRound: parameter -> change, and with adaptive clipping a noisy share; update.py sends both
relies on clipped gradients (gradient/), Poisson batches (sampling.py), scaling by Opacus' optimizer
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from client.gradient import GradientEngine, choose_engine
from client.gradient.engine import rows_of
from client.gradient.plain import PlainEngine
from client.gradient.reference import ReferenceEngine
from client.noisy_optimizer import NoisyOptimizer, clip_of, inner_optimizer, protection_of
from client.plan import PrivacyPlan
from client.sampling import draw_rows
from shared.batch import Batch, Samples
from shared.config import TrainingSettings, Unit
from shared.model.sample_draws import draws_keys, with_keys
from shared.privacy.mechanism import ClippedSum, split_noise
from shared.privacy.noise import RandomSource

BYTES_AT_ONCE = 1 << 28
"""most values of a step that are copied together, whatever was drawn; one unit's, if they are more"""


@dataclass(frozen=True)
class TrainedRound:
    """What one round of training gives; with a plan, all of it may leave the site."""

    update: dict[str, Tensor]
    """parameter -> change"""
    unclipped_share: float | None
    """adaptive clipping: noisy share of contributions that were within the clip norm; may lie outside 0 to 1"""


def train_round(
    model: nn.Module,
    samples: Samples,
    *,
    names: tuple[str, ...],
    training: TrainingSettings,
    plan: PrivacyPlan | None,
    nominal_size: int,
    round_number: int,
    rounds: int,
    modality_dropout: float,
    noise: RandomSource,
    sampling: RandomSource,
) -> TrainedRound:
    """Change of the named parameters after one round of local steps; the model itself comes back as it was given.

    Promise: with a plan, the result is a function of `plan.steps_per_round` clipped, noised sums (and, with adaptive
    clipping, as many noised counts) over Poisson samples of the plan's units, and of nothing else private. Without a
    plan it is ordinary training on the same kind of batches of records.
    Void if: the ledger was not charged before, or `noise` and `sampling` can be guessed (noise.secret_source).

    Args:
        names: parameters that are trained; all others stay and get no gradient.
        nominal_size: public number of units; read without a plan only.
        round_number: from 1 to `rounds`; only the learning rate depends on it.
        modality_dropout: chance that a step hides a present modality of a sample; one is always left.
        noise: makes the noise and nothing else.
        sampling: draws batches, hidden modalities and dropout.
    """
    trained = {name: model.get_parameter(name) for name in names}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    public = public_numbers(training, plan=plan, nominal_size=nominal_size)
    engine, clip, excess = engine_of(model, training=training, plan=plan), clip_of(plan), 0.0
    keyed, step_size = draws_keys(model), learning_rate(training, round_number=round_number, rounds=rounds)
    with _as_given(model, trained, start), _own_randomness(sampling, next(iter(trained.values())).device):
        optimizer = NoisyOptimizer(
            inner_optimizer(list(trained.values()), training=training, learning_rate=step_size),
            protection=protection_of(plan, expected_batch_size=public.expected_batch_size, source=noise),
        )
        if training.proximal_mu:
            # PRIVACY: the pull starts from public weights and is added after the noise, so a unit's share of the
            # sum is still at most clip_norm. test_proximal_term_comes_after_the_noise
            optimizer.attach_step_hook(_pull(trained, start, mu=training.proximal_mu))
        # PRIVACY: as many steps as were charged, whatever was drawn. test_empty_batches_are_noised_and_counted
        for _ in range(public.steps):
            rows, drawn = _drawn(samples, public=public, hidden=modality_dropout, keyed=keyed, source=sampling)
            at_once = max(1, len(rows)) if plan is None else _rows_at_once(samples, rows_per_unit=public.rows_per_unit)
            clipped = _sum_of_pieces(
                partial(engine.clipped_sum, model, names=names, clip=clip, rows_per_unit=public.rows_per_unit),
                _pieces(samples, rows=rows, drawn=drawn, at_once=at_once),
            )
            optimizer.zero_grad()
            optimizer.clipped_sums = [clipped.sums[name] for name in names]
            optimizer.step()
            if plan is not None and is_adaptive(plan):
                units = len(rows) // public.rows_per_unit
                excess += noisy_excess(clipped.unclipped, units=units, plan=plan, noise=noise)
        update = {name: parameter.detach() - start[name] for name, parameter in trained.items()}
    return TrainedRound(update, unclipped_share=unclipped_share(excess, public=public, plan=plan))


def _drawn(
    samples: Samples, *, public: "PublicNumbers", hidden: float, keyed: bool, source: RandomSource
) -> tuple[Int[Tensor, "B"], Batch]:
    """The rows of one step, and all of their batch but the values: which modalities they hide, keys of their draws."""
    rows = public.draw(samples, source=source)
    batch = Batch(inputs={}, present=samples.present[rows], targets=samples.targets[rows])
    if hidden:
        batch = hide_modalities(batch, chance=hidden, source=source)
    return rows, with_keys(batch, source=source) if keyed else batch


def _rows_at_once(samples: Samples, *, rows_per_unit: int) -> int:
    """How many rows' values are taken from the samples together, in whole units; the shape of a row alone decides."""
    of_row = sum(prod(values.shape[1:]) * values.element_size() for values in samples.inputs.values())
    return rows_per_unit * max(1, BYTES_AT_ONCE // max(1, of_row * rows_per_unit))


def _pieces(samples: Samples, *, rows: Int[Tensor, "B"], drawn: Batch, at_once: int) -> Iterator[Batch]:
    """A step's batch in pieces of so many rows; an empty one is one piece."""
    # PRIVACY: 64 copies of every row drawn, all at once, could end a site's process for want of memory at one record
    # more and not at one less. test_values_are_taken_piece_by_piece_however_many_copies_were_drawn
    for start in range(0, max(1, len(rows)), at_once):
        some, piece = rows[start : start + at_once], rows_of(drawn, start=start, stop=start + at_once)
        # by `take`, where preflight watches who enters a step
        yield Batch(inputs={**samples.take(some).inputs, **piece.inputs}, present=piece.present, targets=piece.targets)


def _sum_of_pieces(summed: Callable[[Batch], ClippedSum], pieces: Iterator[Batch]) -> ClippedSum:
    total = summed(next(pieces))
    for piece in pieces:
        total.add(summed(piece))
    return total


def learning_rate(training: TrainingSettings, *, round_number: int, rounds: int) -> float:
    """Step size of a round: rises evenly over the warm-up, then falls by the schedule, and is never zero."""
    warmup = training.warmup_rounds
    if round_number <= warmup:
        return training.learning_rate * round_number / (warmup + 1)
    progress = (round_number - warmup - 1) / max(1, rounds - warmup)
    share = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return training.learning_rate * share[training.schedule]


def hide_modalities(batch: Batch, *, chance: float, source: RandomSource) -> Batch:
    """The batch with present modalities hidden at random, sample by sample; a sample keeps at least one it had.

    Each sample's fate is drawn apart from the others', so its unit still has one gradient, clipped like any other.
    """
    draws = source.uniform(batch.present.numel()).view_as(batch.present).to(batch.present.device)
    kept = keep_one(batch.present, draws=draws, chance=chance)
    return Batch(inputs=batch.inputs, present=kept, targets=batch.targets)


def keep_one(present: Bool[Tensor, "B M"], *, draws: Float64[Tensor, "B M"], chance: float) -> Bool[Tensor, "B M"]:
    """Which modalities stay: those whose number is at least `chance`, or else the present one with the largest."""
    kept = present & (draws >= chance)
    luckiest = torch.where(present, draws, -1.0).argmax(dim=1, keepdim=True)
    rescued = torch.zeros_like(kept).scatter(1, luckiest, value=True)
    return torch.where(kept.any(dim=1, keepdim=True), kept, rescued & present)


def is_adaptive(plan: PrivacyPlan | None) -> bool:
    """Whether the clip norm follows a noisy count from round to round."""
    return plan is not None and plan.clipping == "adaptive"


def unclipped_share(excess: float, *, public: "PublicNumbers", plan: PrivacyPlan | None) -> float | None:
    """What a round's noisy counts say of the share that was within the norm; None where nothing was counted."""
    return 0.5 + excess / (public.steps * public.expected_batch_size) if is_adaptive(plan) else None


def noisy_excess(unclipped: float, *, units: int, plan: PrivacyPlan, noise: RandomSource) -> float:
    """Noisy sum over a step's units of 1/2 for each that was within the clip norm and -1/2 for each that was not.

    Source: Andrew et al. 2021, arXiv:1905.03871, section 2.2, with the half subtracted so that a unit moves it by 1/2.
    """
    twice = 2 * unclipped - units
    # PRIVACY: what the count costs, the sum's noise has been raised for. test_the_count_has_the_promised_noise
    _, std = split_noise(plan.noise_multiplier)
    if plan.noise == "discrete":
        return (twice + int(noise.discrete_normal((), std=2 * std))) / 2
    return twice / 2 + float(noise.normal((), std=std))


@dataclass(frozen=True)
class PublicNumbers:
    """What a step draws, how many steps there are, and what their sums are divided by."""

    unit: Unit
    records_per_unit: int
    sample_rate: float
    expected_batch_size: float
    steps: int
    copies: int = 1
    """of each record drawn, each augmented by itself"""

    @property
    def rows_per_unit(self) -> int:
        """Rows of a batch whose gradients are averaged before they are clipped."""
        return self.records_per_unit * self.copies

    def draw(self, samples: Samples, *, source: RandomSource) -> Tensor:
        """Rows of one step, copies of a record one after the other."""
        rows = draw_rows(
            samples,
            unit=self.unit,
            sample_rate=self.sample_rate,
            records_per_unit=self.records_per_unit,
            source=source,
        )
        # PRIVACY: a record with all its copies is one unit, of which one gradient is clipped.
        # test_a_record_with_all_its_copies_moves_the_sum_by_at_most_the_clip_norm,
        # test_copies_of_a_record_stand_together_and_are_as_many_as_asked
        return rows.repeat_interleave(self.copies) if self.copies > 1 else rows


def public_numbers(training: TrainingSettings, *, plan: PrivacyPlan | None, nominal_size: int) -> PublicNumbers:
    """The public numbers of a round: the plan's, or without one those of ordinary training on batches of records."""
    copies = training.augment_multiplicity
    if plan is None:
        rate = training.sampling(nominal_size)
        return PublicNumbers("record", 1, rate, rate * nominal_size, training.steps(nominal_size), copies)
    return PublicNumbers(
        plan.unit, plan.records_per_unit, plan.sample_rate, plan.expected_batch_size, plan.steps_per_round, copies
    )


def engine_of(model: nn.Module, *, training: TrainingSettings, plan: PrivacyPlan | None) -> GradientEngine:
    """What computes the gradients of a round: the run's engine, but for noise on whole numbers, whose owner decides."""
    if plan is None:
        return PlainEngine()
    if plan.noise == "discrete":
        # PRIVACY: computed in one batch, the last bits of a unit's gradient depend on who else is in it, and rounding
        # to whole numbers shows them. test_with_whole_numbers_nobody_moves_anothers_contribution
        return ReferenceEngine()
    return choose_engine(training.gradient_engine, model, microbatch_size=training.microbatch_size)


def _pull(trained: dict[str, nn.Parameter], start: dict[str, Tensor], *, mu: float) -> Callable[[object], None]:
    """Opacus' hook between noise and step that adds the gradient of FedProx' term: mu times the way from the start."""

    def hook(_: object) -> None:
        for name, parameter in trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start[name], alpha=mu)

    return hook


@contextmanager
def _as_given(model: nn.Module, trained: dict[str, nn.Parameter], start: dict[str, Tensor]) -> Iterator[None]:
    """Training mode while it lasts; mode, weights and gradients as before after it, whatever happened."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(start[name])
                parameter.grad = None
                parameter.__dict__.pop("summed_grad", None)


@contextmanager
def _own_randomness(source: RandomSource, device: torch.device) -> Iterator[None]:
    """Dropout inside draws from a generator that `source` seeds; torch's global generator is left as it was.

    Whatever dropout drops, each unit has one gradient, clipped, and the noise is not drawn from there. What rests on it
    is less: a mask goes by a unit's place in the batch, so that masks must not be known for one unit more or less to
    leave the others' distribution alone. torch keeps 32 bits of the seed, drawn anew each round, for that.
    """
    seed = source.seed()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which keeps a stack trace for every kind of device it has not started yet.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
