"""Central protection: a whole site hides in the sum of the updates, under noise that the server adds.

in        one update after the other, clipped at the sites and not believed; the server's own ledger
out       their noisy average, divided by a public number; a row in the ledger before anybody is asked
relies on shared/privacy/ for clip, noise, accountant and ledger; schedule.py for who is asked

Neighbouring: everything that one site sends left out, so that its updates count as zeros and its bit (adaptive
clipping) not at all. Whoever reads the models and the report learns little of any one site; the server itself sees the
updates and has to be trusted.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.aggregation import RunningRow, Weights
from server.settings import ServerSettings
from shared.config import PrivacySettings
from shared.errors import BudgetError, PrivacyError, RunError
from shared.messages import Shapes
from shared.privacy.accountant import MechanismUse, calibrate_noise, spent_epsilon
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import clip_factors, layers_of, split_noise
from shared.privacy.noise import RandomSource, reproducible_source, secret_source


@dataclass(frozen=True)
class CentralPlan:
    """How the server protects whole sites in every round of one run; fixed before the first."""

    privacy: PrivacySettings
    cap_epsilon: float
    """all runs over these sites together"""
    noise_multiplier: float
    """noise standard deviation divided by the clip norm, of all that a round releases, the count included"""
    sample_rate: float
    """chance that a site is asked in a round; 1 where the schedule is public, for which nothing is claimed"""
    denominator: float
    """public: how many sites a round asks, in expectation or by its schedule"""
    shapes: Shapes
    """every parameter that the model trains, whichever sites train it"""
    reproducible_seed: int | None = None
    """simulations only: coins and noise that a seed gives back protect nobody"""

    @property
    def is_adaptive(self) -> bool:
        """The clip norm moves from round to round, at the price of a noisy count."""
        return self.privacy.clipping == "adaptive"

    def source(self, round_number: int, *, purpose: str) -> RandomSource:
        """Random numbers of one round, for the draw of sites or for the noise."""
        if self.reproducible_seed is None:
            # PRIVACY: coins and noise that a seed gives back protect nobody.
            # test_central_noise_differs_between_equal_runs
            return secret_source()
        return reproducible_source(self.reproducible_seed, purpose=f"server/{round_number}/{purpose}")

    def use(self, steps: int) -> MechanismUse:
        """The mechanism of so many rounds that a site may have been in."""
        return MechanismUse(self.noise_multiplier, self.sample_rate, steps)


class SiteBudget:
    """The server's own ledger, for one federation and one run: what its rounds cost any one site."""

    def __init__(self, settings: ServerSettings) -> None:
        """Opens the ledger, or starts it.

        Raises:
            RunError: the run folder names no ledger or no federation.
            LedgerError: the file cannot be used.
        """
        if settings.ledger is None or not settings.federation:
            raise RunError(
                'server.json: unit "site" needs ledger and federation, where the server keeps what its runs cost the '
                "sites; make the run folder anew with: motet simulate or motet prepare"
            )
        self._ledger, self._federation, self._run_id = Ledger(settings.ledger), settings.federation, settings.run_id

    def before(self) -> tuple[MechanismUse, ...]:
        """What all other runs over these sites have cost."""
        rows = self._ledger.rows(self._federation)
        return tuple(row.use for row in rows if row.run_id != self._run_id and row.state != "void")

    def of_run(self) -> tuple[MechanismUse, ...]:
        """What this run has cost so far."""
        return self._ledger.uses_of_run(self._federation, self._run_id, unit="site")

    def charged(self) -> int:
        """Rounds that were charged to this run, repeated ones too."""
        return sum(use.steps for use in self.of_run())

    def spent(self, plan: CentralPlan) -> float:
        """All that the ledger holds about this federation."""
        privacy = plan.privacy
        return self._ledger.spent(self._federation, unit="site", delta=privacy.delta, accountant=privacy.accountant)

    def charge(self, plan: CentralPlan, *, steps: int, round_number: int, attempt: int) -> float:
        """Writes down what a round costs, before anybody is asked; all spent so far, this round included.

        Args:
            plan: the run's.
            steps: by how much the most rounds that any site may have been in have grown; 0 costs nothing.
            round_number: of the round.
            attempt: how often the run was started before.

        Raises:
            BudgetError: the run's epsilon or the cap does not cover it; nothing was written.
        """
        if steps == 0:
            return self.spent(plan)
        privacy = plan.privacy
        total = spent_epsilon([*self.of_run(), plan.use(steps)], delta=privacy.delta, accountant=privacy.accountant)
        # PRIVACY: a round that was repeated after a crash was paid for twice, and the last one may not be left.
        # test_a_run_spends_no_more_than_it_asked_for_under_a_larger_cap
        if not total <= min(privacy.epsilon, plan.cap_epsilon):
            raise BudgetError(
                f"round {round_number}: would bring the run to epsilon {total:.4g} for a site; it asked for "
                f"{privacy.epsilon:.4g}. Rounds that were repeated after an interruption were charged again"
            )
        # PRIVACY: on the disk before a message leaves. test_a_round_of_sites_is_charged_before_anybody_is_asked
        reservation = self._ledger.reserve(
            data_set=self._federation,
            unit="site",
            use=plan.use(steps),
            run_id=self._run_id,
            round_number=round_number,
            attempt=attempt,
            cap_epsilon=plan.cap_epsilon,
            delta=privacy.delta,
            accountant=privacy.accountant,
            mechanism="adaptive-gaussian" if plan.is_adaptive else "gaussian",
        )
        return reservation.epsilon_spent


def make_central_plan(
    privacy: PrivacySettings,
    *,
    budget: SiteBudget,
    settings: ServerSettings,
    num_sites: int,
    planned_steps: int,
    shapes: Shapes,
) -> CentralPlan:
    """The plan that keeps the run's epsilon and the cap over all runs, calibrated once for all planned rounds.

    A run that is resumed keeps the noise that its first round was given.

    Args:
        privacy: what the run asks for whole sites.
        budget: of this federation.
        settings: of the run.
        num_sites: sites that take part, public.
        planned_steps: the most rounds that any site is planned for.
        shapes: every parameter that the model trains.

    Raises:
        BudgetError: the planned rounds do not fit into what earlier runs have left of the cap.
        PrivacyError: delta is so large that publishing a whole site would keep the promise.
    """
    run, federation = settings.run, settings.run.federation
    if privacy.delta * num_sites > 1:
        raise PrivacyError(
            f"delta is {privacy.delta:g} for {num_sites} sites; allowed: at most {1 / num_sites:.1e}, above which "
            "publishing one whole site would keep the promise"
        )
    rate = federation.site_sample_rate or 1.0
    cap, mine = settings.site_cap_epsilon or privacy.epsilon, budget.of_run()
    # PRIVACY: the stricter of the run and the cap wins. test_the_stricter_of_run_and_cap_wins
    noise = (
        mine[0].noise_multiplier
        if mine
        else calibrate_noise(
            epsilon=min(privacy.epsilon, cap),
            delta=privacy.delta,
            sample_rate=rate,
            steps=planned_steps,
            accountant=privacy.accountant,
        )
    )
    plan = CentralPlan(
        privacy=privacy,
        cap_epsilon=cap,
        noise_multiplier=noise,
        sample_rate=rate,
        # PRIVACY: how many sites were drawn, or answered, does not move it. test_the_central_denominator_is_public
        denominator=rate * num_sites
        if federation.site_sample_rate
        else float(min(federation.sites_per_round or num_sites, num_sites)),
        shapes=shapes,
        reproducible_seed=run.seed if settings.reproducible_noise else None,
    )
    if not mine:
        _refuse_beyond_cap(plan, before=budget.before(), planned_steps=planned_steps, settings=settings)
    return plan


def steps_due(participations: Mapping[str, int], *, before: Mapping[str, int], charged: int) -> int:
    """What a round costs: by how much the most rounds that any one site may have been in grow, or lie above the ledger.

    Args:
        participations: this round included.
        before: without it.
        charged: rounds that the ledger holds for the run.
    """
    most = max(participations.values(), default=0)
    # PRIVACY: by the growth, however much is charged already: a folder that was copied, or lost its counts, pays anew
    # for what it asks. test_a_run_folder_that_lost_its_counts_pays_for_every_round
    return max(0, most - max(before.values(), default=0), most - charged)


def with_round(participations: Mapping[str, int], *, sites: Sequence[str]) -> dict[str, int]:
    """How often each site may have been asked, once these may be asked again."""
    return dict(Counter(participations) + Counter(sites))


def protect(updates: Mapping[str, Weights], *, plan: CentralPlan, clip_norm: float, source: RandomSource) -> Weights:
    """The noisy average of a round whose updates are all there, as `ProtectedSum` makes it from one after the other."""
    total = ProtectedSum(plan, clip_norm=clip_norm)
    # sorted by site: sums of floats depend on their order
    for site in sorted(updates):
        total.add(updates[site])
    return total.noisy_average(source)


class ProtectedSum:
    """The updates of one round, each clipped and added when it comes; holds no update.

    Promise: one site, added once, moves the sum by at most `clip_norm`, whatever numbers it sent.

    Source: McMahan et al. 2018, arXiv:1710.06963, algorithm 1, with the fixed denominator of its section 2.2.
    """

    def __init__(self, plan: CentralPlan, *, clip_norm: float) -> None:
        """Starts with no update.

        Args:
            plan: of the run.
            clip_norm: of this round.
        """
        self._plan, self._clip_norm = plan, clip_norm
        self._rows: dict[tuple[str, ...], RunningRow] = {}

    def add(self, update: Weights, *, row: Tensor | None = None) -> None:
        """Clips a site's whole update and adds it; what the site does not send counts as zeros.

        One whose norm is not finite, or 1e30 clip norms long, adds exactly zero.

        Args:
            update: by parameter.
            row: all of it one behind the other, where who calls has it.
        """
        names = tuple(update)
        if names not in self._rows:
            self._rows[names] = RunningRow(update)
        sums = self._rows[names]
        exact = sums.exact(update, row=row)
        # PRIVACY: clipped again here, where a site's word counts for nothing.
        # test_one_site_moves_the_sum_by_at_most_the_clip_norm
        if self._plan.privacy.clipping != "per-layer":
            self._add_clipped([exact], to=[sums.total], norm=self._clip_norm)
            return
        layers, parts, totals = layers_of(names), sums.parts(exact), sums.parts(sums.total)
        for members in layers.values():
            # PRIVACY: L layers of this norm have the clip norm together. test_each_layer_has_its_share_of_the_norm
            share = self._clip_norm / math.sqrt(len(layers))
            pieces = [[whole[name].view(-1) for name in members] for whole in (parts, totals)]
            self._add_clipped(pieces[0], to=pieces[1], norm=share)

    def noisy_average(self, source: RandomSource) -> Weights:
        """The sum with noise, over a public number: every trainable parameter is in it, whoever sent it.

        No updates give noise alone.
        """
        plan = self._plan
        sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in plan.shapes.items()}
        for row in self._rows.values():
            for name, part in row.parts(row.total).items():
                sums[name] += part
        noise = split_noise(plan.noise_multiplier)[0] if plan.is_adaptive else plan.noise_multiplier
        std = noise * self._clip_norm
        # PRIVACY: on every parameter, also of a round that nobody answered.
        # test_a_round_without_updates_is_noise_alone, test_central_noise_has_the_promised_scale
        noisy = {name: value + source.normal(tuple(value.shape), std=std) for name, value in sums.items()}
        return {name: (value / plan.denominator).float() for name, value in noisy.items()}

    @staticmethod
    def _add_clipped(pieces: Sequence[Tensor], *, to: Sequence[Tensor], norm: float) -> None:
        """Adds flat float64 pieces whose joint norm is cut to `norm`."""
        # in float64 no square of a float32 number is lost or infinite
        length = math.sqrt(sum(float(torch.dot(piece, piece)) for piece in pieces))
        factor = float(clip_factors(torch.tensor([length], dtype=torch.float64), clip_norm=norm))
        # PRIVACY: zero times NaN is NaN, so a broken update is not added at all.
        # test_one_site_moves_the_sum_by_at_most_the_clip_norm
        if factor > 0:
            for piece, total in zip(pieces, to, strict=True):
                total.add_(piece, alpha=factor)


def noisy_unclipped_share(within: Sequence[bool], *, plan: CentralPlan, source: RandomSource) -> float:
    """Share of the updates that were within the clip norm, about; any one site moves the count by at most 1/2.

    Source: Andrew et al. 2021, arXiv:1905.03871, algorithm 1.
    """
    count = sum(0.5 if is_within else -0.5 for is_within in within)
    # PRIVACY: paid for by more noise on the sum (split_noise). test_central_count_has_the_promised_noise
    noise = float(source.normal((1,), std=split_noise(plan.noise_multiplier)[1]))
    return 0.5 + (count + noise) / plan.denominator


def _refuse_beyond_cap(
    plan: CentralPlan, *, before: Sequence[MechanismUse], planned_steps: int, settings: ServerSettings
) -> None:
    privacy = plan.privacy
    spent = spent_epsilon(before, delta=privacy.delta, accountant=privacy.accountant)
    total = spent_epsilon([*before, plan.use(planned_steps)], delta=privacy.delta, accountant=privacy.accountant)
    # PRIVACY: what earlier runs cost the same sites counts. test_a_second_run_on_a_federation_is_refused_beyond_the_cap
    if not total <= plan.cap_epsilon:
        raise BudgetError(
            f"{settings.ledger}: federation {settings.federation!r} has spent epsilon {spent:.4g} of "
            f"{plan.cap_epsilon:.4g}, and the run would bring it to {total:.4g}; ask for a smaller epsilon, or raise "
            "the cap, which all sites have to agree to: motet prepare SCENARIO --site-cap-epsilon NUMBER"
        )
