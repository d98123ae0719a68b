"""Answers of the generated moods: what the rows are labelled with, one mood each or more.

in        the mood that a row is drawn with, whose voice it is, and a generator of its own
out       the moods that its face, words and voice show, and the cells of its answers
relies on nothing: with `mood`, rows are what they were before there were other answers

| answers | task         | what is asked                                                                            |
| mood    | single-label | the mood                                                                                 |
| many    | multi-label  | all moods felt: one, or in half of the rows two, of which each modality may show but one |
| several | several      | the mood, how pleasant it is from -1 to 1, how low the voice is; some sites lack some    |
"""

from typing import Literal

import numpy as np

from shared.schema import DataSchema, ModalitySchema, TaskSchema

Answers = Literal["mood", "many", "several"]
MOODS = ("joy", "sadness", "anger", "fear", "surprise", "calm")
VOICES = ("low", "middle", "high")
SENTIMENT_RANGE = (-1.0, 1.0)
PLEASANTNESS = {"joy": 0.9, "calm": 0.5, "surprise": 0.2, "fear": -0.5, "sadness": -0.7, "anger": -0.9}
_SENTIMENT_SPREAD = 0.1
_SECOND_SHARE = 0.5
_MODALITIES = {
    "image": ModalitySchema(kind="image"),
    "text": ModalitySchema(kind="text"),
    "audio": ModalitySchema(kind="audio"),
}
_GROUPS = ("style", "phrasing")


def schema_of(answers: Answers) -> DataSchema:
    """What the rows look like."""
    if answers == "many":
        return DataSchema(task="multi-label", labels=MOODS, modalities=_MODALITIES, groups=_GROUPS)
    if answers == "several":
        tasks = {
            "emotion": TaskSchema(kind="single-label", labels=MOODS),
            "sentiment": TaskSchema(kind="rating", rating_range=SENTIMENT_RANGE),
            "voice": TaskSchema(kind="single-label", labels=VOICES),
        }
        return DataSchema(task="several", tasks=tasks, modalities=_MODALITIES, groups=_GROUPS)
    return DataSchema(task="single-label", labels=MOODS, modalities=_MODALITIES, groups=_GROUPS)


def felt_moods(mood: str, *, answers: Answers, generator: np.random.Generator) -> tuple[str, ...]:
    """The mood, and with `many` in half of the rows another one."""
    if answers != "many" or generator.random() >= _SECOND_SHARE:
        return (mood,)
    others = [other for other in MOODS if other != mood]
    return (mood, others[int(generator.integers(len(others)))])


def shown_moods(felt: tuple[str, ...], *, generator: np.random.Generator) -> dict[str, float]:
    """Which of the moods felt one modality shows: the only one; of two either, or both, each in a third of the rows."""
    if len(felt) == 1:
        return {felt[0]: 1.0}
    which = int(generator.integers(3))
    return {felt[which]: 1.0} if which < len(felt) else dict.fromkeys(felt, 1 / len(felt))


def cells(
    felt: tuple[str, ...],
    *,
    answers: Answers,
    pitch_hz: float,
    lacks: frozenset[str],
    generator: np.random.Generator,
) -> dict[str, object]:
    """Column -> answer.

    Args:
        lacks: of several tasks, those that the row's site does not answer.
    """
    if answers == "mood":
        return {"label": felt[0]}
    if answers == "many":
        return {"labels": [mood for mood in MOODS if mood in felt]}
    pleasant = PLEASANTNESS[felt[0]] + generator.normal(0.0, _SENTIMENT_SPREAD)
    given: dict[str, object] = {
        "emotion": felt[0],
        "sentiment": round(float(np.clip(pleasant, *SENTIMENT_RANGE)), 2),
        # pitches lie within an octave from 110 Hz; its thirds are in semitones
        "voice": VOICES[min(2, int(3 * np.log2(pitch_hz / 110.0)))],
    }
    return {column: answer for column, answer in given.items() if column not in lacks}
