"""Aim: what a run's model was to learn, in words for each kind of task.

in        the data schema of a run
out       parts of sentences for the report, the registry entry and the terminal
relies on words.toml for what the metrics of a task mean
"""

from server.report.numbers import listed
from server.report.words import Words
from shared.schema import DataSchema, TaskSchema

_MOST_NAMED = 12
"""labels up to which all are named"""


def aim(data: DataSchema) -> str:
    """What the model was to do: "tell 3 classes apart (calm, cross and glad)"."""
    if data.task == "matching":
        return f"match {listed(list(data.pair or ()))}"
    if data.task == "several":
        asked = [f"{name.replace('_', ' ')} ({_asked(part)})" for name, part in data.tasks.items()]
        return f"answer {len(asked)} questions at once: {listed(asked)}"
    (part,) = data.parts.values()
    if part.rating_range is not None:
        return f"give {_asked(part)}"
    if part.kind == "multi-label":
        return f"say which of {len(part.labels)} labels fit ({_named(part)})"
    return f"tell {len(part.labels)} classes apart ({_named(part)})"


def short_aim(data: DataSchema) -> str:
    """The same without names of labels: "tell classes apart"."""
    return {
        "single-label": "tell classes apart",
        "multi-label": "say which labels fit",
        "rating": "give ratings",
        "several": f"answer {len(data.tasks)} questions at once",
        "matching": "match values of two modalities",
    }[data.task]


def answer_words(data: DataSchema) -> str:
    """What a record holds beside its modalities."""
    return {
        "single-label": "a label",
        "multi-label": "any number of labels",
        "rating": "a rating",
        "several": f"an answer to at least one of {len(data.tasks)} questions",
        "matching": "no label",
    }[data.task]


def metrics_note(data: DataSchema, *, words: Words) -> str:
    """What the names in the table of all metrics stand for."""
    kinds = dict.fromkeys(part.kind for part in data.parts.values())
    several = [words.texts["metrics_several"]] if data.task == "several" else []
    return " ".join([*several, *(words.texts[f"metrics_{kind}"] for kind in kinds)])


def _asked(part: TaskSchema) -> str:
    if part.rating_range is not None:
        return f"a rating between {part.rating_range[0]:g} and {part.rating_range[1]:g}"
    return f"{'any' if part.kind == 'multi-label' else 'one'} of {_named(part)}"


def _named(part: TaskSchema) -> str:
    labels = list(part.labels)
    return listed(labels if len(labels) <= _MOST_NAMED else [*labels[: _MOST_NAMED - 1], "others"])
