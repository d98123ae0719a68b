"""Cohort: many sites' rounds answered together, each granted, paid for and protected as if it were alone.

in        the requests of one round, decoded, and the path of each owner's settings
out       one answer for each, in order: a protected update or a refusal; of a few sites at a time
relies on cohort_entry.py for who takes part, cohort_loading.py for data, cohort_training.py for what many do in one
          pass, agent.py for the rest

For simulations, where one process stands for all owners. Nothing passes from one site to another but the time it takes:
a site that is refused, has faulty data or breaks in training costs the others nothing.
"""

import logging
from collections import Counter, deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from client.agent import (
    bounded_updates,
    close_round,
    ledger_at,
    train_alone,
)
from client.arithmetic import PLAIN, Arithmetic
from client.bounded import Bounded
from client.cohort_entry import Answer, Asked, CohortSite, each_of, opened_sites, refuse_all, reserved_sites
from client.cohort_loading import loaded_sites
from client.open_round import nominal_size, sources_of
from client.run_model import built_model, model_with
from client.sample_store import SampleStore
from shared.batch import Samples
from shared.errors import ModelError, MotetError
from shared.messages import TrainReply
from shared.privacy.ledger import Reservation

__all__ = ["Asked", "answer_cohort"]

ENOUGH_SITES, ENOUGH_BYTES = 64, 2**28
"""trained together, also where more would fit: some pieces for each thread; a pass of more is no faster by site, and
its updates are all held until the last of them was read"""

log = logging.getLogger("motet.site")


def answer_cohort(
    asked: Sequence[Asked], *, store: SampleStore, memory_bytes: int, arithmetic: Arithmetic = PLAIN
) -> Generator[Answer, None, None]:
    """One answer for each request, in their order; all are paid for before the first is made.

    Reservations are released when the last answer leaves, or, if nobody asks for more, those of the answers that left;
    what is never released counts as spent all the same.

    Args:
        asked: any mixture of sites, ledgers and runs.
        store: keeps samples from round to round.
        memory_bytes: about what the weights and rows of sites that are trained together may take.
        arithmetic: of sites that are trained together; one that is trained by itself is so on the processor.
    """
    answers: dict[int, Answer] = {}
    sites = deque(reserved_sites(opened_sites(asked, answers), answers))
    apart = _apart(sites)
    paid: dict[int, tuple[Path, Reservation]] = {}
    """of the answers that are there and have not left"""
    left: list[tuple[Path, Reservation]] = []
    place = 0
    try:
        for chunk in _chunks(loaded_sites(sites, answers, store=store), memory_bytes=memory_bytes):
            _answer(chunk, answers, apart=apart, arithmetic=arithmetic)
            paid.update({site.place: (site.opened.site.ledger, site.reservation) for site in chunk})
            chunk.clear()
            store.relieve()
            while place in answers:
                answer, payment = answers.pop(place), paid.pop(place, None)
                if isinstance(answer, TrainReply) and payment is not None:
                    left.append(payment)
                place += 1
                if place == len(asked):
                    _release(left)
                    left = []
                yield answer
    finally:
        _release(left)


def _apart(sites: Iterable[CohortSite]) -> dict[int, str]:
    """Numbers the groups of sites; those whose sites are trained one by one, and why: a run's reasons are told once."""
    from client.cohort_training import why_apart

    numbers: dict[Hashable, int] = {}
    firsts, sizes = list[CohortSite](), Counter[int]()
    for site in sites:
        site.group = numbers.setdefault(site.kind, len(numbers))
        sizes[site.group] += 1
        if site.group == len(firsts):
            firsts.append(site)
    reasons = {}
    for number, first in enumerate(firsts):
        opened = first.opened
        model, training = built_model(opened.key), opened.permitted.run.training
        why = why_apart(model, names=opened.names, training=training, plan=first.plan)
        if opened.shapes.personal:
            why = "each begins with weights of its own, which a pass of many does not"
        if why is not None:
            reasons[number] = why
            _tell(opened.header.run_id, sizes[number], why)
    return reasons


def _tell(run_id: str, num_sites: int, why: str) -> None:
    if (run_id, why) not in _told:
        _told.add((run_id, why))
        log.info("%d sites are trained one by one: %s", num_sites, why)


_told: set[tuple[str, str]] = set()


def _chunks(sites: Iterator[CohortSite], *, memory_bytes: int) -> Iterator[list[CohortSite]]:
    """Neighbours that fit the memory together, at least one, and not many more than are enough.

    The last chunk may be empty.
    """
    chunk, num_bytes = list[CohortSite](), 0
    for site in sites:
        # asked once: it goes through the site's tensors
        of_site = site.num_bytes
        is_enough = len(chunk) >= ENOUGH_SITES and num_bytes + of_site > ENOUGH_BYTES
        if chunk and (is_enough or num_bytes + of_site > memory_bytes):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(site)
        num_bytes += of_site
    yield chunk


def _answer(
    chunk: Sequence[CohortSite], answers: dict[int, Answer], *, apart: Mapping[int, str], arithmetic: Arithmetic
) -> None:
    """Trains a chunk, those that can share a pass together, and notes what leaves of each."""
    groups: dict[int, list[CohortSite]] = {}
    for site in chunk:
        groups.setdefault(site.group, []).append(site)
    for number, sites in groups.items():
        if number in apart or len(sites) == 1:
            each_of(sites, partial(_answer_alone, answers=answers), answers)
        else:
            _answer_together(sites, answers, arithmetic=arithmetic)
    for site in chunk:
        site.samples = None


def _answer_alone(site: CohortSite, *, answers: dict[int, Answer]) -> None:
    trained = train_alone(site.opened, site.asked.weights, _samples(site), plan=site.plan)
    (leaving,) = bounded_updates(site.opened, [trained])
    _close(site, leaving, answers)


def _answer_together(sites: Sequence[CohortSite], answers: dict[int, Answer], *, arithmetic: Arithmetic) -> None:
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
            arithmetic=arithmetic,
        )
        leaving = bounded_updates(opened, trained)
        results = {site.place: each for site, each in zip(sites, leaving, strict=True)}
    except ModelError as error:
        # a weight used from outside its layer, which only a pass shows; nothing of that pass leaves
        _tell(opened.header.run_id, len(sites), str(error))
        each_of(sites, partial(_answer_alone, answers=answers), answers)
    except Exception as error:  # noqa: BLE001  what was paid for stays spent, and the rest of the round goes on
        refuse_all(sites, error, answers)
    else:
        each_of(sites, lambda site: _close(site, results.pop(site.place), answers), answers)


def _samples(site: CohortSite) -> Samples:
    if site.samples is None:
        raise AssertionError("a site is trained before its samples are there")
    return site.samples


def _close(site: CohortSite, leaving: Bounded, answers: dict[int, Answer]) -> None:
    answers[site.place] = close_round(
        site.opened, leaving, plan=site.plan, history=site.history, reservation=site.reservation
    )


def _release(left: Sequence[tuple[Path, Reservation]]) -> None:
    """Notes in each ledger what has left; where that fails the rows stay as they are, and count all the same."""
    by_ledger: dict[Path, list[Reservation]] = {}
    for path, reservation in left:
        by_ledger.setdefault(path, []).append(reservation)
    for path, reservations in by_ledger.items():
        try:
            with ledger_at(path).together() as opened:
                opened.release(*reservations)
        except MotetError as error:
            log.error("%s: %d rows stay reserved, which counts as spent: %s", path, len(reservations), error)
