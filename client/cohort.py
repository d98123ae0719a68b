"""Cohort: many sites' rounds answered together, each granted, paid for and protected as if it were alone.

in        the requests of one round, decoded, and the path of each owner's settings
out       one answer for each, in order: a protected update or a refusal; of a few sites at a time
relies on agent.py for what one site does, cohort_training.py for what many do in one pass, the ledger's transactions

For simulations, where one process stands for all owners. Nothing passes from one site to another but the time it takes:
a site that is refused, has faulty data or breaks in training costs the others nothing.
"""

import logging
import os
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from client.agent import (
    OpenRound,
    WantedSamples,
    close_round,
    ledger_at,
    nominal_size,
    open_round,
    plan_of,
    read_samples,
    refuse,
    sources_of,
    train_alone,
    try_out,
    wanted_samples,
)
from client.charge import charge_for_round
from client.plan import PrivacyPlan
from client.private_training import TrainedRound
from client.run_model import built_model, check_weights, model_with, num_numbers
from client.sample_store import SampleStore, load_many
from client.site import read_site
from shared.batch import Samples
from shared.errors import ManifestError, MotetError
from shared.messages import Refusal, RequestHeader, TrainReply
from shared.privacy.accountant import spent_epsilon
from shared.privacy.ledger import Ledger, Pending, Reservation
from shared.privacy.ledger_totals import History
from shared.privacy.ledger_transaction import OpenLedger

LOADED_AT_ONCE = 32
"""sites whose data is read side by side, and held in memory until it is in the store"""
_OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "adam": 2}
"""numbers kept for each weight from step to step"""

Answer = TrainReply | Refusal
log = logging.getLogger("motet.site")


@dataclass(frozen=True)
class Asked:
    """A round asked of one site; sites that were sent the same share header and weights, the very objects."""

    header: RequestHeader
    weights: dict[str, Tensor]
    site_file: Path
    """the owner's settings, named by the owner's machine and not by the request"""


@dataclass
class _Site:
    """One site on its way through a round."""

    place: int
    asked: Asked
    opened: OpenRound
    history: History | None = None
    plan: PrivacyPlan | None = None
    pending: Pending | None = None
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
    def group(self) -> Hashable:
        """What sites must have in common to be trained in one pass."""
        plan, opened = self.plan, self.opened
        kind = None if plan is None else (plan.unit, plan.clipping, plan.records_per_unit, plan.noise)
        # the very weights, which sites that were sent the same share: comparing their numbers would cost more
        return (opened.key, opened.permitted.modalities, opened.header.round_number, id(self.asked.weights), kind)

    @property
    def num_bytes(self) -> int:
        """Of its weights, their gradients and change, what the optimizer keeps, all in float32, and its rows."""
        numbers = num_numbers(self.opened.shapes) * (
            3 + _OPTIMIZER_STATES[self.opened.permitted.run.training.optimizer]
        )
        rows = self.samples.inputs.values() if self.samples else ()
        return 4 * numbers + sum(values.nbytes for values in rows)


def answer_cohort(asked: Sequence[Asked], *, store: SampleStore, memory_bytes: int) -> Generator[Answer, None, None]:
    """One answer for each request, in their order; all are paid for before the first is made.

    Reservations are released when the last answer leaves, or, if nobody asks for more, those of the answers that left;
    what is never released counts as spent all the same.

    Args:
        asked: any mixture of sites, ledgers and runs.
        store: keeps samples from round to round.
        memory_bytes: about what the weights and rows of sites that are trained together may take.
    """
    answers: dict[int, Answer] = {}
    sites = _reserved(_opened(asked, answers), answers)
    apart, paid = _apart(sites), {site.place: (site.opened.site.ledger, site.reservation) for site in sites}
    left: list[tuple[Path, Reservation]] = []
    place = 0
    try:
        for chunk in _chunks(_loaded(sites, answers, store=store), memory_bytes=memory_bytes):
            _answer(chunk, answers, apart=apart)
            while place in answers:
                answer = answers.pop(place)
                if isinstance(answer, TrainReply):
                    left.append(paid[place])
                place += 1
                if place == len(asked):
                    _release(left)
                    left = []
                yield answer
    finally:
        _release(left)


def _opened(asked: Sequence[Asked], answers: dict[int, Answer]) -> list[_Site]:
    """The sites whose owners permit the round."""
    sites = []
    for place, each in enumerate(asked):
        try:
            opened = open_round(each.header, site=read_site(each.site_file))
            check_weights(each.weights, shapes=opened.shapes)
        except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
            answers[place] = refuse(each.site_file, error)
        else:
            sites.append(_Site(place, each, opened))
    return sites


def _reserved(sites: list[_Site], answers: dict[int, Answer]) -> list[_Site]:
    """The sites whose round is paid for, on the disk; one transaction for each ledger."""
    by_ledger: dict[Path, list[_Site]] = {}
    for site in sites:
        by_ledger.setdefault(site.opened.site.ledger, []).append(site)
    paid = []
    for path, members in by_ledger.items():
        try:
            paid += _charged(ledger_at(path), members, answers)
        except Exception as error:  # noqa: BLE001  a ledger that fails grants nobody anything
            _refuse_all(members, error, answers)
    return sorted(paid, key=lambda site: site.place)


def _charged(ledger: Ledger, sites: list[_Site], answers: dict[int, Answer]) -> list[_Site]:
    """Of the sites of one ledger, those that it grants the round, all in one transaction."""
    private = [site for site in sites if site.opened.permitted.unit is not None]
    if private:
        with ledger.together(write=False) as seen:
            private = _each(private, lambda site: _look_up(site, seen), answers, caught=MotetError)
        # Plans and sums can take seconds: made here first, they wait in memory when the ledger is locked.
        private = _each(private, _prepare, answers)
        sites = [site for site in sites if site.place not in answers]
    with ledger.together() as opened:
        # PRIVACY: a refusal writes nothing, and whatever else goes wrong undoes the rows of all.
        # test_a_refused_site_does_not_stop_the_others, test_a_crash_while_reserving_writes_nothing
        return _each(sites, lambda site: _reserve(site, opened), answers, caught=MotetError)


def _each(
    sites: Sequence[_Site],
    step: Callable[[_Site], None],
    answers: dict[int, Answer],
    *,
    caught: type[Exception] = Exception,
) -> list[_Site]:
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


def _look_up(site: _Site, ledger: OpenLedger) -> None:
    unit = site.opened.permitted.unit
    if unit is not None:
        site.history = ledger.history(site.opened.site.data_set, site.opened.header.run_id, unit=unit)


def _prepare(site: _Site) -> None:
    if site.history is None:
        raise AssertionError("a round is planned before the ledger was asked")
    site.plan = plan = plan_of(site.opened, history=site.history)
    try_out(site.opened, history=site.history)
    spent_epsilon([*site.history.total, plan.uses(1)], delta=plan.delta, accountant=plan.accountant)


def _reserve(site: _Site, ledger: OpenLedger) -> None:
    # PRIVACY: planned from what the ledger says now that nobody else can write: another site of this very round may
    # name the same data set. test_two_sites_of_one_data_set_cannot_both_have_its_last_round
    seen = site.history
    _look_up(site, ledger)
    if site.history is not None and site.history is not seen:
        site.plan = plan_of(site.opened, history=site.history)
    site.pending = ledger.reserve(**charge_for_round(site.opened.header, site=site.opened.site, plan=site.plan))


def _apart(sites: Sequence[_Site]) -> dict[Hashable, str]:
    """Groups whose sites are trained one by one, and why; a run's reasons are told once."""
    from client.cohort_training import why_apart

    members: dict[Hashable, list[_Site]] = {}
    for site in sites:
        members.setdefault(site.group, []).append(site)
    reasons = {}
    for group, (first, *rest) in members.items():
        opened = first.opened
        model, training = built_model(opened.key), opened.permitted.run.training
        why = why_apart(model, names=opened.names, training=training, plan=first.plan)
        if why is None:
            continue
        reasons[group] = why
        _tell(opened.header.run_id, 1 + len(rest), why)
    return reasons


def _tell(run_id: str, num_sites: int, why: str) -> None:
    if (run_id, why) not in _told:
        _told.add((run_id, why))
        log.info("%d sites are trained one by one: %s", num_sites, why)


_told: set[tuple[str, str]] = set()


def _loaded(sites: Sequence[_Site], answers: dict[int, Answer], *, store: SampleStore) -> Iterator[_Site]:
    """Each paid site, in order, with its samples; a site that has none has its refusal."""
    for start in range(0, len(sites), LOADED_AT_ONCE):
        some = sites[start : start + LOADED_AT_ONCE]
        keys, found = dict[int, WantedSamples](), dict[int, Samples | Exception]()
        for site in some:
            try:
                keys[site.place] = wanted_samples(site.opened.permitted, site=site.opened.site)
                known = store.get(keys[site.place])
            except Exception as error:  # noqa: BLE001  one site's fault is its own answer
                found[site.place] = error
            else:
                if known is not None:
                    found[site.place] = known
        missing = [site for site in some if site.place not in found]
        # PRIVACY: only of sites whose cost is on the disk. test_every_cost_of_a_cohort_is_on_disk_before_data_is_read
        readers = [partial(_read, site.reservation, keys[site.place]) for site in missing]
        for site, read in zip(missing, load_many(readers, workers=os.cpu_count() or 1), strict=True):
            found[site.place] = read if isinstance(read, Exception) else store.put(keys[site.place], read)
        for site in some:
            samples = found[site.place]
            if isinstance(samples, Exception):
                answers[site.place] = _unreadable(site, samples)
            else:
                site.samples = samples
                yield site


def _read(_paid: Reservation, wanted: WantedSamples) -> Samples:
    return read_samples(wanted)


def _unreadable(site: _Site, error: Exception) -> Refusal:
    """The refusal of a site whose data cannot be had; its round is given back where its owner's own check says so."""
    if isinstance(error, ManifestError):
        try:
            # PRIVACY: before any mechanism ran, and for nothing else. test_only_faulty_data_of_a_cohort_is_given_back
            ledger_at(site.opened.site.ledger).void(site.reservation)
        except MotetError as failure:
            error = failure
    return refuse(site.asked.site_file, error)


def _chunks(sites: Iterator[_Site], *, memory_bytes: int) -> Iterator[list[_Site]]:
    """Neighbours that fit the memory together, at least one; the last chunk may be empty."""
    chunk, num_bytes = list[_Site](), 0
    for site in sites:
        if chunk and num_bytes + site.num_bytes > memory_bytes:
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(site)
        num_bytes += site.num_bytes
    yield chunk


def _answer(chunk: Sequence[_Site], answers: dict[int, Answer], *, apart: Mapping[Hashable, str]) -> None:
    """Trains a chunk, those that can share a pass together, and notes what leaves of each."""
    groups: dict[Hashable, list[_Site]] = {}
    for site in chunk:
        groups.setdefault(site.group, []).append(site)
    for name, sites in groups.items():
        if name in apart or len(sites) == 1:
            _each(sites, partial(_answer_alone, answers=answers), answers)
        else:
            _answer_together(sites, answers)
    for site in chunk:
        site.samples = None


def _answer_alone(site: _Site, *, answers: dict[int, Answer]) -> None:
    trained = train_alone(site.opened, site.asked.weights, _samples(site), plan=site.plan)
    _close(site, trained, answers)


def _answer_together(sites: Sequence[_Site], answers: dict[int, Answer]) -> None:
    from client.cohort_training import Member, train_cohort

    opened, run = sites[0].opened, sites[0].opened.permitted.run
    try:
        members = []
        for site in sites:
            noise, sampling = sources_of(site.opened, plan=site.plan)
            size = nominal_size(site.opened, plan=site.plan)
            members.append(Member(_samples(site), site.plan, size, noise, sampling))
        trained = train_cohort(
            model_with(opened.key, sites[0].asked.weights),
            members,
            names=opened.names,
            training=run.training,
            round_number=opened.header.round_number,
            rounds=run.federation.rounds,
            modality_dropout=run.model.modality_dropout,
        )
        results = {site.place: result for site, result in zip(sites, trained, strict=True)}
    except Exception as error:  # noqa: BLE001  what was paid for stays spent, and the rest of the round goes on
        _refuse_all(sites, error, answers)
    else:
        _each(sites, lambda site: _close(site, results.pop(site.place), answers), answers)


def _samples(site: _Site) -> Samples:
    if site.samples is None:
        raise AssertionError("a site is trained before its samples are there")
    return site.samples


def _refuse_all(sites: Sequence[_Site], error: Exception, answers: dict[int, Answer]) -> None:
    """One refusal for all of them that have no answer, told once."""
    left = [site for site in sites if site.place not in answers]
    if left:
        told = refuse(left[0].asked.site_file, error)
        log.error("the same holds for %d more sites", len(left) - 1)
        answers.update({site.place: told for site in left})


def _close(site: _Site, trained: TrainedRound, answers: dict[int, Answer]) -> None:
    answers[site.place] = close_round(
        site.opened, trained, plan=site.plan, history=site.history, reservation=site.reservation
    )


def _release(left: Sequence[tuple[Path, Reservation]]) -> None:
    """Notes in each ledger what has left; where that fails the rows stay as they are, and count all the same."""
    by_ledger: dict[Path, list[Reservation]] = {}
    for path, reservation in left:
        by_ledger.setdefault(path, []).append(reservation)
    for path, reservations in by_ledger.items():
        try:
            with ledger_at(path).together() as opened:
                for reservation in reservations:
                    opened.release(reservation)
        except MotetError as error:
            log.error("%s: %d rows stay reserved, which counts as spent: %s", path, len(reservations), error)
