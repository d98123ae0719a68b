"""Sentences of the generated moods: a mood becomes its words, a phrasing becomes what stands around them.

in        a blend of moods (weights that sum to 1) and a phrasing
out       one English sentence of 6 to 16 words, two of which carry the mood
relies on nothing; the draws come from the caller's generator
"""

from collections.abc import Mapping

import numpy as np

_WORDS: dict[str, tuple[str, ...]] = {
    "joy": ("happy", "glad", "cheerful", "delighted", "merry"),
    "sadness": ("sad", "lonely", "gloomy", "tearful", "unhappy"),
    "anger": ("angry", "furious", "annoyed", "cross", "bitter"),
    "fear": ("afraid", "scared", "worried", "nervous", "anxious"),
    "surprise": ("surprised", "amazed", "astonished", "startled", "stunned"),
    "calm": ("calm", "peaceful", "quiet", "relaxed", "rested"),
}
_PLACES = ("at the market", "in the garden", "on the bus", "by the river", "at work", "at home", "in town", "at school")
_TIMES = ("today", "this morning", "last night", "on Sunday", "again", "all week", "since noon", "after lunch")
_PEOPLE = ("my sister", "the baker", "a neighbour", "our teacher", "an old friend", "the doctor")

PHRASINGS: dict[str, tuple[str, ...]] = {
    "plain": ("I was {a} and {b} {place} {time}.", "{time} I felt {a}, even {b}, {place}."),
    "chatty": (
        "you know what, {place} I got so {a}, really {b}, {time}!",
        "well {person} saw me {place}, all {a} and {b} {time}",
    ),
    "formal": (
        "It must be said that {person} found me {a} and rather {b} {time}.",
        "One would have called me {a}, if not {b}, {place}.",
    ),
    "clipped": ("{place}. {a}, {b}. {time}.", "{a} {time}, {b} {place}."),
}


def say(blend: Mapping[str, float], *, phrasing: str, favourites: int, generator: np.random.Generator) -> str:
    """A sentence with two mood words, each of a mood of the blend: two of one mood, or one of each of two.

    Args:
        blend: one mood of weight 1, or two of weight 1/2.
        phrasing: a key of PHRASINGS.
        favourites: which words of a mood come up most (four times in five) under this number.
    """
    moods = [list(blend)[index] for index in generator.permutation(len(blend))]
    first, second = moods[0], moods[-1]
    word_a = _word(first, favourites=favourites, generator=generator)
    word_b = _word(second, favourites=favourites, generator=generator, but=word_a)
    template = PHRASINGS[phrasing][int(generator.integers(len(PHRASINGS[phrasing])))]
    place, time, person = (options[int(generator.integers(len(options)))] for options in (_PLACES, _TIMES, _PEOPLE))
    sentence = template.format(a=word_a, b=word_b, place=place, time=time, person=person)
    return sentence[0].upper() + sentence[1:]


def _word(mood: str, *, favourites: int, generator: np.random.Generator, but: str = "") -> str:
    words = _WORDS[mood]
    liked = [words[(favourites + step) % len(words)] for step in range(3)]
    pool = [word for word in (liked if generator.random() < 0.8 else words) if word != but]
    return pool[int(generator.integers(len(pool)))]
