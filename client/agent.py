"""Agent: the one door to an owner's data, budget and model; whatever arrives, this decides what leaves.

in        a request from the network and the path of the owner's own settings
out       a protected update with public numbers, or a refusal that is a code and nothing else
relies on ledger.py having the cost on disk before dataset.py opens a file
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from shared.privacy.ledger import Ledger
from client.plan import PrivacyPlan, make_plan
from client.private_training import train_round
from client.sampling import reproducible_generator, secret_generator
from client.site import SiteConfig, read_site
from shared.batch import Samples
from shared.card import find_card
from shared.config import DataSchema, RunConfig
from shared.dataset import load_samples
from shared.errors import BudgetError, ConfigError, MotetError, PermissionRefused, WireError
from shared.manifest import find_manifest
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    PrivacyStatement,
    Refusal,
    ReplyHeader,
    RequestHeader,
    TrainReply,
    TrainRequest,
)
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.model.registry import load_extensions

Shapes = dict[str, tuple[int, ...]]
log = logging.getLogger("motet.site")


def answer_hello(site_file: Path) -> Hello | Refusal:
    """What the owner's settings say is public about the site."""
    try:
        site = read_site(site_file)
        return Hello(protocol_version=PROTOCOL_VERSION, site=site.name, modalities=site.modalities)
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


def _train(header: RequestHeader, read_weights: Callable[[Shapes], dict[str, Tensor]], site: SiteConfig) -> TrainReply:
    if header.protocol_version != PROTOCOL_VERSION:
        raise WireError(
            f"protocol_version is {header.protocol_version}; allowed: {PROTOCOL_VERSION}; install the same Motet"
        )
    run = header.run.model_copy(update={"data": _owners_schema(header.run, site=site)})
    modalities = _permitted_modalities(run, site=site)
    for part in site.parts:
        _load_part(part)
    model = _model(run, max_parameters=site.max_parameters)
    names = trainable_names(model, modalities)
    parameters = dict(model.named_parameters())
    request = TrainRequest(header, read_weights({name: tuple(parameters[name].shape) for name in names}))

    ledger = _ledger(site.ledger)
    plan = _plan(header, site=site, ledger=ledger)
    # PRIVACY: the cost is on disk before a file of the owner's is opened. test_cost_is_on_disk_before_data_is_read
    reservation = ledger.reserve(
        data_set=site.data_set,
        unit="record",
        use=plan.uses(1) if plan else None,
        run_id=header.run_id,
        round_number=header.round_number,
        attempt=header.attempt,
        cap_epsilon=site.privacy.epsilon,
        delta=plan.delta if plan else site.privacy.delta,
        accountant=plan.accountant if plan else "pld",
    )
    samples = _samples(run, site.data, site.cache, modalities)
    with torch.no_grad():
        for name, value in request.weights.items():
            parameters[name].copy_(value)
    noise, sampling = _generators(header, site=site, private=plan is not None)
    update = train_round(
        model,
        samples,
        names=names,
        training=run.training,
        plan=plan,
        nominal_size=site.nominal_size,
        round_number=header.round_number,
        rounds=run.federation.rounds,
        modality_dropout=run.model.modality_dropout,
        noise=noise,
        sampling=sampling,
    )
    ledger.release(reservation)
    return TrainReply(
        header=ReplyHeader(
            protocol_version=PROTOCOL_VERSION,
            run_id=header.run_id,
            round_number=header.round_number,
            nominal_size=site.nominal_size,
            privacy=_statement(plan, site=site, epsilon=reservation.epsilon_spent) if plan else None,
            num_examples=len(samples) if site.privacy.share_num_examples else None,
        ),
        update=update,
    )


def _owners_schema(run: RunConfig, *, site: SiteConfig) -> DataSchema:
    """What the owner's own dataset.toml says records look like; the run must say the same.

    Were the server's word taken, each record that breaks it would show in a refusal: a list of labels, or a range of
    ratings, made narrower from round to round would ask the records one exact question after the other.
    """
    card = find_card(site.data)
    if card is None:
        raise ConfigError(
            f"{site.data}: no dataset.toml in it or above it; what records look like is the owner's to say"
        )
    # PRIVACY: no word of the server's decides which records are faults. test_a_run_with_another_schema_is_refused
    agreed = {"task", "labels", "rating_range", "modalities"}
    if run.data.model_dump_json(include=agreed) != card.content.model_dump_json(include=agreed):
        raise PermissionRefused(
            f"{site.data}: the run's task, labels, range or modalities differ from the owner's dataset.toml"
        )
    return card.content


def _permitted_modalities(run: RunConfig, *, site: SiteConfig) -> tuple[str, ...]:
    """What of the run this site can train, once its owner permits the run at all."""
    if run.privacy == "none" and not site.privacy.allow_non_private:
        raise PermissionRefused(
            'the run has privacy = "none"; allowed: a private one, unless the owner sets privacy.allow_non_private'
        )
    for name, encoder in run.model.encoders.items():
        path = encoder.options.get("path")
        if path is not None and Path(str(path)).resolve() not in site.checkpoints:
            raise PermissionRefused(
                f"the run's encoder of {name} names the folder {path}; allowed: those the owner lists in checkpoints, "
                f"{[str(each) for each in site.checkpoints]}"
            )
    modalities = tuple(name for name in run.modalities if name in site.modalities)
    if not modalities:
        raise PermissionRefused(f"the run uses {list(run.modalities)}; this site has {list(site.modalities)}")
    return modalities


def _plan(header: RequestHeader, *, site: SiteConfig, ledger: Ledger) -> PrivacyPlan | None:
    """The mechanism of the whole run, calibrated when the run first asks and the same ever after."""
    privacy = header.run.privacy
    if privacy == "none":
        return None
    mine = ledger.uses_of_run(site.data_set, header.run_id)
    # PRIVACY: a run was calibrated for so many rounds and gets no more. test_a_run_gets_the_rounds_it_was_planned_for
    if header.round_number > header.run.federation.rounds or len(mine) >= header.planned_rounds:
        raise PermissionRefused(
            f"round {header.round_number}: the run was calibrated for {header.planned_rounds} rounds and "
            f"{len(mine)} are charged here; a round that was asked again after an interruption is charged again"
        )
    plan = make_plan(
        training=header.run.training,
        privacy=privacy,
        nominal_size=site.nominal_size,
        planned_rounds=header.planned_rounds,
        site_epsilon=site.privacy.epsilon,
        site_delta=site.privacy.delta,
        before=ledger.uses(site.data_set),
        least_noise=site.privacy.least_noise_multiplier,
        # PRIVACY: one multiplier for the whole run. test_a_second_run_has_more_noise_and_keeps_it
        agreed_noise=mine[0].noise_multiplier if mine else None,
    )
    if not mine:
        if plan.noise_multiplier > plan.expected_batch_size and ledger.uses(site.data_set):
            raise BudgetError(
                f"data set {site.data_set!r}: so little of its epsilon {site.privacy.epsilon:g} is left "
                f"that {header.planned_rounds} rounds would need a noise multiplier of {plan.noise_multiplier:.3g}"
            )
        return plan
    if (mine[0].sample_rate, mine[0].steps) != (plan.sample_rate, plan.steps_per_round):
        raise PermissionRefused("the run's sampling or steps differ from its first round's; start another run")
    return plan


def _statement(plan: PrivacyPlan, *, site: SiteConfig, epsilon: float) -> PrivacyStatement:
    return PrivacyStatement(
        unit=plan.unit,
        epsilon=epsilon,
        delta=plan.delta,
        clip_norm=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps_per_round=plan.steps_per_round,
        accountant=plan.accountant,
        reproducible_noise=site.privacy.reproducible_noise,
    )


def _generators(header: RequestHeader, *, site: SiteConfig, private: bool) -> tuple[torch.Generator, torch.Generator]:
    """Noise and sampling: secret where they protect, from the run's seed only where the owner simulates."""
    # PRIVACY: noise and batches that a seed gives back protect nobody. test_noise_differs_between_equal_runs
    if private and not site.privacy.reproducible_noise:
        return secret_generator(), secret_generator()
    first, second = (
        reproducible_generator(header.run.seed, purpose=f"{site.name}/{header.round_number}/{use}")
        for use in ("noise", "sampling")
    )
    return first, second


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


def _samples(run: RunConfig, data: Path, cache: Path, modalities: tuple[str, ...]) -> Samples:
    """The site's samples; kept from round to round, and read again when the manifest has changed."""
    manifest = find_manifest(data).stat()
    return _loaded_samples(_Key(run.digest, run), data, cache, modalities, (manifest.st_mtime_ns, manifest.st_size))


@lru_cache(maxsize=2)
def _built_model(key: _Key) -> MultimodalModel:
    return build_model(key.run)


@lru_cache(maxsize=1024)
def _loaded_samples(
    key: _Key, data: Path, cache: Path, modalities: tuple[str, ...], _manifest_stamp: tuple[int, int]
) -> Samples:
    return load_samples(data, run=key.run, cache=cache, modalities=modalities)


def _refuse(site_file: Path, error: Exception) -> Refusal:
    """Tell the owner everything and the server a code."""
    log.error("%s: %s", site_file, error, exc_info=None if isinstance(error, MotetError) else error)
    return Refusal(error.code if isinstance(error, MotetError) else "internal")
