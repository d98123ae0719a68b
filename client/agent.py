"""Agent: the one door to an owner's data, budget and model; whatever arrives, this decides what leaves.

in        a request from the network and the path of the owner's own settings
out       a protected update with public numbers, noisy counts, or a refusal that is a code and nothing else
relies on permission.py for what the owner allows, and on charge.py for the cost, on disk before a file is opened
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from client.charge import as_counts, history_of, plan_counts, plan_round, reserve_counts, reserve_round, statement
from client.permission import Permitted, clip_norm_of_round, permit, site_clip_norm_of_round
from client.plan import PrivacyPlan
from client.private_training import TrainedRound, train_round
from client.site import SiteConfig, read_site
from client.statistics import noisy_counts
from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.errors import ManifestError, MotetError, PermissionRefused, WireError
from shared.manifest import find_manifest
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    Refusal,
    ReplyHeader,
    RequestHeader,
    StatisticsHeader,
    StatisticsReply,
    TrainReply,
    TrainRequest,
)
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.model.registry import load_extensions
from shared.privacy.ledger import Ledger, Reservation
from shared.privacy.mechanism import clip_update
from shared.privacy.noise import RandomSource, reproducible_source, secret_source

Shapes = dict[str, tuple[int, ...]]
log = logging.getLogger("motet.site")


def answer_hello(site_file: Path) -> Hello | Refusal:
    """What the owner's settings say is public about the site."""
    try:
        site = read_site(site_file)
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            site=site.name,
            modalities=site.modalities,
            nominal_size=site.nominal_units(site.privacy.unit),
        )
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
        return _refuse(site_file, error)


def answer_statistics(header: StatisticsHeader, *, site_file: Path) -> StatisticsReply | Refusal:
    """Noisy counts of the site's records or subjects, paid for like a round; or a refusal, never an exception.

    Args:
        header: what is asked.
        site_file: the owner's settings, named by the owner's machine and not by the request.
    """
    try:
        return _count(header, read_site(site_file))
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
        return _refuse(site_file, error)


def answer_train(
    header: RequestHeader, read_weights: Callable[[Shapes], dict[str, Tensor]], *, site_file: Path
) -> TrainReply | Refusal:
    """A protected update for one round, or a refusal; never an exception, whose text could carry data away.

    Args:
        header: what is asked.
        read_weights: decodes the request's weights once it is known which ones, in which shapes, are expected.
        site_file: the owner's settings, named by the owner's machine and not by the request.
    """
    try:
        return _train(header, read_weights, read_site(site_file))
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not travel
        return _refuse(site_file, error)


def _count(header: StatisticsHeader, site: SiteConfig) -> StatisticsReply:
    permitted = _permitted(header, site=site)
    if permitted.unit is None:
        raise PermissionRefused("counts are asked for, and the site protects nothing in this run")
    ledger = _ledger(site.ledger)
    history = history_of(ledger, site=site, run_id=header.run_id, unit=permitted.unit)
    plan, use = plan_counts(header, unit=permitted.unit, site=site, history=history)
    # PRIVACY: the cost is on disk before a file of the owner's is opened. test_counts_are_paid_for_before_data_is_read
    reservation = reserve_counts(header, site=site, ledger=ledger, plan=plan, use=use)
    counts = noisy_counts(
        _load(permitted, site=site, ledger=ledger, reservation=reservation),
        unit=permitted.unit,
        num_classes=len(permitted.run.data.labels) or 1,
        noise_multiplier=use.noise_multiplier,
        kind=plan.noise,
        source=_source(header.run, site=site, purpose="0/counts", is_secret=True),
    )
    ledger.release(reservation)
    said = statement(as_counts(plan, use=use), site=site, reservation=reservation, history=history)
    return StatisticsReply(protocol_version=PROTOCOL_VERSION, run_id=header.run_id, counts=counts, privacy=said)


def _train(header: RequestHeader, read_weights: Callable[[Shapes], dict[str, Tensor]], site: SiteConfig) -> TrainReply:
    permitted = _permitted(header, site=site)
    clip_norm = clip_norm_of_round(header)
    site_clip_norm = site_clip_norm_of_round(header)
    model = _model(permitted.run, max_parameters=site.max_parameters)
    parameters = dict(model.named_parameters())
    names = trainable_names(model, permitted.modalities)
    request = TrainRequest(header, read_weights({name: tuple(parameters[name].shape) for name in names}))

    ledger, plan, history = _ledger(site.ledger), None, None
    if permitted.unit is not None:
        history = history_of(ledger, site=site, run_id=header.run_id, unit=permitted.unit)
        plan = plan_round(header, unit=permitted.unit, site=site, history=history)
        plan = plan if clip_norm is None else replace(plan, clip_norm=clip_norm)
        _preflight(permitted, site=site, run_id=header.run_id, is_first=not history.rounds)
    # PRIVACY: the cost is on disk before a file of the owner's is opened. test_cost_is_on_disk_before_data_is_read
    reservation = reserve_round(header, site=site, ledger=ledger, plan=plan)
    samples = _load(permitted, site=site, ledger=ledger, reservation=reservation)
    with torch.no_grad():
        for name, value in request.weights.items():
            parameters[name].copy_(value)
    trained = _trained(model, samples, names=names, header=header, run=permitted.run, plan=plan, site=site)
    update, is_within = trained.update, None
    if site_clip_norm is not None and (central := header.run.central_privacy) is not None:
        # PRIVACY: what a site adds to the sum is bounded here and again at the server.
        # test_the_whole_update_is_clipped_before_it_leaves
        per_layer = central.clipping == "per-layer"
        update, was_within = clip_update(update, clip_norm=site_clip_norm, per_layer=per_layer)
        is_within = was_within if central.clipping == "adaptive" else None
    ledger.release(reservation)
    said = None
    if plan is not None and history is not None:
        said = statement(plan, site=site, reservation=reservation, history=history)
    reply = ReplyHeader(
        protocol_version=PROTOCOL_VERSION,
        run_id=header.run_id,
        round_number=header.round_number,
        nominal_size=_nominal_size(plan, site=site),
        privacy=said,
        unclipped_share=trained.unclipped_share,
        is_within_clip=is_within,
    )
    return TrainReply(header=reply, update=update)


def _permitted(header: RequestHeader | StatisticsHeader, *, site: SiteConfig) -> Permitted:
    if header.protocol_version != PROTOCOL_VERSION:
        raise WireError(
            f"protocol_version is {header.protocol_version}; allowed: {PROTOCOL_VERSION}; install the same Motet"
        )
    permitted = permit(header.run, site=site)
    for part in site.parts:
        _load_part(part)
    return permitted


def _preflight(permitted: Permitted, *, site: SiteConfig, run_id: str, is_first: bool) -> None:
    """The training code is tried out on made-up rows: in a run's first round, and when its settings are others since.

    What has passed is noted in the owner's cache, because Flower may start a process for each message.
    """
    run, privacy = permitted.run, permitted.run.local_privacy
    passed = hashlib.sha256(f"{run_id} {permitted.unit} {run.digest}".encode()).hexdigest()
    note = site.cache / "preflight" / passed
    # PRIVACY: a sound model in round 1 says nothing about another one in round 2, under the same run's name.
    # test_settings_that_change_in_the_middle_of_a_run_are_tried_out_anew
    if not is_first and note.exists():
        return
    from client.preflight import assert_sound  # tests of chance, which no other request needs

    if privacy is not None and privacy.unit != permitted.unit:
        run = run.model_copy(update={"privacy": privacy.model_copy(update={"unit": permitted.unit})})
    # PRIVACY: code that does not protect is found before it sees a record. test_unsound_training_costs_nothing
    assert_sound(run)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()


def _load(permitted: Permitted, *, site: SiteConfig, ledger: Ledger, reservation: Reservation) -> Samples:
    """The site's samples; where the owner's own check finds faults nothing has left, and the reservation is given back.

    Whatever else goes wrong may lie in settings of the server's meeting one record: that stays spent, or a server could
    ask one such question after the other for nothing.
    """
    try:
        return _samples(permitted, site=site)
    except ManifestError:
        # PRIVACY: before any mechanism ran, and never later. test_only_data_that_cannot_be_read_is_given_back
        ledger.void(reservation)
        raise


def _trained(
    model: MultimodalModel,
    samples: Samples,
    *,
    names: tuple[str, ...],
    header: RequestHeader,
    run: RunConfig,
    plan: PrivacyPlan | None,
    site: SiteConfig,
) -> TrainedRound:
    """One round of local training, with random numbers of its own."""
    noise, sampling = (
        _source(run, site=site, purpose=f"{header.round_number}/{use}", is_secret=plan is not None)
        for use in ("noise", "sampling")
    )
    return train_round(
        model,
        samples,
        names=names,
        training=run.training,
        plan=plan,
        nominal_size=_nominal_size(plan, site=site),
        round_number=header.round_number,
        rounds=run.federation.rounds,
        modality_dropout=run.model.modality_dropout,
        noise=noise,
        sampling=sampling,
    )


def _nominal_size(plan: PrivacyPlan | None, *, site: SiteConfig) -> int:
    """The public number that sampling follows from: of what is protected, or of records."""
    return site.nominal_units(plan.unit if plan else "record")


def _source(run: RunConfig, *, site: SiteConfig, purpose: str, is_secret: bool) -> RandomSource:
    """Random numbers: secret where they protect, from the run's seed only where the owner simulates."""
    # PRIVACY: noise and batches that a seed gives back protect nobody. test_noise_differs_between_equal_runs
    if is_secret and not site.privacy.reproducible_noise:
        return secret_source()
    return reproducible_source(run.seed, purpose=f"{site.name}/{purpose}")


@dataclass(frozen=True)
class _Key:
    """A run's settings as a cache key."""

    digest: str
    run: RunConfig

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.digest == other.digest


@lru_cache(maxsize=1024)
def _ledger(path: Path) -> Ledger:
    """The owner's ledger; looked through for damage once a process, opened anew for every reservation."""
    return Ledger(path)


@lru_cache(maxsize=64)
def _load_part(path: Path) -> None:
    """The owner's own registrations, once a process."""
    load_extensions(path)


def _model(run: RunConfig, *, max_parameters: int) -> MultimodalModel:
    """The run's model, unless it is larger than the owner allows; its size is told before memory is taken."""
    key = _Key(run.digest, run)
    if (size := _num_parameters(key)) > max_parameters:
        raise PermissionRefused(
            f"the run's model has {size:,} parameters; allowed: {max_parameters:,} (max_parameters)"
        )
    return _built_model(key)


@lru_cache(maxsize=2)
def _num_parameters(key: _Key) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(key.run).parameters())


def _samples(permitted: Permitted, *, site: SiteConfig) -> Samples:
    """The site's samples; kept from round to round, and read again when the manifest has changed."""
    manifest = find_manifest(site.data).stat()
    return _loaded_samples(
        _Key(permitted.run.digest, permitted.run),
        site.data,
        site.cache,
        permitted.modalities,
        permitted.unit == "subject",
        (manifest.st_mtime_ns, manifest.st_size),
    )


@lru_cache(maxsize=2)
def _built_model(key: _Key) -> MultimodalModel:
    return build_model(key.run)


@lru_cache(maxsize=1024)
def _loaded_samples(
    key: _Key,
    data: Path,
    cache: Path,
    modalities: tuple[str, ...],
    needs_subjects: bool,
    _manifest_stamp: tuple[int, int],
) -> Samples:
    return load_samples(data, run=key.run, cache=cache, modalities=modalities, needs_subjects=needs_subjects)


def _refuse(site_file: Path, error: Exception) -> Refusal:
    """Tell the owner everything and the server a code."""
    log.error("%s: %s", site_file, error, exc_info=None if isinstance(error, MotetError) else error)
    return Refusal(error.code if isinstance(error, MotetError) else "internal")
