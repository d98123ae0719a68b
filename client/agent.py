"""Agent: the one door to an owner's data, budget and model; whatever arrives, this decides what leaves.

in        a request from the network and the path of the owner's own settings
out       a protected update with public numbers, noisy counts, or a refusal that is a code and nothing else
relies on permission.py for what the owner allows, and on charge.py for the cost, on disk before a file is opened
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from client.bounded import Bounded, bounded
from client.charge import (
    as_counts,
    charge_for_counts,
    charge_for_round,
    plan_counts,
    plan_round,
    reply_header,
    statement,
)
from client.memory import GIB, LastOfEach, refuse_too_much_memory
from client.open_round import OpenRound, nominal_size, open_round, permitted_here, source_of, sources_of
from client.paid_once import forgotten_if_it_fails, history_without, still_paid
from client.pairs import tell_of_no_pairs
from client.passed import note_of
from client.permission import Permitted
from client.personal import Left, keep_own, left_rounds, own_weights, tell_what_own_is_worth
from client.plan import PrivacyPlan
from client.private_training import TrainedRound, train_round
from client.resident.answers import NO_ANSWERS, Answers, Case
from client.run_model import RunKey, key_of, model_with
from client.site import SiteConfig, read_site
from client.statistics import noisy_counts
from client.unchanged import Unchanged
from shared.batch import Samples
from shared.dataset import load_samples
from shared.errors import ManifestError, MotetError, PermissionRefused
from shared.keys import read_private, sign
from shared.manifest import find_manifest
from shared.messages import (
    NOT_ACCEPTED,
    PROTOCOL_VERSION,
    Hello,
    HelloRequest,
    Refusal,
    RequestHeader,
    Shapes,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
)
from shared.privacy.ledger import Ledger, Reservation
from shared.privacy.ledger_totals import History
from shared.privacy.ledger_transaction import NO_PROTECTION
from shared.targets import answers_to
from shared.version import VERSION

ReadWeights = Callable[[Shapes], dict[str, Tensor]]
log = logging.getLogger("motet.site")


def answer_hello(site_file: Path, *, asked: HelloRequest | None = None) -> Hello | Refusal:
    """What the owner's settings say is public about the site, signed where the site has a key.

    Args:
        asked: the server's question, with what is to be signed; without one nothing is.
    """
    try:
        site = read_site(site_file)
        if asked is not None and asked.not_accepted is not None:
            # to be read by the owner: a site that is not let in would wait in silence
            log.error("%s: the server did not accept this site: %s", site.name, NOT_ACCEPTED[asked.not_accepted])
            return Refusal(asked.not_accepted)
        hello = Hello(
            protocol_version=PROTOCOL_VERSION,
            version=VERSION,
            site=site.name,
            modalities=site.modalities,
            nominal_size=site.nominal_units(site.privacy.unit),
            nominal_modality_sizes=site.nominal_modality_sizes,
            tasks=site.tasks,
            frozen=site.frozen,
        )
        if asked is None or site.agent.key is None:
            return hello
        return hello.model_copy(
            update={"signature": sign(read_private(site.agent.key), hello.signed_text(asked.nonce))}
        )
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
        return refuse(site_file, error)


def answer_statistics(
    header: StatisticsHeader, *, site_file: Path, answers: Answers = NO_ANSWERS
) -> StatisticsReply | Refusal:
    """Noisy counts of the site's records or subjects, paid for like a round; or a refusal, never an exception.

    Args:
        header: what is asked.
        site_file: the owner's settings, named by the owner's machine and not by the request.
        answers: as in `answer_train`.
    """
    try:
        return _count(header, read_site(site_file), answers=answers)
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
        return refuse(site_file, error)


def answer_train(
    header: RequestHeader, read_weights: ReadWeights, *, site_file: Path, answers: Answers = NO_ANSWERS
) -> TrainReply | Refusal:
    """A protected update for one round, or a refusal; never an exception, whose text could carry data away.

    Args:
        header: what is asked.
        read_weights: decodes the request's weights once it is known which ones, in which shapes, are expected.
        site_file: the owner's settings, named by the owner's machine and not by the request.
        answers: where the site agent keeps what it has let out, so that an identical request is charged once.
    """
    try:
        return _train(header, read_weights, read_site(site_file), answers=answers)
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
        return refuse(site_file, error)


def plan_of(opened: OpenRound, *, history: History) -> PrivacyPlan:
    """How the site protects what it protects itself; for rounds whose `unit` is not None.

    Raises:
        BudgetError, PermissionRefused: as plan_round.
    """
    if opened.permitted.unit is None:
        raise AssertionError("a plan was asked for, and the site protects nothing in this run")
    plan = plan_round(opened.header, unit=opened.permitted.unit, site=opened.site, history=history)
    return plan if opened.clip_norm is None else replace(plan, clip_norm=opened.clip_norm)


def try_out(opened: OpenRound, *, history: History) -> None:
    """The training code of a private round is tried out on made-up rows, unless it has passed.

    Raises:
        ModelError: it does not keep what the accountant assumes.
    """
    _preflight(opened.permitted, site=opened.site, run_id=opened.header.run_id, is_first=not history.num_rounds)


def train_alone(
    opened: OpenRound, weights: Mapping[str, Tensor], samples: Samples, *, plan: PrivacyPlan | None, left: Left = None
) -> TrainedRound:
    """One round of training of one site, with random numbers of its own, and its own weights; `left`: `own_weights`."""
    run, (noise, sampling) = opened.permitted.run, sources_of(opened, plan=plan)
    begun = {**weights, **(own_weights(opened, left=left) if opened.shapes.personal else {})}
    trained = train_round(
        model_with(opened.key, begun),
        samples,
        names=opened.names,
        training=run.training,
        plan=plan,
        nominal_size=nominal_size(opened, plan=plan),
        round_number=opened.header.round_number,
        rounds=run.federation.rounds,
        modality_dropout=run.model.modality_dropout,
        noise=noise,
        sampling=sampling,
    )
    if opened.shapes.personal:
        own = {name: begun[name] + trained.update[name] for name in opened.shapes.personal}
        keep_own(opened, own, left=left)
        if opened.header.round_number == run.federation.rounds:
            tell_what_own_is_worth(opened, weights, samples, own=own)
    return trained


def bounded_updates(opened: OpenRound, trained: Sequence[TrainedRound]) -> list[Bounded]:
    """What rounds of training gave, as it may leave: of the site, or of others that were asked the same."""
    if personal := opened.shapes.personal:
        # PRIVACY: noised like the rest, and the site's own all the same. test_a_reply_holds_nothing_personal
        trained = [replace(each, update=_without(each.update, names=personal)) for each in trained]
    return bounded(trained, central=opened.header.run.central_privacy, clip_norm=opened.site_clip_norm)


def _without(update: Mapping[str, Tensor], *, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: value for name, value in update.items() if name not in names}


def close_round(
    opened: OpenRound,
    leaving: Bounded,
    *,
    plan: PrivacyPlan | None,
    history: History | None,
    reservation: Reservation,
) -> TrainReply:
    """The reply of a round that was paid for; whoever sends it releases the reservation."""
    said = None
    if plan is not None and history is not None:
        said = statement(plan, site=opened.site, reservation=reservation, history=history)
    header = reply_header(
        opened.header,
        nominal_size=nominal_size(opened, plan=plan),
        said=said,
        unclipped_share=leaving.unclipped_share,
        is_within=leaving.is_within,
    )
    return TrainReply(header=header, update=leaving.update)


def _count(header: StatisticsHeader, site: SiteConfig, *, answers: Answers) -> StatisticsReply:
    permitted = permitted_here(header, site=site)
    if permitted.unit is None:
        raise PermissionRefused("counts are asked for, and the site protects nothing in this run")
    refuse_too_much_memory(permitted, site=site)
    ledger = answers.ledger(site.ledger, data_set=site.data_set, open_ledger=ledger_at)
    case = answers.case(header, data_set=site.data_set, weights={})
    standing = case.standing(ledger)
    if isinstance(standing, StatisticsReply):
        return standing
    paid = standing if isinstance(standing, Reservation) else None
    history = history_without(paid, ledger.history(site.data_set, header.run_id, unit=permitted.unit))
    plan, use = plan_counts(header, unit=permitted.unit, site=site, history=history)
    # PRIVACY: the cost is on disk before a file of the owner's is opened. test_counts_are_paid_for_before_data_is_read
    reservation = still_paid(paid, use) or ledger.reserve(**charge_for_counts(header, site=site, plan=plan, use=use))
    case.note(reservation)
    with forgotten_if_it_fails(case):
        counts = noisy_counts(
            _load(permitted, site=site, ledger=ledger, reservation=reservation, case=case),
            unit=permitted.unit,
            schema=permitted.run.data,
            noise_multiplier=use.noise_multiplier,
            kind=plan.noise,
            source=source_of(header.run, site=site, purpose="0/counts", is_secret=True),
        )
        said = statement(as_counts(plan, use=use), site=site, reservation=reservation, history=history)
    reply = StatisticsReply(protocol_version=PROTOCOL_VERSION, run_id=header.run_id, counts=counts, privacy=said)
    case.keep(reply)
    ledger.release(reservation)
    return reply


def _train(header: RequestHeader, read_weights: ReadWeights, site: SiteConfig, *, answers: Answers) -> TrainReply:
    opened = open_round(header, site=site)
    refuse_too_much_memory(opened.permitted, site=site)
    weights = read_weights(opened.shapes.sent)
    ledger, plan, history = answers.ledger(site.ledger, data_set=site.data_set, open_ledger=ledger_at), None, None
    case = answers.case(header, data_set=site.data_set, weights=weights)
    standing = case.standing(ledger)
    if isinstance(standing, TrainReply):
        return standing
    paid = standing if isinstance(standing, Reservation) else None
    if opened.permitted.unit is not None:
        history = history_without(paid, ledger.history(site.data_set, header.run_id, unit=opened.permitted.unit))
        plan = plan_of(opened, history=history)
        try_out(opened, history=history)
    # PRIVACY: the cost is on disk before a file of the owner's is opened. test_cost_is_on_disk_before_data_is_read
    reservation = still_paid(paid, plan.uses(1) if plan else NO_PROTECTION) or ledger.reserve(
        **charge_for_round(header, site=site, plan=plan)
    )
    case.note(reservation)
    with forgotten_if_it_fails(case):
        samples = _load(opened.permitted, site=site, ledger=ledger, reservation=reservation, case=case)
        trained = train_alone(opened, weights, samples, plan=plan, left=left_rounds(opened, ledger))
        (leaving,) = bounded_updates(opened, [trained])
        reply = close_round(opened, leaving, plan=plan, history=history, reservation=reservation)
    # PRIVACY: whole and on the disk before it is released, and released before it is sent.
    # test_a_killed_agent_charges_an_identical_request_once
    case.keep(reply)
    ledger.release(reservation)
    return reply


def _preflight(permitted: Permitted, *, site: SiteConfig, run_id: str, is_first: bool) -> None:
    """The training code is tried out on made-up rows: in a run's first round, and when its settings are others since.

    What has passed is noted in the owner's cache, because Flower may start a process for each message.
    """
    run, privacy = permitted.run, permitted.run.local_privacy
    note = note_of(site.cache, run_id=run_id, unit=permitted.unit, key=key_of(run))
    # PRIVACY: a sound model in round 1 says nothing about another one in round 2, under the same run's name.
    # test_settings_that_change_in_the_middle_of_a_run_are_tried_out_anew
    if not is_first and note.is_there():
        return
    from client.preflight import assert_sound  # tests of chance, which no other request needs

    if privacy is not None and privacy.unit != permitted.unit:
        run = run.model_copy(update={"privacy": privacy.model_copy(update={"unit": permitted.unit})})
    # PRIVACY: code that does not protect is found before it sees a record. test_unsound_training_costs_nothing
    assert_sound(run)
    note.make()


def _load(permitted: Permitted, *, site: SiteConfig, ledger: Ledger, reservation: Reservation, case: Case) -> Samples:
    """The site's samples; where the owner's own check finds faults nothing has left, and the reservation is given back.

    Whatever else goes wrong may lie in settings of the server's meeting one record: that stays spent, or a server could
    ask one such question after the other for nothing.
    """
    try:
        return _loaded_samples(wanted_samples(permitted, site=site))
    except ManifestError:
        # PRIVACY: before any mechanism ran, and never later. test_only_data_that_cannot_be_read_is_given_back
        case.forget()
        ledger.void(reservation)
        raise


@lru_cache(maxsize=65536)
def ledger_at(path: Path) -> Ledger:
    """The owner's ledger; looked through for damage once a process, opened anew for every reservation."""
    return Ledger(path)


@dataclass(frozen=True, slots=True)
class WantedSamples:
    """All that decides which samples a site trains on; a key."""

    key: RunKey
    data: Path
    cache: Path
    most_cache_bytes: int
    modalities: tuple[str, ...]
    tasks: tuple[str, ...] | None
    needs_subjects: bool
    stamp: tuple[int, int]
    """of the manifest: another one, when it has changed since"""


def wanted_samples(permitted: Permitted, *, site: SiteConfig) -> WantedSamples:
    """What a round needs, whether or not it was read before; no row of it is looked at.

    Raises:
        ManifestError: there is no manifest.
    """
    manifest = os.stat(f"{site.data}{os.sep}{_manifest_name(site.data)}")  # noqa: PTH116  half the time
    return WantedSamples(
        key_of(permitted.run),
        site.data,
        site.cache,
        int(site.limits.cache_gib * GIB),
        permitted.modalities,
        permitted.tasks,
        permitted.unit == "subject",
        (manifest.st_mtime_ns, manifest.st_size),
    )


def read_samples(wanted: WantedSamples) -> Samples:
    """The samples, read from the owner's folder; only under a reservation that is paid.

    Raises:
        ManifestError: the folder has faults, all of which are named; nothing was loaded.
    """
    samples = load_samples(
        wanted.data,
        run=wanted.key.run,
        cache=wanted.cache,
        modalities=wanted.modalities,
        needs_subjects=wanted.needs_subjects,
        most_cache_bytes=wanted.most_cache_bytes,
    )
    tell_of_no_pairs(wanted.data, samples, run=wanted.key.run)
    if wanted.tasks is None:
        return samples
    # an answer that may stand there all the same would be learned from in what all tasks share
    kept = answers_to(wanted.tasks, samples.targets, schema=wanted.key.run.data)
    return replace(samples, targets=kept)


_manifest_name = Unchanged(lambda folder: find_manifest(folder).name)


def _read_anew(wanted: WantedSamples) -> Samples:
    return read_samples(wanted)


# kept from round to round, and read again when the manifest has changed
_loaded_samples = LastOfEach(_read_anew, place=lambda wanted: wanted.data)


def refuse(site_file: Path, error: Exception) -> Refusal:
    """Tell the owner everything and the server a code."""
    log.error("%s: %s", site_file, error, exc_info=None if isinstance(error, MotetError) else error)
    return Refusal(error.code if isinstance(error, MotetError) else "internal")
