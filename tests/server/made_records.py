"""Records of runs that never were: what report, comparison and event tests are made from."""

import itertools
import math

import numpy as np
import torch

from server.records import (
    ClassScores,
    Estimate,
    Evaluation,
    Outcome,
    RoundRecord,
    RunRecord,
    Scores,
    SitePrivacy,
    SiteRound,
)
from shared.config import DataCard, RunConfig
from shared.messages import PrivacyStatement, ReplyHeader, TrainReply, reply_fields


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
    reproducible_noise: bool = False,
    epsilon: float = 8.0,
    reached: float = 0.85,
    seed: int = 0,
    engine: str = "local",
) -> RunRecord:
    """A record as a run would write it, with numbers of a plausible shape."""
    run = _run(
        name,
        modalities=modalities,
        labels=labels,
        groups=tuple(groups or {}),
        rounds=rounds,
        rating=rating,
        private=private,
        epsilon=epsilon,
        seed=seed,
    )
    generator = np.random.default_rng(seed)
    return RunRecord(
        run=run,
        card=_card(title, generated=generated, run=run),
        engine=engine,
        reproducible_noise=reproducible_noise,
        started="2026-03-01T09:30:00+00:00",
        seconds=151.2,
        peak_memory_bytes=812_000_000,
        versions={"python": "3.11.7", "motet": "0.1.0", "torch": "2.13.0", "opacus": "1.6.0", "flwr": "1.41.0"},
        stopped="completed",
        chosen_round=max(1, rounds - 2),
        rounds=_history(run, sites=sites, reached=reached, generator=generator),
        privacy=_plans(run, sites=sites, rounds=rounds) if private else (),
        test=_evaluation("test", run=run, skill=reached, groups=groups or {}, generator=generator),
        validation=_evaluation("validation", run=run, skill=reached, groups=groups or {}, generator=generator),
        num_parameters=48_210,
        sites=sites,
    )


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
    run: RunConfig, *, sites: tuple[str, ...], reached: float, generator: np.random.Generator
) -> tuple[RoundRecord, ...]:
    rounds = run.federation.rounds
    return tuple(
        RoundRecord(
            round=number,
            seconds=1.5,
            sites=tuple(
                _site_round(site, index=index, number=number, run=run, modalities=run.modalities)
                for index, site in enumerate(sites)
            ),
            validation=_scores(run, skill=reached * (1 - math.exp(-4 * number / rounds)), generator=generator),
            update_norm=1.0 / number,
        )
        for number in range(1, rounds + 1)
    )


def _plans(run: RunConfig, *, sites: tuple[str, ...], rounds: int) -> tuple[SitePrivacy, ...]:
    return tuple(
        SitePrivacy(
            site=site,
            unit="record",
            epsilon=_epsilon(index, number=rounds, run=run),
            delta=1e-5,
            noise_multiplier=1.07 + 0.02 * index,
            sample_rate=0.08,
            steps=rounds * 12,
            nominal_size=400 + 20 * index,
            accountant="rdp",
            second_epsilon=_epsilon(index, number=rounds, run=run) * 0.93,
        )
        for index, site in enumerate(sites)
    )


def _run(
    name: str,
    *,
    modalities: tuple[str, ...],
    labels: tuple[str, ...],
    groups: tuple[str, ...],
    rounds: int,
    rating: bool,
    private: bool,
    epsilon: float,
    seed: int,
) -> RunConfig:
    task = {"task": "rating", "rating_range": (-3.0, 3.0)} if rating else {"task": "single-label", "labels": labels}
    privacy = {"unit": "record", "trust": "nobody", "epsilon": epsilon, "delta": 1e-5, "clip_norm": 1.0}
    return RunConfig.model_validate(
        {
            "name": name,
            "seed": seed,
            "data": {
                **task,
                "modalities": {modality: {"kind": "features", "width": 8} for modality in modalities},
                "groups": groups,
            },
            "model": {
                "embedding_width": 32,
                "encoders": {modality: {"name": "linear"} for modality in modalities},
                "fusion": {"name": "gated"},
            },
            "training": {"optimizer": "momentum", "learning_rate": 0.5, "batch_size": 32, "local_epochs": 1},
            "privacy": privacy if private else "none",
            "federation": {"rounds": rounds},
        }
    )


def _epsilon(index: int, *, number: int, run: RunConfig) -> float:
    limit = run.privacy.epsilon if run.privacy != "none" else 0.0
    return limit * (1 - 0.03 * (index % 7)) * math.sqrt(number / run.federation.rounds)


def _site_round(site: str, *, index: int, number: int, run: RunConfig, modalities: tuple[str, ...]) -> SiteRound:
    troubles: dict[tuple[int, int], tuple[Outcome, str]] = {
        (1, 3): ("late", "run-failed"),
        (3, 5): ("failed", "internal"),
        (3, 6): ("refused", "refused"),
        (4, 2): ("invalid", "message-invalid"),
    }
    if (index, number) in troubles:
        outcome, code = troubles[index, number]
        return SiteRound(site=site, outcome=outcome, code=code)
    if run.federation.rounds > 1 and index % 10 == 9 and number % 4 == 0:
        return SiteRound(site=site, outcome="not-asked")
    statement = PrivacyStatement(
        unit="record",
        epsilon=_epsilon(index, number=number, run=run),
        delta=1e-5,
        clip_norm=1.0,
        noise_multiplier=1.07 + 0.02 * index,
        sample_rate=0.08,
        steps_per_round=12,
        accountant="rdp",
        reproducible_noise=False,
    )
    private = run.privacy != "none"
    header = ReplyHeader(
        protocol_version=1,
        run_id="run-1",
        round_number=number,
        nominal_size=400 + 20 * index,
        privacy=statement if private else None,
        num_examples=None,
    )
    names = [
        f"encoders.{modality}.layers.{layer}.weight" for modality in modalities[: 1 + index % 3] for layer in range(3)
    ]
    update = {name: torch.zeros(1) for name in [*names, "fusion.gates.weight", "head.weight", "head.bias"]}
    return SiteRound(
        site=site,
        outcome="used",
        epsilon=statement.epsilon if private else None,
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
    part: str, *, run: RunConfig, skill: float, groups: dict[str, tuple[str, ...]], generator: np.random.Generator
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
            "by_group": {
                column: {
                    value: scores(max(0.3, 1 - 0.05 * index), 60 + 7 * index) for index, value in enumerate(values)
                }
                for column, values in groups.items()
            },
        }
    )
