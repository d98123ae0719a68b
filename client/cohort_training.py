"""Cohort training: one round at many sites in one pass; each gets what train_round would have given it alone.

in        a model, and for each site its Samples, its plan, its own random numbers; all rounds are in their ledgers
out       a TrainedRound for each, in order, with the random numbers that train_round would have drawn
relies on gradient/stacked.py for gradients, noisy_optimizer.py for noise; engines agree to rounding, not to the bit
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.arithmetic import PLAIN, Arithmetic
from client.cohort_draws import CohortDraws, Drawn, without_draws
from client.gradient.engine import only_trained
from client.gradient.layers import Rows
from client.gradient.stacked import Stacked, StackedClip, gathered, why_not_stacked
from client.noisy_optimizer import StackedNoisyOptimizer, inner_optimizer, protection_of
from client.plan import PrivacyPlan
from client.private_training import (
    PublicNumbers,
    TrainedRound,
    is_adaptive,
    learning_rate,
    noisy_excess,
    public_numbers,
    unclipped_share,
)
from shared.batch import Samples
from shared.config import TrainingSettings
from shared.errors import PrivacyError
from shared.model.sample_draws import draws_keys
from shared.privacy.noise import RandomSource

NUMBERS_AT_ONCE = 1 << 22
"""weights and activations of a piece of a cohort: few enough for the processor's cache, enough to hide what a call
costs"""
WORTH_A_THREAD = 600_000
"""numbers, in all, from which on a second thread takes its share: of fewer, threads mostly wait for Python's lock"""
CARD_TO_CACHE = 64
"""how many times as much a card is given at once: it has no cache to fit, and a call costs it more"""
MOST_SITES_AT_ONCE = 64
"""of a piece, on the processor"""


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
    arithmetic: Arithmetic = PLAIN,
) -> list[TrainedRound]:
    """What `train_round` gives each member, in order, to rounding; the model comes back as it was.

    Sites are trained in pieces that fit the processor's cache, on as many threads as torch would use for one operation,
    each operation on one: torch lets go of Python's lock while it computes.

    Args:
        members: plans of one unit, one kind of clipping and as many records a unit; rates, norms, noise, sizes and
            steps may differ.
        names: parameters that are trained; all others stay.
        arithmetic: where and how precisely to compute; updates come back on the processor, in float32.

    Raises:
        PrivacyError: the members cannot share a pass.
        ModelError: the model cannot be stacked (`why_apart`), uses a weight from outside its layer, or draws from
            torch's generator, which sites trained side by side cannot share.
    """
    _check(members)
    round_ = _Round(
        names=names,
        training=training,
        learning_rate=learning_rate(training, round_number=round_number, rounds=rounds),
        modality_dropout=modality_dropout,
        arithmetic=arithmetic,
        start=gathered(dict(model.named_parameters()), names=names).to(arithmetic.place),
    )
    public = [public_numbers(training, plan=each.plan, nominal_size=each.nominal_size) for each in members]
    # those with many steps first, so that a piece ends together
    order = sorted(range(len(members)), key=lambda number: -public[number].steps)
    costs = [
        _numbers(member.samples, public=each, num_weights=len(round_.start))
        for member, each in zip(members, public, strict=True)
    ]
    # a card is kept busy by one thread
    larger, workers = (1, torch.get_num_threads()) if arithmetic.place.type == "cpu" else (CARD_TO_CACHE, 1)
    pieces = _pieces(order, costs=costs, larger=larger, workers=workers)
    results: dict[int, TrainedRound] = {}

    def train(piece: Sequence[int], stacked: Stacked) -> None:
        chosen = [members[place] for place in piece], [public[place] for place in piece]
        with arithmetic.narrowed():
            results.update(zip(piece, _Piece(round_, stacked, *chosen).trained(), strict=True))

    with only_trained(model, names), _one_thread_an_operation(), _in_training(model), arithmetic.in_force():
        number = min(len(pieces), workers)
        copies = [Stacked(each, names=names) for each in _copies(model, number=number, place=arithmetic.place)]
        with without_draws(arithmetic.place):
            _share_out(pieces, train, copies=copies)
    return [results[place] for place in range(len(members))]


def _share_out(
    pieces: Sequence[Sequence[int]], train: Callable[[Sequence[int], Stacked], None], *, copies: Sequence[Stacked]
) -> None:
    """Trains the pieces, each thread with a copy of the model of its own."""
    left = iter(pieces)

    def work(number: int) -> None:
        # whoever is done takes the next
        for piece in left:
            train(piece, copies[number])

    if len(copies) == 1:
        work(0)
        return
    with ThreadPoolExecutor(len(copies), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, range(len(copies))))


@dataclass(frozen=True)
class _Round:
    """What all sites of a cohort share."""

    names: tuple[str, ...]
    training: TrainingSettings
    learning_rate: float
    modality_dropout: float
    arithmetic: Arithmetic
    start: Tensor
    """[P], the weights that all sites begin with"""


class _Piece:
    """Some sites of a cohort, their weights [K, P] side by side; sites with more steps come first."""

    def __init__(
        self, round_: _Round, stacked: Stacked, members: Sequence[Member], public: Sequence[PublicNumbers]
    ) -> None:
        self.round, self.stacked, self.members, self.public = round_, stacked, members, public
        plans = [member.plan for member in members if member.plan is not None]
        self.is_private, self.is_adaptive = bool(plans), is_adaptive(members[0].plan)
        self.is_per_layer = self.is_private and plans[0].clipping == "per-layer"
        self.start, device = round_.start, round_.start.device
        self.norms = torch.tensor([plan.clip_norm for plan in plans], dtype=torch.float64, device=device)
        self.denominators = torch.tensor([each.expected_batch_size for each in public], device=device)[:, None]
        self.excess = [0.0] * len(members)
        for member in members:
            # train_round seeds torch's generator with the first number; a model that draws from it is trained alone
            member.sampling.seed()
        self.draws = CohortDraws(
            [member.samples for member in members],
            public=public,
            sources=[member.sampling for member in members],
            modality_dropout=round_.modality_dropout,
            draws_keys=draws_keys(stacked.model),
        )

    def trained(self) -> list[TrainedRound]:
        """The round of every site."""
        final = self._descended() if self._is_plain_descent else self._optimized()
        views = self.stacked.views(final.sub_(self.start).cpu())
        return [
            TrainedRound(
                {name: view[number] for name, view in views.items()},
                unclipped_share=unclipped_share(self.excess[number], public=public, plan=member.plan),
            )
            for number, (member, public) in enumerate(zip(self.members, self.public, strict=True))
        ]

    @property
    def _is_plain_descent(self) -> bool:
        """Whether a step is weights minus a multiple of the sum, which can then be written in one go."""
        training = self.round.training
        return not self.is_private and training.optimizer == "sgd" and not training.weight_decay + training.proximal_mu

    def _descended(self) -> Tensor:
        """Every site's last weights [K, P] after steps of plain gradient descent."""
        before = self.start.expand(len(self.members), -1)
        weights = torch.empty_like(before, memory_format=torch.contiguous_format)
        for step, active in enumerate(self._active()):
            drawn = self._drawn(step, active=active)
            if drawn is not None:
                self.stacked.descend(
                    before[:active],
                    drawn.batch,
                    rows=self._rows(drawn),
                    real=drawn.real,
                    denominators=self.denominators[:active],
                    rate=self.round.learning_rate,
                    into=weights[:active],
                )
            elif step == 0:
                weights.copy_(before)
            before = weights
        return weights

    def _optimized(self) -> Tensor:
        """Every site's last weights [K, P] after steps of the run's optimizer."""
        weights = nn.Parameter(self.start.expand(len(self.members), -1).clone())
        optimizer, final = self._optimizer(weights), torch.empty_like(weights, requires_grad=False)
        before = self.start.expand(len(self.members), -1)
        for step, active in enumerate(self._active()):
            self._step(before[:active], optimizer, number=step)
            before = weights.detach()
            ended = [number for number, each in enumerate(self.public) if each.steps == step + 1]
            if len(ended) == len(weights):
                return before
            final[ended] = before[ended]
        return final

    def _active(self) -> list[int]:
        """How many sites, from the first on, make each step."""
        # PRIVACY: as many steps as each site was charged. test_every_site_of_a_cohort_makes_its_own_steps
        return [sum(each.steps > step for each in self.public) for step in range(self.public[0].steps)]

    def _drawn(self, step: int, *, active: int) -> Drawn | None:
        """What the first `active` sites draw in a step, where it is computed with."""
        drawn = self.draws.step(step, active=active)
        return drawn if drawn is None else drawn.to(self.start.device)

    def _rows(self, drawn: Drawn) -> Rows:
        sites, units = drawn.real.shape
        return Rows(sites, units, self.public[0].rows_per_unit)

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

    def _step(self, weights: Tensor, optimizer: StackedNoisyOptimizer, *, number: int) -> None:
        """One step of the sites whose weights are given, the first ones."""
        active, drawn = len(weights), self._drawn(number, active=len(weights))
        sums, unclipped = self._sums(weights, drawn)
        if active < len(self.members):
            sums = torch.cat([sums, sums.new_zeros(len(self.members) - active, sums.shape[1])])
        optimizer.clipped_sums, optimizer.active = sums, active
        optimizer.step()
        if self.is_adaptive:
            counts = drawn.counts.tolist() if drawn is not None else [0] * active
            for place, (member, within, units) in enumerate(
                zip(self.members, unclipped.tolist(), counts, strict=False)
            ):
                if member.plan is not None:
                    self.excess[place] += noisy_excess(within, units=units, plan=member.plan, noise=member.noise)

    def _sums(self, weights: Tensor, drawn: Drawn | None) -> tuple[Tensor, Tensor]:
        """Sums over what each site drew, clipped where there is a plan, and how many units were within the norm."""
        if drawn is None:
            return torch.zeros(weights.shape, dtype=weights.dtype, device=weights.device), torch.zeros(len(weights))
        rows = self._rows(drawn)
        if not self.is_private:
            sums = self.stacked.plain_sums(
                weights, drawn.batch, rows=rows, real=drawn.real, denominators=self.denominators[: len(weights)]
            )
            return sums, torch.zeros(len(weights))
        clip = StackedClip(self.norms[: len(weights)], per_layer=self.is_per_layer)
        found = self.stacked.clipped_sums(weights, drawn.batch, rows=rows, real=drawn.real, clip=clip)
        return found.sums, found.unclipped


def _check(members: Sequence[Member]) -> None:
    kinds = {
        (plan.unit, plan.clipping, plan.records_per_unit, plan.noise == "discrete") if plan is not None else None
        for plan in (member.plan for member in members)
    }
    if len(kinds) != 1:
        raise PrivacyError(f"members of {len(kinds)} kinds; allowed: one unit, clipping and number of records a unit")
    if any(member.plan is not None and member.plan.noise == "discrete" for member in members):
        raise PrivacyError("discrete noise in a cohort; allowed: sites with such noise one by one")


def _numbers(samples: Samples, *, public: PublicNumbers, num_weights: int) -> int:
    """About how many weights and inputs a step of one site looks at."""
    row = samples.numbers_a_row
    return num_weights + int(public.expected_batch_size * public.rows_per_unit + 1) * row


def _pieces(order: Sequence[int], *, costs: Sequence[int], larger: int, workers: int) -> list[list[int]]:
    """Members that are trained together, at most so many that their numbers fit; on a card so many times as many.

    Pieces cost about the same, and where there are several, each worker has as many.
    """
    most, total = larger * NUMBERS_AT_ONCE, sum(costs)
    number = max(1, math.ceil(total / most))
    if workers > 1 and total > WORTH_A_THREAD:
        number = workers * math.ceil(number / workers)
    pieces: list[list[int]] = []
    numbers = share = total / number
    for place in order:
        # half a member over its share is nearer than half a member under it
        is_full = numbers + costs[place] / 2 > share or numbers + costs[place] > most
        if not pieces or is_full or len(pieces[-1]) == larger * MOST_SITES_AT_ONCE:
            pieces.append([])
            numbers = 0
        pieces[-1].append(place)
        numbers += costs[place]
    return pieces


_COPIES: "weakref.WeakKeyDictionary[nn.Module, list[nn.Module]]" = weakref.WeakKeyDictionary()


def _copies(model: nn.Module, *, number: int, place: torch.device) -> list[nn.Module]:
    """The model for each thread: layers of its own, which a pass replaces, on the same weights; on a card, one anew."""
    if place.type != "cpu":
        return [copy.deepcopy(model).to(place)]
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
