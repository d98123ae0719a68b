"""Records: what a run writes down, round by round; the one source of metrics.jsonl, report.json and report.html.

in        replies that aggregation.py judged, scores from evaluation.py
out       RoundRecord (a line of metrics.jsonl) and RunRecord (report.json)
relies on nothing private: a site's entry holds only what its reply holds
"""

from typing import Literal

from pydantic import Field

from shared.config import DataCard, RunConfig, Settings
from shared.messages import ReplyHeader

Outcome = Literal["used", "refused", "failed", "late", "invalid", "not-asked"]


class Estimate(Settings):
    """A number with its 95 % bootstrap interval over subjects (percentile method), where one was asked for.

    Widened to hold the number itself: only the calibration error, which resampling moves upwards, can need it.
    """

    value: float
    low: float | None = None
    high: float | None = None


class ClassScores(Settings):
    """Scores of one class against all others."""

    label: str
    precision: Estimate
    recall: Estimate
    f1: Estimate
    support: int
    """rows of the class; with none, its scores say nothing and are not shown"""


class Scores(Settings):
    """What the model reaches on one part of the held-out data, for one set of modalities or one group."""

    num_samples: int
    metrics: dict[str, Estimate]
    """single-label: accuracy, balanced_accuracy, macro_precision, macro_recall, macro_f1, weighted_precision,
    weighted_recall, weighted_f1, calibration_error, loss; rating: mae, rmse, pearson, spearman, loss. One that is not
    defined on these samples (a correlation of a constant) is left out."""
    classes: tuple[ClassScores, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    """confusion[true class][predicted class], counts"""


class Evaluation(Settings):
    """Scores on one part, and the same again for subsets of modalities and groups."""

    part: Literal["validation", "test"]
    overall: Scores
    by_modalities: dict[str, Scores] = Field(default={})
    """"image+text" -> scores when samples had only these, over the samples that have at least one of them"""
    by_group: dict[str, dict[str, Scores]] = Field(default={})
    """group column -> value -> scores"""


class SiteRound(Settings):
    """What became of one site in one round."""

    site: str
    outcome: Outcome
    code: str | None = None
    """a wire-safe code where the outcome is not "used" """
    epsilon: float | None = None
    """upper bound on all this site has released about its data set so far; None where it never protected anything"""
    update_bytes: int = 0
    fields: tuple[str, ...] = ()
    """names of everything the reply held, arrays and numbers; empty where the same as in the site's last used round"""
    header: ReplyHeader | None = None
    """every number the reply held, as it came"""


class RoundRecord(Settings):
    """One round: a line of metrics.jsonl."""

    round: int = Field(ge=1)
    seconds: float
    sites: tuple[SiteRound, ...]
    validation: Scores | None = None
    """None on rounds that did not evaluate"""
    update_norm: float | None = None
    """L2 norm of the change to the global model; None when nothing changed"""


class SitePrivacy(Settings):
    """The plan by which one site protected its records, as its replies stated it."""

    site: str
    unit: str
    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    nominal_size: int
    accountant: str
    second_epsilon: float | None = None
    """this run's mechanisms composed by the other library: Opacus' PRV where the site used PLD, else PLD"""
    second_accountant: str = "pld"


class RunRecord(Settings):
    """A finished run: report.json."""

    run: RunConfig
    card: DataCard | None
    engine: str
    reproducible_noise: bool
    started: str
    """UTC, ISO 8601"""
    seconds: float
    peak_memory_bytes: int
    versions: dict[str, str]
    stopped: Literal["completed", "early"]
    chosen_round: int
    """the round whose model was kept; 0 is the untrained one"""
    rounds: tuple[RoundRecord, ...]
    privacy: tuple[SitePrivacy, ...]
    """empty for a run without privacy"""
    test: Evaluation
    validation: Evaluation
    num_parameters: int
    sites: tuple[str, ...]
