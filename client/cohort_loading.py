"""Cohort loading: the data of sites whose round is paid for; the next ones' is read while the ones before them train.

in        sites of cohort_entry.py, each with its reservation
out       the same sites with their samples, in order, from the store or from their folders
relies on readers that spend their time in files and decoders, which let other threads run
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from client.agent import WantedSamples, ledger_at, read_samples, refuse, wanted_samples
from client.cohort_entry import Answer, CohortSite
from client.sample_store import SampleStore
from shared.batch import Samples
from shared.errors import ManifestError, MotetError
from shared.messages import Refusal
from shared.privacy.ledger import Reservation

LOADED_AT_ONCE = 32
"""sites whose data is read side by side; that of twice as many is held in memory until it is in the store"""


@dataclass
class _Group:
    """Some neighbours: what the store had, what could not be had, and what is being read."""

    sites: list[CohortSite]
    found: dict[int, Samples | Exception] = field(default_factory=dict)
    reading: dict[int, tuple[WantedSamples, Future[Samples | Exception]]] = field(default_factory=dict)


def loaded_sites(sites: deque[CohortSite], answers: dict[int, Answer], *, store: SampleStore) -> Iterator[CohortSite]:
    """Each paid site, in order, with its samples; a site that has none has its refusal. Sites leave the queue."""
    # threads are started for what the store does not have, which is nothing after a run's first round
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="motet-load")
    # PRIVACY: torch has one generator for all threads: an owner's part that reads may set what one that trains draws
    # from. test_nothing_is_read_while_an_owners_part_trains
    ahead = not any(site.opened.site.parts for site in sites)
    try:
        groups = deque[_Group]()
        while sites or groups:
            while sites and len(groups) < (2 if ahead else 1):
                groups.append(_started([sites.popleft() for _ in range(min(LOADED_AT_ONCE, len(sites)))], pool, store))
            group = groups.popleft()
            if not ahead:
                wait([future for _, future in group.reading.values()])
            while group.sites:
                site = group.sites.pop(0)
                samples = _samples_of(site, group, store)
                if isinstance(samples, Exception):
                    answers[site.place] = _unreadable(site, samples)
                else:
                    site.samples = samples
                    yield site
    finally:
        pool.shutdown(cancel_futures=True)


def _started(sites: list[CohortSite], pool: ThreadPoolExecutor, store: SampleStore) -> _Group:
    group = _Group(sites)
    for site in sites:
        try:
            wanted = wanted_samples(site.opened.permitted, site=site.opened.site)
            known = store.get(wanted)
        except Exception as error:  # noqa: BLE001  one site's fault is its own answer
            group.found[site.place] = error
        else:
            if known is not None:
                group.found[site.place] = known
            else:
                # PRIVACY: only of a site whose cost is on the disk.
                # test_every_cost_of_a_cohort_is_on_disk_before_data_is_read
                group.reading[site.place] = wanted, pool.submit(_read, site.reservation, wanted)
    return group


def _samples_of(site: CohortSite, group: _Group, store: SampleStore) -> Samples | Exception:
    if site.place in group.found:
        return group.found.pop(site.place)
    wanted, future = group.reading.pop(site.place)
    read = future.result()
    return read if isinstance(read, Exception) else _kept(store, wanted, read)


def _kept(store: SampleStore, wanted: WantedSamples, samples: Samples) -> Samples | Exception:
    try:
        return store.put(wanted, samples)
    except Exception as error:  # noqa: BLE001  a full disk is the site's own answer
        return error


def _read(_paid: Reservation, wanted: WantedSamples) -> Samples | Exception:
    try:
        return read_samples(wanted)
    except Exception as error:  # noqa: BLE001  whatever it is, it is this site's alone
        return error


def _unreadable(site: CohortSite, error: Exception) -> Refusal:
    """The refusal of a site whose data cannot be had; its round is given back where its owner's own check says so."""
    if isinstance(error, ManifestError):
        try:
            # PRIVACY: before any mechanism ran, and for nothing else. test_only_faulty_data_of_a_cohort_is_given_back
            ledger_at(site.opened.site.ledger).void(site.reservation)
        except MotetError as failure:
            error = failure
    return refuse(site.asked.site_file, error)
