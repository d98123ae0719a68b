"""Run: three attacks on one site of a run, each on a training of its own, and what they prove.

in        a run folder, prepared or finished: the run's settings, the owners', the records
out       Audit, for RUN/audit.json and the terminal
relies on alone.py (the training), canaries.py and membership.py (the attacks), bounds.py (the proof)
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from client.site import read_site
from server.aggregation import Weights
from server.checkpoint import read_state
from server.heldout import HeldOut, load_held_out
from server.negatives import public_negatives
from server.records import Audit, AuditAttack
from server.rounds import load_weights
from server.settings import ServerSettings, read_settings, write_atomically
from server.start import read_start
from shared.config import RunConfig
from shared.errors import ConfigError, RunError
from shared.model.exchange import exchange_of
from shared.model.multimodal import build_model
from shared.model.registry import load_extensions
from simulations.audit.alone import AuditedSite, audited_site, train_alone
from simulations.audit.bounds import (
    Guesses,
    LowerBound,
    area_under_curve,
    best_guesses,
    gaussian_epsilon,
    one_run_epsilon,
    rate_interval,
    sampled_epsilon,
    threshold_bound,
)
from simulations.audit.canaries import (
    STRENGTH,
    CanaryModel,
    Coins,
    Scores,
    joined,
    mislabelled,
    rows_where,
    with_gradient_canaries,
)
from simulations.audit.membership import by_unit, losses, rows_of_units
from simulations.planted_faults import planted
from simulations.scenario import Scenario
from simulations.simulate import prepare_run

FILE_NAME = "audit.json"
NUM_BOUNDS = 5
"""lower bounds that an audit gives; they share its chance of error"""
LOW_FALSE_RATE = 0.01


@dataclass(frozen=True)
class AuditPlan:
    """How hard to look, and how sure to be."""

    num_canaries: int = 1000
    """of either kind; of mislabelled records at most as many as are held out"""
    confidence: float = 0.95
    """that none of the lower bounds is too high"""
    seed: int = 0
    """of coins, noise and batches"""

    @property
    def of_each(self) -> float:
        """Confidence of each bound by itself."""
        return 1 - (1 - self.confidence) / NUM_BOUNDS


def audit_folder(folder: Path, *, site: str | None = None, how: AuditPlan, fault: str | None = None) -> Audit:
    """The audit of one site of a run folder, the first by name if none is named; nothing in the folder is changed.

    Args:
        fault: name of a planted fault that breaks the training code while the audit lasts.

    Raises:
        ConfigError: no such site or fault.
        RunError: the folder holds no simulated run, or what it began with is there no more.
        PermissionRefused: the run claims nothing about records or subjects.
    """
    settings, files = read_settings(folder), sorted((folder / "sites").glob("*.toml"))
    if not files:
        raise RunError(f"{folder}/sites: no site's settings in it; only a simulated run can be audited")
    names = tuple(path.stem for path in files)
    if site is not None and site not in names:
        raise ConfigError(f"{site!r}: no such site; allowed: {', '.join(names)}")
    for extension in settings.extensions:
        load_extensions(extension)
    held_out = load_held_out(settings)
    owner, started = read_site(files[names.index(site) if site else 0]), datetime.now(UTC)
    with planted(fault) if fault is not None else contextlib.nullcontext():
        strangers = joined(held_out.validation, held_out.test)
        begun = _with_negatives(_start_of(folder, run=settings.run), settings=settings, held_out=held_out)
        audited = audited_site(settings.run, owner, sites=names, strangers=strangers, start=begun)
        attacks = attack_site(audited, how=how)
    return Audit(
        site=owner.name,
        claimed_epsilon=audited.plan.epsilon,
        delta=audited.plan.delta,
        unit=audited.plan.unit,
        attacks=attacks,
        started=started.isoformat(timespec="seconds"),
        planted_fault=fault,
    )


def _start_of(folder: Path, *, run: RunConfig) -> Weights | None:
    """What the run takes of an earlier one, the same that it began with where it was begun already.

    Raises:
        RunError, ModelError: as `read_start`; or the file is another one now.
    """
    found, state = read_start(build_model(run), run=run), read_state(folder)
    if found is None:
        return None
    weights, origin = found
    if state is not None and state.start is not None and state.start.file_digest != origin.file_digest:
        raise RunError(
            f"{folder}: began with a model.start whose SHA-256 is {state.start.file_digest}, and the file there has "
            f"now {origin.file_digest}; an audit of other weights says nothing about the run. Restore the file"
        )
    return weights


def _with_negatives(start: Weights | None, *, settings: ServerSettings, held_out: HeldOut) -> Weights | None:
    """What a run begins with, and the public negatives of its first round, where it is given any.

    They stay for all rounds: an audit trains one site alone, whose model is no other site's.
    """
    renew = public_negatives(settings, held_out=held_out)
    if renew is None:
        return start
    model = build_model(settings.run)
    load_weights(model, start or {})
    return {**(start or {}), **renew(model.eval())}


def audit_scenario(
    scenario: Scenario,
    *,
    data_set: Path,
    extensions: Sequence[Path] = (),
    site: str | None = None,
    how: AuditPlan,
    fault: str | None = None,
) -> Audit:
    """The audit of one site of a scenario, whose run folder is made for it and thrown away."""
    with tempfile.TemporaryDirectory(prefix="motet-audit-") as temporary:
        folder = Path(temporary) / "run"
        prepare_run(scenario, data_set=data_set, folder=folder, engine="local", extensions=extensions)
        return audit_folder(folder, site=site, how=how, fault=fault)


def write_audit(audit: Audit, *, to: Path) -> Path:
    """The audit as JSON, in the folder or the file that is named."""
    path = to / FILE_NAME if to.is_dir() else to
    write_atomically(path, audit.model_dump_json(indent=2).encode())
    return path


def is_alarm(audit: Audit) -> bool:
    """Whether an attack shows more than is claimed."""
    return any(attack.lower_bound > audit.claimed_epsilon for attack in audit.attacks)


def attack_site(audited: AuditedSite, *, how: AuditPlan) -> tuple[AuditAttack, ...]:
    """All attacks on one site: gradient canaries, mislabelled records, membership of its own records."""
    return (*gradient_canaries(audited, how=how), input_canaries(audited, how=how), membership(audited, how=how))


def gradient_canaries(audited: AuditedSite, *, how: AuditPlan) -> tuple[AuditAttack, AuditAttack, AuditAttack]:
    """White box: whoever sees every update looks for units whose gradients are known; three bounds from one run."""
    scores, included = gradient_scores(audited, how=how)
    family, bound = _of_the_family(audited, scores, included, how=how)
    # guesses do not depend on each other: every canary shows in a number of its own, with noise of its own
    threshold = threshold_bound(
        scores,
        included,
        delta=audited.plan.delta,
        confidence=how.of_each,
        generator=np.random.default_rng([how.seed, 4]),
    )
    return (
        _attack("gradient canaries", _one_run(audited, scores, included, how=how), how=how, units="canaries"),
        _attack(f"gradient canaries, {family}", bound, how=how, units="canaries"),
        _attack("gradient canaries, one threshold", threshold, how=how, units="canaries"),
    )


def gradient_scores(audited: AuditedSite, *, how: AuditPlan) -> tuple[Scores, Coins]:
    """How far all updates together moved each canary's own weight, in clip norms over the expected batch size."""
    included = np.random.default_rng([how.seed, 1]).random(how.num_canaries) < 0.5
    model = CanaryModel(
        audited.first_model(), num_canaries=how.num_canaries, gradient_norm=STRENGTH * audited.plan.clip_norm
    )
    names = (*(f"model.{name}" for name in _names(audited)), "canaries.weight")
    scores = np.zeros(how.num_canaries)
    samples = with_gradient_canaries(audited.samples, included=included)
    for release in train_alone(audited, model, samples, names=names, seed=how.seed, purpose="gradient"):
        # so that steps of equal noise weigh the same
        moved = release.update["canaries.weight"].flatten().double().numpy()
        scores -= moved / (release.learning_rate * release.clip_norm)
    return scores, included


def input_canaries(audited: AuditedSite, *, how: AuditPlan) -> AuditAttack:
    """Black box: records with wrong labels, some of which the final model has learned by heart."""
    draw = np.random.default_rng([how.seed, 2])
    canaries = mislabelled(audited.strangers, data=audited.run.data, num=how.num_canaries, generator=draw)
    included = draw.random(len(canaries)) < 0.5
    model = audited.first_model()
    before = losses(model, canaries)
    samples = joined(audited.samples, canaries.subset(rows_where(included)))
    for _ in train_alone(audited, model, samples, names=_names(audited), seed=how.seed, purpose="input"):
        pass
    scores = before - losses(model, canaries)
    bound = _one_run(audited, scores, included, how=how)
    return _attack("mislabelled records", bound, how=how, units="records", more=_area(scores, included))


def membership(audited: AuditedSite, *, how: AuditPlan) -> AuditAttack:
    """Black box: which of the site's own units, each kept by a coin, the final model was trained on."""
    units = rows_of_units(audited.samples, unit=audited.plan.unit)
    included = np.random.default_rng([how.seed, 3]).random(len(units)) < 0.5
    kept = np.zeros(len(audited.samples), dtype=np.bool_)
    for is_in, rows in zip(included, units, strict=True):
        kept[rows.numpy()] = is_in
    model = audited.first_model()
    samples = audited.samples.subset(rows_where(kept))
    for _ in train_alone(audited, model, samples, names=_names(audited), seed=how.seed, purpose="membership"):
        pass
    scores = -by_unit(losses(model, audited.samples), units)
    bound = _one_run(audited, scores, included, how=how)
    more = f"{_area(scores, included)}; {_hits_at_low_false_rate(scores, included)}"
    return _attack("membership inference", bound, how=how, units=f"{audited.plan.unit}s", more=more)


def _names(audited: AuditedSite) -> tuple[str, ...]:
    """What the site trains: all that it sends and what it keeps to itself, but not what its owner freezes."""
    modalities = tuple(name for name in audited.run.modalities if name in audited.site.modalities)
    exchange = exchange_of(build_model(audited.run), modalities, tasks=audited.site.tasks, frozen=audited.site.frozen)
    return (*exchange.updated, *exchange.personal)


def _one_run(audited: AuditedSite, scores: Scores, included: Coins, *, how: AuditPlan) -> LowerBound:
    delta = audited.plan.delta

    def judge(guesses: Guesses, chance: float) -> float:
        return one_run_epsilon(guesses, delta=delta, chance=chance)

    return best_guesses(scores, included, judge=judge, confidence=how.of_each)


def _of_the_family(audited: AuditedSite, scores: Scores, included: Coins, *, how: AuditPlan) -> tuple[str, LowerBound]:
    """The bound for Gaussian noise with the plan's sampling and steps, of whatever scale."""
    plan = audited.plan
    steps = plan.steps_per_round * len(audited.rounds)

    def gaussian(guesses: Guesses, chance: float) -> float:
        return gaussian_epsilon(guesses, delta=plan.delta, chance=chance)

    def sampled(guesses: Guesses, chance: float) -> float:
        return sampled_epsilon(guesses, sample_rate=plan.sample_rate, steps=steps, delta=plan.delta, chance=chance)

    judge: Callable[[Guesses, float], float] = gaussian if plan.sample_rate == 1 else sampled
    family = "Gaussian noise" if plan.sample_rate == 1 else "Gaussian noise on sampled batches"
    return family, best_guesses(scores, included, judge=judge, confidence=how.of_each)


def _attack(name: str, bound: LowerBound, *, how: AuditPlan, units: str, more: str = "") -> AuditAttack:
    guesses = bound.guesses
    detail = f"{guesses.num_correct} of {guesses.num_guesses} guesses about {guesses.num_units} {units} right"
    return AuditAttack(
        name=name,
        lower_bound=bound.epsilon,
        confidence=how.of_each,
        detail=f"{detail}; {more}" if more else detail,
    )


def _area(scores: Scores, included: Coins) -> str:
    return f"area under the curve {area_under_curve(scores, included):.3f} (0.5 is chance)"


def _hits_at_low_false_rate(scores: Scores, included: Coins) -> str:
    """What a careful attack finds: the threshold that at most 1 % of those who were not there pass."""
    outsiders = np.sort(scores[~included])[::-1]
    allowed = int(LOW_FALSE_RATE * len(outsiders))
    threshold = outsiders[allowed] if len(outsiders) > allowed else -np.inf
    hits, members = int((scores[included] > threshold).sum()), int(included.sum())
    low, high = rate_interval(hits, members, chance=0.05)
    return f"{hits / max(1, members):.1%} of members found at 1 % false alarms (95 % interval {low:.1%} to {high:.1%})"
