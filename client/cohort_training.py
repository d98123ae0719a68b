"""Cohort training: one round at many sites in one pass; each gets what train_round would have given it alone.

in        a model, and for each site its Samples, its plan, its own random numbers; all rounds are in their ledgers
out       a TrainedRound for each, in order, with the random numbers that train_round would have drawn
relies on gradient/stacked.py for gradients, noisy_optimizer.py for noise; engines agree to rounding, not to the bit
"""

import copy
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from client.gradient.engine import only_trained
from client.gradient.layers import Rows
from client.gradient.stacked import Stacked, StackedClip, StackedSum, why_not_stacked
from client.noisy_optimizer import StackedNoisyOptimizer, inner_optimizer, protection_of
from client.plan import PrivacyPlan
from client.private_training import (
    PublicNumbers,
    TrainedRound,
    is_adaptive,
    keep_one,
    learning_rate,
    noisy_excess,
    public_numbers,
    unclipped_share,
)
from shared.batch import Batch, Samples
from shared.config import TrainingSettings
from shared.errors import PrivacyError
from shared.privacy.noise import RandomSource

NUMBERS_AT_ONCE = 1 << 19
"""weights and activations of a piece of a cohort: few enough for the processor's cache, enough to hide what a call
costs"""
MOST_SITES_AT_ONCE = 64


@dataclass(frozen=True)
class Member:
    """One site of a cohort, ready to train: its round is in its ledger."""

    samples: Samples
    plan: PrivacyPlan | None
    nominal_size: int
    noise: RandomSource
    """makes the noise and nothing else"""
    sampling: RandomSource
    """draws batches and hidden modalities"""


def why_apart(
    model: nn.Module, *, names: Sequence[str], training: TrainingSettings, plan: PrivacyPlan | None
) -> str | None:
    """Why a site cannot share a pass with others and is trained by itself; None where it can."""
    if plan is not None and plan.noise == "discrete":
        return "with whole-number noise each row is computed apart, so that nobody's rounding shows who else is there"
    if training.gradient_engine not in ("auto", "bookkeeping"):
        return f"gradient_engine {training.gradient_engine!r} is asked for"
    return why_not_stacked(model, names=names)


def train_cohort(
    model: nn.Module,
    members: Sequence[Member],
    *,
    names: tuple[str, ...],
    training: TrainingSettings,
    round_number: int,
    rounds: int,
    modality_dropout: float,
) -> list[TrainedRound]:
    """What `train_round` gives each member, in order, to rounding; the model comes back as it was.

    Sites are trained in pieces that fit the processor's cache, on as many threads as torch would use for one operation,
    each operation on one: torch lets go of Python's lock while it computes.

    Args:
        members: plans of one unit, one kind of clipping and as many records a unit; rates, norms, noise, sizes and
            steps may differ.
        names: parameters that are trained; all others stay.

    Raises:
        PrivacyError: the members cannot share a pass.
        ModelError: the model cannot be stacked (`why_apart`), or uses a weight from outside its layer.
    """
    _check(members)
    round_ = _Round(
        names=names,
        training=training,
        learning_rate=learning_rate(training, round_number=round_number, rounds=rounds),
        modality_dropout=modality_dropout,
    )
    public = [public_numbers(training, plan=each.plan, nominal_size=each.nominal_size) for each in members]
    # those with many steps first, so that a piece ends together
    order = sorted(range(len(members)), key=lambda number: -public[number].steps)
    pieces = _pieces(order, model=model, members=members, public=public, names=names)
    workers = min(len(pieces), torch.get_num_threads())
    results: list[TrainedRound | None] = [None] * len(members)
    with only_trained(model, names), _one_thread_an_operation(), _in_training(model):
        copies = [Stacked(each, names=names) for each in _copies(model, number=workers)]

        def train(number: int) -> None:
            for piece in pieces[number::workers]:
                chosen = [members[place] for place in piece], [public[place] for place in piece]
                trained = _Piece(round_, copies[number], *chosen).trained()
                for place, result in zip(piece, trained, strict=True):
                    results[place] = result

        if workers == 1:
            train(0)
        else:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(train, range(workers)))
    return [result for result in results if result is not None]


@dataclass(frozen=True)
class _Round:
    """What all sites of a cohort share."""

    names: tuple[str, ...]
    training: TrainingSettings
    learning_rate: float
    modality_dropout: float


class _Piece:
    """Some sites of a cohort, their weights [K, P] side by side; sites with more steps come first."""

    def __init__(
        self, round_: _Round, stacked: Stacked, members: Sequence[Member], public: Sequence[PublicNumbers]
    ) -> None:
        self.round, self.stacked, self.members, self.public = round_, stacked, members, public
        self.is_private = members[0].plan is not None
        parameters = dict(stacked.model.named_parameters())
        self.start = self.stacked.gathered({name: parameters[name].detach() for name in round_.names})
        self.data = _joined([member.samples for member in members])
        sizes = [len(member.samples) for member in members]
        self.first_rows = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        self.excess = [0.0] * len(members)

    def trained(self) -> list[TrainedRound]:
        """The round of every site."""
        for member in self.members:
            # train_round seeds torch's generator with the first number, for layers that draw: these draw nothing
            member.sampling.seed()
        weights = nn.Parameter(self.start.expand(len(self.members), -1).clone())
        optimizer = self._optimizer(weights)
        steps = [each.steps for each in self.public]
        final = weights.detach() if len(set(steps)) == 1 else torch.empty_like(weights, requires_grad=False)
        for step in range(steps[0]):
            # PRIVACY: as many steps as each site was charged. test_every_site_of_a_cohort_makes_its_own_steps
            active = sum(count > step for count in steps)
            self._step(weights, optimizer, active=active)
            if final.data_ptr() != weights.data_ptr():
                ended = [number for number, count in enumerate(steps) if count == step + 1]
                final[ended] = weights.detach()[ended]
        updates = final.sub_(self.start)
        views = self.stacked.views(updates)
        return [
            TrainedRound(
                {name: view[number] for name, view in views.items()},
                unclipped_share=unclipped_share(self.excess[number], public=public, plan=member.plan),
            )
            for number, (member, public) in enumerate(zip(self.members, self.public, strict=True))
        ]

    def _optimizer(self, weights: nn.Parameter) -> StackedNoisyOptimizer:
        training = self.round.training
        optimizer = StackedNoisyOptimizer(
            inner_optimizer([weights], training=training, learning_rate=self.round.learning_rate),
            protections=[
                # without a plan the sums come divided
                protection_of(
                    member.plan,
                    expected_batch_size=public.expected_batch_size if self.is_private else 1.0,
                    source=member.noise,
                )
                for member, public in zip(self.members, self.public, strict=True)
            ],
        )
        if training.proximal_mu:

            def pull(_: object) -> None:
                # PRIVACY: after the noise, and from public weights. test_proximal_term_comes_after_the_noise
                if weights.grad is not None:
                    weights.grad.add_(weights.detach() - self.start, alpha=training.proximal_mu)

            optimizer.attach_step_hook(pull)
        return optimizer

    def _step(self, weights: nn.Parameter, optimizer: StackedNoisyOptimizer, *, active: int) -> None:
        """One step of the first `active` sites."""
        drawn = [
            public.draw(member.samples, source=member.sampling)
            for member, public in zip(self.members[:active], self.public, strict=False)
        ]
        each = self.public[0].records_per_unit
        counts = torch.tensor([len(rows) // each for rows in drawn])
        found = self._sums(weights.detach()[:active], drawn, counts=counts)
        sums = found.sums
        if active < len(weights):
            sums = torch.cat([sums, sums.new_zeros(len(weights) - active, sums.shape[1])])
        optimizer.zero_grad(set_to_none=True)
        optimizer.clipped_sums, optimizer.active = sums, active
        optimizer.step()
        for number, member in enumerate(self.members[:active]):
            if member.plan is not None and is_adaptive(member.plan):
                self.excess[number] += noisy_excess(
                    float(found.unclipped[number]), units=int(counts[number]), plan=member.plan, noise=member.noise
                )

    def _sums(self, weights: Tensor, drawn: Sequence[Tensor], *, counts: Int[Tensor, "K"]) -> StackedSum:
        """Sums over what each site drew, clipped where there is a plan."""
        each, units = self.public[0].records_per_unit, int(counts.max())
        if not units:
            return StackedSum(torch.zeros_like(weights), torch.zeros(len(drawn), dtype=torch.float64))
        index, real = self._padded(drawn, counts=counts, units=units)
        batch = self.data.take(index)
        if self.round.modality_dropout:
            batch = self._with_hidden(batch, drawn, real=real)
        rows = Rows(len(drawn), units, each)
        if not self.is_private:
            sizes = [public.expected_batch_size for public in self.public[: len(drawn)]]
            denominators = torch.tensor(sizes, device=weights.device)[:, None]
            return self.stacked.plain_sums(weights, batch, rows=rows, real=real, denominators=denominators)
        plans = [member.plan for member in self.members[: len(drawn)] if member.plan is not None]
        norms = torch.tensor([plan.clip_norm for plan in plans], dtype=torch.float64, device=weights.device)
        clip = StackedClip(norms, per_layer=plans[0].clipping == "per-layer")
        return self.stacked.clipped_sums(weights, batch, rows=rows, real=real, clip=clip)

    def _padded(
        self, drawn: Sequence[Tensor], *, counts: Int[Tensor, "K"], units: int
    ) -> tuple[Int[Tensor, "N"], Bool[Tensor, "K U"]]:
        """Rows of `data`, as many for each site; and which units are there, the others being somebody's first row."""
        each = self.public[0].records_per_unit
        real = torch.arange(units) < counts[:, None]
        index = self.first_rows[: len(drawn), None].expand(-1, units * each).clone()
        index[real.repeat_interleave(each, dim=1)] += torch.cat(list(drawn))
        return index.flatten(), real

    def _with_hidden(self, batch: Batch, drawn: Sequence[Tensor], *, real: Tensor) -> Batch:
        """Modalities hidden as each site's own numbers say."""
        modalities = batch.present.shape[1]
        numbers = [
            member.sampling.uniform(len(rows) * modalities)
            for member, rows in zip(self.members[: len(drawn)], drawn, strict=True)
        ]
        draws = torch.ones(batch.present.shape, dtype=torch.float64)
        there = real.repeat_interleave(self.public[0].records_per_unit, dim=1).flatten()
        draws[there] = torch.cat(numbers).view(-1, modalities)
        kept = keep_one(batch.present, draws=draws, chance=self.round.modality_dropout)
        return Batch(inputs=batch.inputs, present=kept, targets=batch.targets)


def _check(members: Sequence[Member]) -> None:
    kinds = {
        (plan.unit, plan.clipping, plan.records_per_unit, plan.noise == "discrete") if plan is not None else None
        for plan in (member.plan for member in members)
    }
    if len(kinds) != 1:
        raise PrivacyError(f"members of {len(kinds)} kinds; allowed: one unit, clipping and number of records a unit")
    if any(member.plan is not None and member.plan.noise == "discrete" for member in members):
        raise PrivacyError("discrete noise in a cohort; allowed: sites with such noise one by one")


def _pieces(
    order: Sequence[int],
    *,
    model: nn.Module,
    members: Sequence[Member],
    public: Sequence[PublicNumbers],
    names: Sequence[str],
) -> list[list[int]]:
    """Members that are trained together, at most so many that their numbers fit the cache."""
    parameters = dict(model.named_parameters())
    num_weights = sum(parameters[name].numel() for name in names)
    pieces: list[list[int]] = []
    numbers = NUMBERS_AT_ONCE
    for place in order:
        row = sum(value[0].numel() for value in members[place].samples.inputs.values() if len(value))
        cost = num_weights + int(public[place].expected_batch_size * public[place].records_per_unit + 1) * row
        if not pieces or numbers + cost > NUMBERS_AT_ONCE or len(pieces[-1]) == MOST_SITES_AT_ONCE:
            pieces.append([])
            numbers = 0
        pieces[-1].append(place)
        numbers += cost
    return pieces


def _joined(samples: Sequence[Samples]) -> Batch:
    """All rows of some sites, one site after another."""
    return Batch(
        inputs={name: torch.cat([each.inputs[name] for each in samples]) for name in samples[0].inputs},
        present=torch.cat([each.present for each in samples]),
        targets=torch.cat([each.targets for each in samples]),
    )


_COPIES: "weakref.WeakKeyDictionary[nn.Module, list[nn.Module]]" = weakref.WeakKeyDictionary()


def _copies(model: nn.Module, *, number: int) -> list[nn.Module]:
    """The model for each thread: layers of its own, which a pass replaces, on the same weights."""
    copies = _COPIES.setdefault(model, [])
    while len(copies) < number:
        shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
        copies.append(copy.deepcopy(model, shared))
    return copies[:number]


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Training mode while it lasts, in the copies too."""
    everything = [model, *_COPIES.get(model, [])]
    modes = {module: module.training for each in everything for module in each.modules()}
    for each in everything:
        each.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
