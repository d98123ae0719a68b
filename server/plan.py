"""Plan: who takes part in a run and who is asked in a round, which is paid for before anybody is.

in        the sites that introduced themselves, the run's settings, the server's ledger where whole sites are protected
out       Plan, the one after it when a site comes late, and round by round the sites that are asked
relies on schedule.py for the order or the draw; central.py for what a round costs
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from server.central import CentralPlan, SiteBudget, make_central_plan, steps_due, with_round
from server.checkpoint import read_participations, write_participations
from server.judgement import LARGEST_NOMINAL_SIZE, is_plausible_size
from server.records import SiteShare
from server.schedule import draw_sites, plan_rounds, planned_participations, with_newcomer
from server.settings import ServerSettings
from shared.config import RunConfig
from shared.errors import RunError
from shared.messages import Hello
from shared.model.exchange import Exchange, exchange_of
from shared.model.multimodal import MultimodalModel
from shared.model.parameters import tensor_of

log = logging.getLogger("motet.server")


@dataclass(frozen=True)
class Plan:
    """Who is asked when, and what each site sends: fixed before the first round, but for sites that come late."""

    sites: tuple[Hello, ...]
    rounds: tuple[tuple[str, ...], ...] | None
    """None: each round's sites are drawn in secret when it begins"""
    planned: Mapping[str, int]
    """site -> most rounds that it can be asked for, as it is told: its noise is calibrated for them"""
    exchanges: Mapping[str, Exchange]
    """site -> what it is sent and sends; one object for all sites alike"""
    joined: Mapping[str, int] = field(default_factory=dict)
    """site -> first round that could ask it, in the order in which they came; of those that came late"""

    @property
    def site_names(self) -> tuple[str, ...]:
        """All sites that take part, sorted."""
        return tuple(site.site for site in self.sites)

    def possible(self, number: int) -> tuple[str, ...]:
        """The sites that a round may ask; in secret, any may be the one that is drawn."""
        return self.site_names if self.rounds is None else self.rounds[number - 1]

    @cached_property
    def _hellos(self) -> Mapping[str, Hello]:
        return {site.site: site for site in self.sites}

    def hello(self, name: str) -> Hello:
        """What a site has said of itself."""
        return self._hellos[name]

    def shares(self, model: MultimodalModel) -> tuple[SiteShare, ...]:
        """What each site is sent and trains, for the record of the run."""
        counted: dict[Exchange, tuple[int, int, int]] = {}
        for exchange in dict.fromkeys(self.exchanges.values()):
            kinds = (exchange.updated, exchange.given, exchange.personal)
            sent, given, personal = (sum(tensor_of(model, name).numel() for name in names) for names in kinds)
            counted[exchange] = (sent, given, personal)
        found = []
        for site in self.sites:
            sent, given, personal = counted[self.exchanges[site.site]]
            found.append(
                SiteShare(
                    site=site.site,
                    modalities=site.modalities,
                    tasks=site.tasks,
                    frozen=site.frozen,
                    nominal_modality_sizes=site.nominal_modality_sizes,
                    sent=sent,
                    given=given,
                    personal=personal,
                    first_round=self.joined.get(site.site, 1),
                )
            )
        return tuple(found)

    def nominal_size(self, name: str) -> int:
        """The public number of units at a site.

        Raises:
            RunError: its introduction does not tell.
        """
        size = self.hello(name).nominal_size
        if size is None:
            raise RunError(f"{name}: its introduction holds no nominal_size; install the newest Motet there")
        return size


@dataclass(frozen=True)
class Central:
    """How whole sites are protected, and the ledger that says what it has cost."""

    plan: CentralPlan
    budget: SiteBudget


def make_plan(sites: list[Hello], *, run: RunConfig, model: MultimodalModel) -> Plan:
    """The schedule of a run over the sites that introduced themselves and can train something of it.

    Raises:
        RunError: they are fewer than the run asks for.
    """
    exchanges = exchanges_of(sites, run=run, model=model)
    able = sorted((site for site in sites if site.site in exchanges), key=lambda site: site.site)
    refuse_too_few(exchanges, sites=sites, run=run)
    hostile = run.federation.byzantine_sites or 0
    if hostile and min(len(able), run.federation.sites_per_round or len(able)) < 3 * hostile + 3:
        log.warning(
            "byzantine_sites = %d: as many that send nothing would stop every round; fewer than %d sites are in one",
            hostile,
            3 * hostile + 3,
        )
    if run.federation.site_sample_rate is not None:
        planned = dict.fromkeys(exchanges, run.federation.rounds)
        return Plan(tuple(able), rounds=None, planned=planned, exchanges=exchanges)
    rounds = plan_rounds([site.site for site in able], settings=run.federation, seed=run.seed)
    return Plan(tuple(able), rounds=tuple(rounds), planned=planned_participations(rounds), exchanges=exchanges)


def refuse_too_few(able: Collection[str], *, sites: Sequence[Hello], run: RunConfig) -> None:
    """Ends a start of a run that has too few sites to train anything.

    Raises:
        RunError: they are fewer than the run asks for.
    """
    if len(able) < run.federation.min_sites:
        raise RunError(
            f"{len(able)} of {len(sites)} sites have any of {list(run.modalities)} to train and a nominal size that "
            f"can be; federation.min_sites asks for {run.federation.min_sites}{_needed_by_rule(run)}"
        )


def with_site(plan: Plan, site: Hello, *, exchange: Exchange, from_round: int, run: RunConfig) -> Plan:
    """The plan with one site more, for the rounds that are left; no other site is planned for more than before.

    Args:
        plan: of a run that knows who is asked when.
        site: one that is not in it.
        exchange: what it is sent and sends.
        from_round: the first that may ask it.
        run: the run's settings.

    Raises:
        RunError: who is asked is drawn in secret, by a chance that was worked out for the sites that there were.
    """
    if plan.rounds is None:
        raise RunError(f"{site.site}: a run that draws its sites in secret takes in none after its start")
    name = site.site
    rounds = with_newcomer(
        plan.rounds,
        site=name,
        from_round=from_round,
        num_sites=len(plan.sites),
        settings=run.federation,
        seed=run.seed,
    )
    return replace(
        plan,
        sites=tuple(sorted((*plan.sites, site), key=lambda each: each.site)),
        rounds=tuple(rounds),
        # PRIVACY: what others were told stays, though they may be asked less: their noise was calibrated for it.
        # test_no_site_is_ever_asked_for_more_rounds_than_it_was_told
        planned={**plan.planned, name: sum(name in chosen for chosen in rounds)},
        exchanges={**plan.exchanges, name: exchange},
        joined={**plan.joined, name: from_round},
    )


def start_central(plan: Plan, *, settings: ServerSettings, model: MultimodalModel) -> Central | None:
    """The protection of whole sites, for a run that asks for it; no message leaves before its ledger is open.

    Raises:
        BudgetError: the run does not fit into what earlier runs over these sites have left.
        LedgerError: the server's ledger cannot be used.
    """
    privacy = settings.run.central_privacy
    if privacy is None:
        return None
    parameters, budget = dict(model.named_parameters()), SiteBudget(settings)
    central = make_central_plan(
        privacy,
        budget=budget,
        settings=settings,
        num_sites=len(plan.sites),
        planned_steps=max(plan.planned.values()),
        # PRIVACY: all that sites send, and no more. test_central_noise_is_on_what_sites_send
        shapes={name: tuple(parameters[name].shape) for name in exchange_of(model, settings.run.modalities).updated},
    )
    return Central(central, budget)


def participants(
    plan: Plan, central: Central | None, *, number: int, attempt: int, folder: Path
) -> tuple[tuple[str, ...], float | None]:
    """The sites of a round; where whole sites are protected, once it is paid for, and all that is spent then.

    Raises:
        BudgetError: the round is not covered; nobody may be asked.
    """
    possible = plan.possible(number)
    if central is None:
        return possible, None
    before = read_participations(folder)
    participations = with_round(before, sites=possible)
    due = steps_due(participations, before=before, charged=central.budget.charged())
    epsilon = central.budget.charge(central.plan, steps=due, round_number=number, attempt=attempt)
    write_participations(participations, folder=folder)
    if plan.rounds is None:
        source = central.plan.source(number, purpose="sites")
        return draw_sites(possible, sample_rate=central.plan.sample_rate, source=source), epsilon
    return possible, epsilon


def _needed_by_rule(run: RunConfig) -> str:
    federation = run.federation
    if federation.fewest_updates == 1:
        return ""
    return (
        f", and {federation.aggregation} with byzantine_sites = {federation.byzantine_sites} needs "
        f"{federation.fewest_updates}"
    )


def exchanges_of(sites: Sequence[Hello], *, run: RunConfig, model: MultimodalModel) -> dict[str, Exchange]:
    """What each site is sent and sends, of those that train something of the run and declare sizes that can be."""
    # one object for all sites that say the same: the model is gone through once for them, not ten thousand times
    made: dict[tuple[tuple[str, ...], tuple[str, ...] | None, tuple[str, ...]], Exchange] = {}
    exchanges = {}
    for site in sorted(sites, key=lambda site: site.site):
        modalities = tuple(name for name in run.modalities if name in site.modalities)
        tasks = _tasks(site, run=run)
        if not _is_of_a_size(site, run=run):
            log.warning("%s is left out: no site has the nominal size that it declares, or it declares none", site.site)
        elif not run.data.may_hold_pairs(site.modalities):
            log.warning("%s is left out: it has no %s", site.site, " with ".join(run.data.pair or ()))
        elif modalities and (tasks is None or tasks):
            key = (modalities, tasks, site.frozen)
            if key not in made:
                made[key] = exchange_of(model, modalities, tasks=tasks, frozen=site.frozen)
            if made[key].updated:
                exchanges[site.site] = made[key]
            else:
                log.warning("%s is left out: its owner freezes all that the run's sites train in common", site.site)
    return exchanges


def _tasks(site: Hello, *, run: RunConfig) -> tuple[str, ...] | None:
    """Which of several tasks a site answers; None for all, or where there are not several."""
    if site.tasks is None or not run.data.tasks:
        return None
    return tuple(name for name in run.data.tasks if name in site.tasks)


def _is_of_a_size(site: Hello, *, run: RunConfig) -> bool:
    sizes = site.nominal_modality_sizes.values()
    if not all(1 <= size <= LARGEST_NOMINAL_SIZE for size in sizes):
        return False
    if site.nominal_size is None:
        # of a secret draw beside protected records the report says what was planned for each site, by its size; one
        # site that did not tell it would end the run of all. test_a_site_that_tells_no_size_ends_no_run
        return run.federation.site_sample_rate is None or run.local_privacy is None
    return is_plausible_size(site.nominal_size, run=run)
