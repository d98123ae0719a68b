"""Records: what a run writes down, round by round; the one source of metrics.jsonl, report.json and report.html.

in        replies that aggregation.py judged, scores from evaluation.py
out       RoundRecord (a line of metrics.jsonl) and RunRecord (report.json)
relies on nothing private: a site's entry holds only what its reply holds, and nothing where participation is secret
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, Field

from shared.config import Clipping, RunConfig
from shared.messages import ReplyHeader
from shared.preflight import PreflightCheck
from shared.schema import DataCard
from shared.settings import Settings

Outcome = Literal["used", "refused", "failed", "late", "invalid", "not-asked", "withheld"]
"""withheld: participation is drawn in secret and counted upon, so that who took part stays with the server"""


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
    weighted_recall, weighted_f1, calibration_error, loss; multi-label: macro_, micro_, samples_ precision, recall, f1,
    subset_accuracy, hamming_loss, average_precision, ranking_precision, loss; rating: mae, rmse, pearson, spearman,
    loss, and closeness among several tasks; several: mean_score. One that is not defined on these samples (a
    correlation of a constant) is left out."""
    classes: tuple[ClassScores, ...] = ()
    """labels, of a multi-label task"""
    confusion: tuple[tuple[int, ...], ...] = ()
    """confusion[true class][predicted class], counts; single-label only"""
    tasks: dict[str, "Scores"] = Field(default={})
    """several: each task's own, over the samples that have an answer to it"""

    @property
    def named(self) -> dict[str, Estimate]:
        """All metrics; those of each of several tasks under `task/metric`."""
        own = {f"{task}/{name}": found for task, scores in self.tasks.items() for name, found in scores.metrics.items()}
        return {**self.metrics, **own}


class Contribution(Settings):
    """What one modality brings to a metric; above 0 where it helps, whichever way the metric runs."""

    shapley: float
    """averaged over all orders in which modalities could come in"""
    drop_one: float
    """how much worse the model is when this one alone is hidden"""
    standard_error: float | None = None
    """of the Shapley value, where orders were drawn"""
    shapley_interval: tuple[float, float] | None = None
    """95 %, over the people or rows of the part; None: no resamples, or a report of before 0.4.0"""
    drop_one_interval: tuple[float, float] | None = None


class Contributions(Settings):
    """What each modality brings, on all samples of a part; contributions.py says how samples without any count."""

    metric: str
    everything: float
    """the metric with all modalities"""
    nothing: float
    """the metric of the model's answer to samples that show nothing; Shapley values are from there to `everything`"""
    by_modality: dict[str, Contribution]
    orders: int | None = None
    """how many orders were drawn; None: every subset was measured, and the Shapley values are exact"""


class Evaluation(Settings):
    """Scores on one part, and the same again for subsets of modalities and groups."""

    part: Literal["validation", "test"]
    overall: Scores
    by_modalities: dict[str, Scores] = Field(default={})
    """"image+text" -> scores when samples had only these, over the samples that have at least one of them"""
    by_group: dict[str, dict[str, Scores]] = Field(default={})
    """group column -> value -> scores"""
    contributions: Contributions | None = None
    """None where subsets were not measured, or the metric is not defined for some of them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRound:
    """What became of one site in one round.

    No pydantic model, as everything else here is: a run holds one for every site and round, and this is a fifth the
    size of one. Read from a file it is checked as strictly.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

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
    """every number the reply held, as it came, but `is_within_clip`, which stays with the server; None where it is that
    of the site's last used round but for round_number, epsilon and unclipped_share (history.py)"""
    unclipped_share: float | None = None
    """of the reply, where `header` is not repeated"""


class AggregationNote(Settings):
    """What a robust aggregation did to usable updates of one round: follows from updates that the server was sent."""

    set_aside: tuple[str, ...] = ()
    """sites whose updates are not in the result"""
    scaled_down: tuple[str, ...] = ()
    """sites whose updates were longer than `norm_bound`, and cut to it"""
    norm_bound: float | None = None


class RoundRecord(Settings):
    """One round: a line of metrics.jsonl."""

    round: int = Field(ge=1)
    seconds: float
    """0 where participation is secret: how long a round takes tells how many sites were in it"""
    sites: tuple[SiteRound, ...]
    validation: Scores | None = None
    """None on rounds that did not evaluate"""
    update_norm: float | None = None
    """L2 norm of the change to the global model; None when nothing changed"""
    clip_norm: float | None = None
    """adaptive clipping of records or subjects: the norm that sites used in this round"""
    site_clip_norm: float | None = None
    """unit site: the norm of whole updates in this round"""
    site_epsilon: float | None = None
    """unit site: all that the server's ledger holds about this federation, this round included"""
    aggregated: AggregationNote | None = None
    """krum, multi-krum and norm-bound, in rounds that changed the model; never where participation is secret: those
    rules are refused there"""


class SitePrivacy(Settings):
    """The plan by which one site protected its records, as its replies stated it.

    Where participation is secret: what the run planned for the site, the same whether or not it was ever drawn.
    """

    site: str
    unit: str
    epsilon: float
    """all that was ever released about its data set, by its own ledger; where participation is secret, the most that
    the run's planned rounds can add"""
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    nominal_size: int
    accountant: str
    second_epsilon: float | None = None
    """this run's mechanisms composed by the other library: Opacus' PRV where the site used PLD, else PLD"""
    second_accountant: str = "pld"
    run_epsilon: float | None = None
    """this run's mechanisms composed by the site's own accountant"""
    epsilon_before: float | None = None
    """before this run; None where the owner does not tell"""
    cap_epsilon: float | None = None
    """the owner's cap; None where the owner does not tell"""
    left_after_round: int | None = None
    """last round in which its update was used, where it refused later ones; None where it did not"""


class CentralPrivacy(Settings):
    """How the server protected whole sites, and what its ledger says."""

    epsilon: float
    """all that the ledger holds about this federation, this run included"""
    epsilon_before: float
    epsilon_run: float
    """this run's rounds alone"""
    cap_epsilon: float
    delta: float
    clipping: Clipping
    noise_multiplier: float
    sample_rate: float
    """chance that a site is asked in a round; 1 where the schedule is public"""
    rounds: int
    """rounds that were charged, repeated ones too; of a public schedule, the most that any one site was in"""
    denominator: float
    """what the noisy sum is divided by; public"""
    accountant: str
    second_epsilon: float | None
    """`epsilon_run` by the other library"""
    second_accountant: str


class SiteStatistics(Settings):
    """A site's noisy counts, as they came."""

    site: str
    counts: tuple[float, ...]
    noise_multiplier: float


class AuditAttack(Settings):
    """One attack on the training code, and what it proves at least."""

    name: str
    lower_bound: float
    """epsilon is at least this, with the stated confidence; 0 says that the attack showed nothing"""
    confidence: float
    detail: str


class Audit(Settings):
    """What `motet audit` found; RUN/audit.json."""

    claimed_epsilon: float
    delta: float
    unit: str
    attacks: tuple[AuditAttack, ...]
    started: str
    site: str = ""
    """which of the run's sites was attacked"""
    planted_fault: str | None = None
    """the training code was broken on purpose, to show what an audit sees"""


class Origin(Settings):
    """What a run took of an earlier one to begin with."""

    file_digest: str
    """SHA-256 of the earlier run's model file"""
    run_digest: str | None = None
    """of the settings that the file belongs to, by its own word"""
    run_id: str | None = None
    """None: the file did not lie in its run's folder"""
    parameters: int
    """numbers that were taken"""
    tensors: tuple[str, ...]
    """their names"""
    privacy: Literal["private", "none", "unknown"] = "unknown"
    """whether the earlier run, and all that it began with itself, was differentially private for those it trained on"""


class SiteShare(Settings):
    """What one site was sent and trained, by its owner's public word."""

    site: str
    modalities: tuple[str, ...]
    tasks: tuple[str, ...] | None = None
    """of several tasks, those that it has answers to; None: all"""
    frozen: tuple[str, ...] = ()
    """patterns of what it uses and does not train"""
    nominal_modality_sizes: dict[str, int] = Field(default={})
    sent: int
    """numbers of its updates"""
    given: int
    """numbers that it is sent and does not train"""
    personal: int
    """numbers that it trains and keeps"""
    first_round: int = 1
    """that could ask it; above 1 for a site that came late"""


class Computed(Settings):
    """On what a simulation trained, from one start of it on."""

    engine: str
    device: str
    """as torch names it, a card with its own name behind it"""
    precision: str
    memory_bytes: int | None = None
    """about how much the training of one cohort could take; None for engines that train one site at a time"""


class RunRecord(Settings):
    """A finished run: report.json."""

    run: RunConfig
    card: DataCard | None
    engine: str
    reproducible_noise: bool
    started: str
    """UTC, ISO 8601"""
    seconds: float
    """0 where participation is secret"""
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
    central: CentralPrivacy | None = None
    statistics: tuple[SiteStatistics, ...] = ()
    preflight: tuple[PreflightCheck, ...] = ()
    audit: Audit | None = None
    start: Origin | None = None
    """None: the run began with weights that its seed made"""
    computed: tuple[Computed, ...] = ()
    """each of what the starts of a simulation said; empty for sites that train on machines of their own"""
    shares: tuple[SiteShare, ...] = ()
    """of every site that took part"""
    code_digest: str = ""
    """SHA-256 over the program's own files: equal digest, equal program"""
