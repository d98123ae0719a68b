"""Alone: one site's training over all rounds of a run, as an attacker who sees every update would see it.

in        a run's settings, one site's settings and records; a model, which ends up trained
out       Release: what the site would have sent in each round
relies on client/private_training.py and the server's optimizer, unchanged; no ledger is touched, so nothing of this may
          leave the machine
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from client import plan as plans
from client import private_training
from client.plan import PrivacyPlan
from client.site import SiteConfig
from server.aggregation import ServerOptimizer, Weights, aggregate
from server.rounds import load_weights
from server.schedule import plan_rounds
from shared.batch import Samples
from shared.config import PrivacySettings, RunConfig
from shared.dataset import load_samples
from shared.errors import PermissionRefused
from shared.model.multimodal import MultimodalModel, build_model
from shared.privacy.mechanism import next_clip_norm
from shared.privacy.noise import reproducible_source


@dataclass(frozen=True)
class AuditedSite:
    """One site of a run: its public numbers, its records, and records of people who were never there."""

    run: RunConfig
    site: SiteConfig
    privacy: PrivacySettings
    plan: PrivacyPlan
    rounds: tuple[int, ...]
    """numbers of the rounds that the site takes part in"""
    samples: Samples
    strangers: Samples
    """held-out records as this site would read them"""
    start: Weights = field(default_factory=dict)
    """what the run takes of an earlier one; the seed makes the rest"""

    def first_model(self) -> MultimodalModel:
        """The model as the run's first round begins with it."""
        model = build_model(self.run)
        load_weights(model, self.start)
        return model


@dataclass(frozen=True)
class Release:
    """What leaves the site in one round."""

    update: dict[str, Tensor]
    clip_norm: float
    learning_rate: float


def audited_site(
    run: RunConfig, site: SiteConfig, *, sites: tuple[str, ...], strangers: Samples, start: Weights | None = None
) -> AuditedSite:
    """A site with the plan that it makes for a run on a data set of which nothing has been spent.

    Args:
        sites: names of all sites, of which each round asks some.
        strangers: the server's held-out records.
        start: what the run takes of an earlier one (`read_start`).

    Raises:
        PermissionRefused: no site of this run adds noise by itself, so there is no claim about records or subjects.
        BudgetError: the owner's budget does not cover the run.
        ManifestError: the site's folder has faults.
    """
    privacy = run.local_privacy
    if privacy is None:
        raise PermissionRefused(
            "nothing is claimed about records or subjects, so nothing can be audited; allowed: a run whose privacy has "
            'unit "record" or "subject"'
        )
    schedule = plan_rounds(sites, settings=run.federation, seed=run.seed)
    rounds = tuple(number for number, chosen in enumerate(schedule, start=1) if site.name in chosen)
    plan = plans.make_plan(
        training=run.training,
        privacy=privacy,
        unit=site.privacy.unit,
        nominal_units=site.nominal_units(site.privacy.unit),
        planned_rounds=len(rounds),
        site_epsilon=site.privacy.epsilon,
        site_delta=site.privacy.delta,
        statistics=run.statistics,
        on_short_budget=site.privacy.on_short_budget,
        least_noise=site.privacy.least_noise_multiplier,
        noise=site.privacy.noise,
    )
    modalities = tuple(name for name in run.modalities if name in site.modalities)
    samples = load_samples(site.data, run=run, cache=site.cache, modalities=modalities)
    known = Samples(
        inputs={name: strangers.inputs[name] for name in samples.inputs},
        present=strangers.present & torch.tensor([name in modalities for name in run.modalities]),
        targets=strangers.targets,
        subjects=strangers.subjects,
        groups=strangers.groups,
    )
    return AuditedSite(
        run=run,
        site=site,
        privacy=privacy,
        plan=plan,
        rounds=rounds,
        samples=samples,
        strangers=known.subset(known.present.any(dim=1).nonzero().flatten()),
        start=start or {},
    )


def train_alone(
    audited: AuditedSite, model: nn.Module, samples: Samples, *, names: tuple[str, ...], seed: int, purpose: str
) -> Iterator[Release]:
    """One release a round; after the last the model holds the final weights of a federation of this site alone.

    Args:
        samples: the records that are really there, canaries among them.
        names: parameters that are trained.
        seed: of noise and batches; equal seeds and purposes give equal numbers.
    """
    run, clip_norm = audited.run, audited.plan.clip_norm
    parameters = dict(model.named_parameters())
    optimizer = ServerOptimizer(run.federation.server_optimizer)
    for number in audited.rounds:
        trained = private_training.train_round(
            model,
            samples,
            names=names,
            training=run.training,
            plan=dataclasses.replace(audited.plan, clip_norm=clip_norm),
            nominal_size=audited.site.nominal_units(audited.plan.unit),
            round_number=number,
            rounds=run.federation.rounds,
            modality_dropout=run.model.modality_dropout,
            noise=reproducible_source(seed, purpose=f"audit/{purpose}/{number}/noise"),
            sampling=reproducible_source(seed, purpose=f"audit/{purpose}/{number}/sampling"),
        )
        rate = private_training.learning_rate(run.training, round_number=number, rounds=run.federation.rounds)
        yield Release(trained.update, clip_norm=clip_norm, learning_rate=rate)
        _step(parameters, trained.update, optimizer=optimizer, audited=audited)
        if trained.unclipped_share is not None:
            clip_norm = next_clip_norm(clip_norm, unclipped_share=trained.unclipped_share, settings=audited.privacy)


def _step(
    parameters: dict[str, nn.Parameter], update: dict[str, Tensor], *, optimizer: ServerOptimizer, audited: AuditedSite
) -> None:
    """The server's part of a round with one site."""
    name = audited.site.name
    average = aggregate({name: update}, weights={name: 1.0}, settings=audited.run.federation)
    weights = {name: parameters[name].detach() for name in average}
    with torch.no_grad():
        for name, value in optimizer.step(weights, update=average).items():
            parameters[name].copy_(value)
