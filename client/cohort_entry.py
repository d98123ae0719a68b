"""Cohort entry: which of the sites that are asked together take part, each permitted and paid for as if it were alone.

in        the requests of one round, decoded, and the path of each owner's settings
out       the sites whose round is in their ledgers, read by cohort.py; a refusal of every other one
relies on agent.py for what one owner permits, and on one ledger transaction for all sites of a ledger
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from client.agent import ledger_at, plan_of, refuse, try_out
from client.charge import charge_for_round
from client.memory import refuse_too_much_memory
from client.open_round import OpenRound, open_round
from client.permission import Cards
from client.plan import PrivacyPlan
from client.run_model import check_weights, num_numbers
from client.site import read_site
from client.unchanged import Same
from shared.batch import Samples
from shared.errors import MotetError
from shared.messages import Refusal, RequestHeader, TrainReply
from shared.privacy.accountant import spent_epsilon
from shared.privacy.ledger import Ledger, Pending, Reservation
from shared.privacy.ledger_totals import History
from shared.privacy.ledger_transaction import OpenLedger

_OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "adam": 2}
"""numbers kept for each weight from step to step"""


Answer = TrainReply | Refusal
log = logging.getLogger("motet.site")


@dataclass(frozen=True, slots=True)
class Asked:
    """A round asked of one site; sites that were sent the same share header and weights, the very objects."""

    header: RequestHeader
    weights: dict[str, Tensor]
    site_file: Path
    """the owner's settings, named by the owner's machine and not by the request"""


@dataclass(slots=True)
class CohortSite:
    """One site on its way through a round."""

    place: int
    asked: Asked
    opened: OpenRound
    history: History | None = None
    plan: PrivacyPlan | None = None
    pending: Pending | None = None
    group: int = -1
    """number of the sites that can be trained in one pass with it"""
    samples: Samples | None = None
    """while it is its turn"""

    @property
    def reservation(self) -> Reservation:
        """What pays for the round.

        Raises:
            LedgerError: it is not on the disk.
        """
        if self.pending is None:
            raise AssertionError("a site that was not reserved for is on its way to its data")
        return self.pending.paid

    @property
    def kind(self) -> Hashable:
        """What sites must have in common to be trained in one pass."""
        plan, opened = self.plan, self.opened
        kind = None if plan is None else (plan.unit, plan.clipping, plan.records_per_unit, plan.noise)
        # the very weights, which sites that were sent the same share: comparing their numbers would cost more
        asked = (opened.header.round_number, opened.site_clip_norm, id(self.asked.weights))
        permitted = opened.permitted
        return (opened.key, permitted.modalities, permitted.tasks, permitted.frozen, asked, kind)

    @property
    def num_bytes(self) -> int:
        """Of its weights, their gradients and change, what the optimizer keeps, all in float32, and its rows."""
        numbers = num_numbers(self.opened.shapes.trained) * (
            3 + _OPTIMIZER_STATES[self.opened.permitted.run.training.optimizer]
        )
        return 4 * numbers + (self.samples.input_bytes if self.samples is not None else 0)


def opened_sites(asked: Sequence[Asked], answers: dict[int, Answer]) -> list[CohortSite]:
    """The sites whose owners permit the round; `answers` takes the refusals of the others, here and below."""
    sites, cards, alike = [], Cards(), dict[Hashable, OpenRound]()
    # the very weights and shapes that many sites share; kept no longer than the round, whose weights they are
    checked: set[tuple[int, int]] = set()
    for place, each in enumerate(asked):
        try:
            site = read_site(each.site_file)
            # PRIVACY: one owner's leave stands for another's only where both say the same, about the very same request.
            # test_one_owners_leave_is_nobody_elses, test_what_is_permitted_rests_on_the_terms_alone
            same = (id(each.header), Same(cards.card_of(site.data)), site.terms)
            known = alike.get(same)
            opened = known.at(site) if known is not None else open_round(each.header, site=site, cards=cards)
            alike.setdefault(same, opened)
            refuse_too_much_memory(opened.permitted, site=site)
            if (pair := (id(each.weights), id(opened.shapes))) not in checked:
                check_weights(each.weights, shapes=opened.shapes.sent)
                checked.add(pair)
        except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
            answers[place] = refuse(each.site_file, error)
        else:
            sites.append(CohortSite(place, each, opened))
    return sites


def reserved_sites(sites: list[CohortSite], answers: dict[int, Answer]) -> list[CohortSite]:
    """The sites whose round is paid for, on the disk; one transaction for each ledger."""
    by_ledger: dict[Path, list[CohortSite]] = {}
    for site in sites:
        by_ledger.setdefault(site.opened.site.ledger, []).append(site)
    paid = []
    for path, members in by_ledger.items():
        try:
            paid += _charged(ledger_at(path), members, answers)
        except Exception as error:  # noqa: BLE001  a ledger that fails grants nobody anything
            refuse_all(members, error, answers)
    return sorted(paid, key=lambda site: site.place)


def _charged(ledger: Ledger, sites: list[CohortSite], answers: dict[int, Answer]) -> list[CohortSite]:
    """Of the sites of one ledger, those that it grants the round, all in one transaction."""
    private = [site for site in sites if site.opened.permitted.unit is not None]
    if private:
        with ledger.together(write=False) as seen:
            private = each_of(private, lambda site: _look_up(site, seen), answers, caught=MotetError)
        # Plans and sums can take seconds: made here first, they wait in memory when the ledger is locked.
        private = each_of(private, _prepare, answers)
        sites = [site for site in sites if site.place not in answers]
    with ledger.together() as opened:
        opened.look_up(
            (site.opened.site.data_set, site.opened.header.run_id, site.opened.header.round_number) for site in sites
        )
        # PRIVACY: a refusal writes nothing, and whatever else goes wrong undoes the rows of all.
        # test_a_refused_site_does_not_stop_the_others, test_a_crash_while_reserving_writes_nothing
        return each_of(sites, lambda site: _reserve(site, opened), answers, caught=MotetError)


def each_of(
    sites: Sequence[CohortSite],
    step: Callable[[CohortSite], None],
    answers: dict[int, Answer],
    *,
    caught: type[Exception] = Exception,
) -> list[CohortSite]:
    """The sites for which a step went well; each of the others has its refusal."""
    well = []
    for site in sites:
        try:
            step(site)
        except caught as error:
            answers[site.place] = refuse(site.asked.site_file, error)
        else:
            well.append(site)
    return well


def _look_up(site: CohortSite, ledger: OpenLedger) -> None:
    unit = site.opened.permitted.unit
    if unit is not None:
        site.history = ledger.history(site.opened.site.data_set, site.opened.header.run_id, unit=unit)


def _prepare(site: CohortSite) -> None:
    if site.history is None:
        raise AssertionError("a round is planned before the ledger was asked")
    site.plan = plan = plan_of(site.opened, history=site.history)
    try_out(site.opened, history=site.history)
    spent_epsilon([*site.history.total, plan.uses(1)], delta=plan.delta, accountant=plan.accountant)


def _reserve(site: CohortSite, ledger: OpenLedger) -> None:
    # PRIVACY: planned from what the ledger says now that nobody else can write: another site of this very round may
    # name the same data set. test_two_sites_of_one_data_set_cannot_both_have_its_last_round
    seen = site.history
    _look_up(site, ledger)
    if site.history is not None and site.history is not seen:
        site.plan = plan_of(site.opened, history=site.history)
    site.pending = ledger.reserve(**charge_for_round(site.opened.header, site=site.opened.site, plan=site.plan))


def refuse_all(sites: Sequence[CohortSite], error: Exception, answers: dict[int, Answer]) -> None:
    """One refusal for all of them that have no answer, told once."""
    left = [site for site in sites if site.place not in answers]
    if left:
        told = refuse(left[0].asked.site_file, error)
        log.error("the same holds for %d more sites", len(left) - 1)
        answers.update({site.place: told for site in left})
