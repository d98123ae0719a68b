"""Headline: which of its numbers a task is judged by, which stand beside it, and which are drawn.

in        what a run's data is labelled for
out       names of metrics, as Scores has them, for the choice of the model, the terminal and every report
relies on nothing: the one place that says so
"""

from dataclasses import dataclass

from server.records import Scores
from shared.schema import DataSchema, TaskKind, TaskSchema

MEAN_SCORE = "mean_score"
"""several tasks: the mean of `score_of` each"""


@dataclass(frozen=True)
class Curves:
    """Metrics in one drawing, by round."""

    heading: str
    y: str
    names: tuple[str, ...]
    y_to: float | None = 1.0


@dataclass(frozen=True)
class Headline:
    """What is shown of a task."""

    main: str
    """by which the model is chosen"""
    short: str
    """what the progress line calls it"""
    beside: tuple[str, ...]
    """the next ones, the most telling first"""
    curves: tuple[Curves, ...]
    is_error: bool = False
    """lower is better"""
    largest: float | None = 1.0
    """the metric's own upper end; None: it has none"""


_OF_LABELS = Headline(
    main="macro_f1",
    short="F1",
    beside=("accuracy", "macro_recall"),
    curves=(Curves("Learning curve", "share", ("macro_f1", "accuracy")),),
)
_OF: dict[str, Headline] = {
    "single-label": _OF_LABELS,
    "multi-label": Headline(
        main="macro_f1",
        short="F1",
        beside=("micro_f1", "subset_accuracy"),
        curves=(Curves("Learning curve", "share", ("macro_f1", "micro_f1")),),
    ),
    "rating": Headline(
        main="mae",
        short="MAE",
        beside=("pearson", "rmse"),
        curves=(
            Curves("Error by round", "error, lower is better", ("mae", "rmse"), y_to=None),
            Curves("Correlation by round", "correlation", ("pearson", "spearman")),
        ),
        is_error=True,
        largest=None,
    ),
    "matching": Headline(
        main="recall_at_10",
        short="recall@10",
        beside=("mrr", "recall_at_1"),
        curves=(Curves("Learning curve", "share", ("recall_at_10", "mrr")),),
    ),
}
_SCORES: dict[TaskKind, str] = {"single-label": "macro_f1", "multi-label": "macro_f1", "rating": "closeness"}


def headline_of(data: DataSchema) -> Headline:
    """What is shown of the task that the data is labelled for."""
    if data.task != "several":
        return _OF[data.task]
    own = tuple(f"{name}/{score_of(part)}" for name, part in data.tasks.items())
    return Headline(
        main=MEAN_SCORE,
        short="mean score",
        beside=own,
        curves=(Curves("Learning curve", "score", (MEAN_SCORE, *own)),),
    )


def score_of(part: TaskSchema) -> str:
    """The metric of one of several tasks that is from 0 to 1 and higher where it is better."""
    return _SCORES[part.kind]


def selection_score(scores: Scores, *, data: DataSchema) -> float | None:
    """What the choice of the best round compares, higher is better; None where it is not defined."""
    shown = headline_of(data)
    found = scores.named.get(shown.main)
    if found is None:
        return None
    return -found.value if shown.is_error else found.value
