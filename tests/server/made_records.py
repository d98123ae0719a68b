"""Records of runs that never were: what report, comparison and event tests are made from."""

import itertools
import math
from functools import partial
from typing import Literal

import numpy as np
import torch

from server.history import LastReplies
from server.records import (
    Audit,
    AuditAttack,
    CentralPrivacy,
    ClassScores,
    Estimate,
    Evaluation,
    Outcome,
    RoundRecord,
    RunRecord,
    Scores,
    SitePrivacy,
    SiteRound,
    SiteStatistics,
)
from shared.config import RunConfig
from shared.messages import PrivacyStatement, ReplyHeader, TrainReply, reply_fields
from shared.preflight import PreflightCheck
from shared.schema import DataCard
from tests.server.made_contributions import made_contributions

Protection = Literal["record", "subject", "site", "record+site", "subject+site", "none"]
SITE_LIMIT = 4.0
VERSIONS = {"python": "3.11.7", "motet": "0.1.0", "torch": "2.13.0", "opacus": "1.6.0", "flwr": "1.41.0"}


def build_record(
    *,
    name: str = "moods",
    title: str = "Moods",
    generated: bool = True,
    sites: tuple[str, ...] = ("site-1", "site-2", "site-3", "site-4", "site-5", "site-6"),
    modalities: tuple[str, ...] = ("image", "text", "audio"),
    labels: tuple[str, ...] = ("calm", "cheerful", "cross", "sad"),
    groups: dict[str, tuple[str, ...]] | None = None,
    rounds: int = 40,
    rating: bool = False,
    private: bool = True,
    protection: Protection = "record",
    secret: bool = False,
    clipping: str = "flat",
    statistics: bool = False,
    tells: bool = True,
    reproducible_noise: bool = False,
    epsilon: float = 8.0,
    reached: float = 0.85,
    seed: int = 0,
    engine: str = "local",
) -> RunRecord:
    """A record as a run would write it, with numbers of a plausible shape; private=False is short for "none".

    secret: the record withholds who took part; tells: owners let their cap and what was spent before be told.
    """
    names = {"modalities": modalities, "labels": labels, "groups": tuple(groups or {})}
    kept: Protection = protection if private else "none"
    run = _run(
        name, names=names, rounds=rounds, rating=rating, protection=kept, secret=secret, clipping=clipping,
        statistics=statistics, epsilon=epsilon, seed=seed,
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    evaluation = partial(_evaluation, run=run, skill=reached, groups=groups or {}, generator=generator)
    return RunRecord(
        started="2026-03-01T09:30:00+00:00",
        seconds=151.2,
        peak_memory_bytes=812_000_000,
        versions=VERSIONS,
        num_parameters=48_210,
        code_digest="5f2c" * 16,
        run=run,
        card=_card(title, generated=generated, run=run),
        engine=engine,
        reproducible_noise=reproducible_noise,
        stopped="completed",
        chosen_round=max(1, rounds - 2),
        rounds=_history(run, sites=sites, reached=reached, generator=generator, tells=tells),
        privacy=_plans(run, sites=sites, rounds=rounds, tells=tells and not secret) if run.local_privacy else (),
        test=evaluation(part="test"),
        validation=evaluation(part="validation"),
        sites=sites,
        central=_central(run, num_sites=len(sites)),
        statistics=_counts(sites if statistics else (), run=run),
    )


def _counts(sites: tuple[str, ...], *, run: RunConfig) -> tuple[SiteStatistics, ...]:
    counts = (103.2, 96.7, 101.0, 98.4)[: max(1, len(run.data.labels))]
    return tuple(SiteStatistics(site=site, counts=counts, noise_multiplier=6.0) for site in sites)


def audited(
    record: RunRecord, *, lower_bound: float = 1.9, claimed_epsilon: float = 8.0, planted_fault: str | None = None
) -> RunRecord:
    """The record with an audit and preflight checks."""
    attack = AuditAttack(
        name="canaries in gradient space",
        lower_bound=lower_bound,
        confidence=0.95,
        detail="1,000 canaries, 612 of 1,000 guessed rightly",
    )
    audit = Audit(
        claimed_epsilon=claimed_epsilon,
        delta=1e-5,
        unit="record",
        attacks=(attack,),
        started="2026-03-02T10:00:00+00:00",
        planted_fault=planted_fault,
    )
    check = PreflightCheck(name="noise-scale", passed=True, detail="standard deviation 1.002 of the promised one")
    return record.model_copy(update={"audit": audit, "preflight": (check,)})


def _central(run: RunConfig, *, num_sites: int) -> CentralPrivacy | None:
    central, rounds = run.central_privacy, run.federation.rounds
    if central is None:
        return None
    rate = run.federation.site_sample_rate or 1.0
    return CentralPrivacy(
        epsilon=_site_epsilon(run, number=rounds) + 0.2,
        epsilon_before=0.5,
        epsilon_run=_site_epsilon(run, number=rounds),
        cap_epsilon=6.0,
        delta=central.delta,
        clipping=central.clipping,
        noise_multiplier=2.41,
        sample_rate=rate,
        rounds=rounds,
        denominator=rate * num_sites,
        accountant=central.accountant,
        second_epsilon=_site_epsilon(run, number=rounds) * 1.004,
        second_accountant="prv",
    )


def _site_epsilon(run: RunConfig, *, number: int) -> float:
    return SITE_LIMIT * math.sqrt(number / run.federation.rounds)


def _card(title: str, *, generated: bool, run: RunConfig) -> DataCard:
    return DataCard(
        title=title,
        generated=generated,
        licence="CC0-1.0",
        citation="Motet's built-in data.",
        source="motet data moods",
        content=run.data,
    )


def _history(
    run: RunConfig, *, sites: tuple[str, ...], reached: float, generator: np.random.Generator, tells: bool
) -> tuple[RoundRecord, ...]:
    rounds, central = run.federation.rounds, run.central_privacy
    whole = (
        RoundRecord(
            round=number,
            seconds=1.5,
            sites=tuple(
                SiteRound(site=site, outcome="withheld")
                if run.federation.site_sample_rate is not None
                else _site_round(site, index=index, number=number, run=run, tells=tells)
                for index, site in enumerate(sites)
            ),
            validation=_scores(run, skill=reached * (1 - math.exp(-4 * number / rounds)), generator=generator),
            update_norm=1.0 / number,
            clip_norm=1.0 - 0.5 * number / rounds if run.local_privacy and _adapts(run) else None,
            site_clip_norm=1.0 if central else None,
            site_epsilon=_site_epsilon(run, number=number) + 0.2 if central else None,
        )
        for number in range(1, rounds + 1)
    )
    # as a run keeps them
    return tuple(map(LastReplies().shortened, whole))


def _adapts(run: RunConfig) -> bool:
    return run.local_privacy is not None and run.local_privacy.clipping == "adaptive"


def _plans(run: RunConfig, *, sites: tuple[str, ...], rounds: int, tells: bool) -> tuple[SitePrivacy, ...]:
    return tuple(
        SitePrivacy(
            site=site,
            unit=run.local_privacy.unit if run.local_privacy else "record",
            epsilon=_epsilon(index, number=rounds, run=run),
            delta=1e-5,
            noise_multiplier=1.07 + 0.02 * index,
            sample_rate=0.08,
            steps=rounds * 12,
            nominal_size=400 + 20 * index,
            accountant="rdp",
            second_epsilon=_epsilon(index, number=rounds, run=run) * 0.93,
            run_epsilon=_epsilon(index, number=rounds, run=run),
            epsilon_before=0.0 if tells else None,
            cap_epsilon=10.0 if tells else None,
            left_after_round=5 if index == 3 and rounds > 5 and not run.federation.site_sample_rate else None,
        )
        for index, site in enumerate(sites)
    )


def _run(
    name: str,
    *,
    names: dict[str, tuple[str, ...]],
    rounds: int,
    rating: bool,
    protection: Protection,
    secret: bool,
    clipping: str,
    statistics: bool,
    epsilon: float,
    seed: int,
) -> RunConfig:
    task = (
        {"task": "rating", "rating_range": (-3.0, 3.0)}
        if rating
        else {"task": "single-label", "labels": names["labels"]}
    )
    local, _, central = protection.rpartition("+")
    unit = local or protection
    common = {"delta": 1e-5, "clip_norm": 1.0, "clipping": clipping}
    at_sites = {"unit": unit, "trust": "nobody", "epsilon": epsilon, **common}
    at_server = {"unit": "site", "trust": "server", "epsilon": SITE_LIMIT, **common, "clipping": "flat"}
    return RunConfig.model_validate(
        {
            "name": name,
            "seed": seed,
            "data": {
                **task,
                "modalities": {modality: {"kind": "features", "width": 8} for modality in names["modalities"]},
                "groups": names["groups"],
            },
            "model": {
                "embedding_width": 32,
                "encoders": {modality: {"name": "linear"} for modality in names["modalities"]},
                "fusion": {"name": "gated"},
            },
            "training": {"optimizer": "momentum", "learning_rate": 0.5, "batch_size": 32, "local_epochs": 1},
            "privacy": "none" if protection == "none" else at_server if unit == "site" else at_sites,
            "site_privacy": at_server if local and central else None,
            "statistics": {"noise_multiplier": 6.0} if statistics else None,
            "federation": {"rounds": rounds, "site_sample_rate": 0.5 if secret else None},
        }
    )


def _epsilon(index: int, *, number: int, run: RunConfig) -> float:
    limit = run.local_privacy.epsilon if run.local_privacy else 0.0
    return limit * (1 - 0.03 * (index % 7)) * math.sqrt(number / run.federation.rounds)


def _site_round(site: str, *, index: int, number: int, run: RunConfig, tells: bool) -> SiteRound:
    troubles: dict[tuple[int, int], tuple[Outcome, str]] = {
        (1, 3): ("late", "run-failed"),
        (3, 5): ("failed", "internal"),
        **{(3, later): ("refused", "refused") for later in range(6, run.federation.rounds + 1)},
        (4, 2): ("invalid", "message-invalid"),
    }
    if (index, number) in troubles:
        outcome, code = troubles[index, number]
        return SiteRound(site=site, outcome=outcome, code=code)
    if run.federation.rounds > 1 and index % 10 == 9 and number % 4 == 0:
        return SiteRound(site=site, outcome="not-asked")
    local = run.local_privacy
    statement = (
        None
        if local is None
        else PrivacyStatement(
            unit="subject" if local.unit == "subject" else "record",
            epsilon=_epsilon(index, number=number, run=run),
            delta=1e-5,
            clipping=local.clipping,
            clip_norm=1.0,
            noise_multiplier=1.07 + 0.02 * index,
            sample_rate=0.08,
            steps_per_round=12,
            accountant="rdp",
            reproducible_noise=False,
            cap_epsilon=10.0 if tells else None,
            epsilon_before=0.0 if tells else None,
        )
    )
    header = ReplyHeader(
        protocol_version=1,
        run_id="run-1",
        round_number=number,
        nominal_size=400 + 20 * index,
        privacy=statement,
        unclipped_share=0.52 if _adapts(run) else None,
    )
    names = [
        f"encoders.{modality}.layers.{layer}.weight"
        for modality in run.modalities[: 1 + index % 3]
        for layer in range(3)
    ]
    update = {name: torch.zeros(1) for name in [*names, "fusion.gates.weight", "head.weight", "head.bias"]}
    return SiteRound(
        site=site,
        outcome="used",
        epsilon=statement.epsilon if statement else None,
        update_bytes=192_840,
        fields=reply_fields(TrainReply(header=header, update=update)),
        header=header,
    )


CLASS_METRICS = (
    "accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "weighted_precision",
    "weighted_recall", "weighted_f1",
)  # fmt: skip


def _scores(
    run: RunConfig, *, skill: float, generator: np.random.Generator, rows: int = 300, wide: bool = False
) -> Scores:
    """Numbers that look like scores: no library is asked, so that a record costs a millisecond."""
    blur = generator.normal(scale=0.01, size=len(CLASS_METRICS))
    if run.data.task == "rating":
        metrics = {"mae": 1.2 - skill + blur[0], "rmse": 1.5 - skill + blur[1], "loss": (1.5 - skill) ** 2}
        metrics |= {"pearson": skill + blur[2], "spearman": skill + blur[3]}
        return Scores(num_samples=rows, metrics={name: _estimate(value, wide=wide) for name, value in metrics.items()})
    metrics = {name: skill + float(noise) for name, noise in zip(CLASS_METRICS, blur, strict=True)}
    metrics["loss"] = 1.6 - skill
    if wide:
        metrics["calibration_error"] = 0.04
    estimates = {name: _estimate(float(value), wide=wide) for name, value in metrics.items()}
    if not wide:
        return Scores(num_samples=rows, metrics=estimates)
    labels = run.data.labels
    shares = np.full((len(labels), len(labels)), (1 - skill) / max(1, len(labels) - 1))
    np.fill_diagonal(shares, skill)
    counts = [generator.multinomial(rows // len(labels), row / row.sum()) for row in shares]
    classes = tuple(
        ClassScores(
            label=label,
            precision=_estimate(skill - 0.01 * index, wide=True),
            recall=_estimate(float(counts[index][index] / counts[index].sum()), wide=True),
            f1=_estimate(skill - 0.02 * index, wide=True),
            support=int(counts[index].sum()),
        )
        for index, label in enumerate(labels)
    )
    confusion = tuple(tuple(int(count) for count in row) for row in counts)
    return Scores(num_samples=rows, metrics=estimates, classes=classes, confusion=confusion)


def _estimate(value: float, *, wide: bool) -> Estimate:
    return (
        Estimate(value=value, low=max(value - 0.03, 0.0), high=min(value + 0.025, 1.0))
        if wide
        else Estimate(value=value)
    )


def _evaluation(
    *, part: str, run: RunConfig, skill: float, groups: dict[str, tuple[str, ...]], generator: np.random.Generator
) -> Evaluation:
    def scores(share: float, rows: int) -> Scores:
        return _scores(run, skill=skill * share, generator=generator, rows=rows, wide=True)

    overall = scores(1.0, 600)
    subsets = [
        names for size in range(1, len(run.modalities) + 1) for names in itertools.combinations(run.modalities, size)
    ]
    return Evaluation.model_validate(
        {
            "part": part,
            "overall": overall,
            "by_modalities": {
                "+".join(subset): overall if subset == run.modalities else scores(0.5 + 0.15 * len(subset), 560)
                for subset in subsets
            },
            "contributions": made_contributions(run, overall) if part == "test" else None,
            "by_group": {
                column: {
                    value: scores(max(0.3, 1 - 0.05 * index), 60 + 7 * index) for index, value in enumerate(values)
                }
                for column, values in groups.items()
            },
        }
    )
