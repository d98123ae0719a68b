"""Moods: generated people whose faces, words and voices each tell half of how they feel.

in        a seed; nothing is downloaded and nobody is depicted
out       eight sites (or more) that differ in label mix, style and modalities, and a held-out part of other people
relies on moods_draw.py, moods_words.py and moods_voice.py for one value each, moods_answers.py for what is asked of a
          row, and on writer.py for the folder

Each modality mixes up pairs of moods, and no two moods are mixed up by all three: in a share of its rows the face shows
something between joy and surprise, the words something between joy and calm, the voice something between joy and anger.
So one modality alone must guess in those rows, and all together need not.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.errors import ConfigError
from shared.schema import DataCard
from simulations.datasets.moods_answers import MOODS, Answers, cells, felt_moods, schema_of, shown_moods
from simulations.datasets.moods_draw import STYLES, Face, draw_face, new_face
from simulations.datasets.moods_voice import new_pitch_hz, speak
from simulations.datasets.moods_words import PHRASINGS, say
from simulations.datasets.writer import TEST, VALIDATION, BuiltDataset, File, NewRow, built, writing

MODALITIES = ("image", "text", "audio")

# which moods a modality mixes up, and in what share of its rows
_PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "image": (("joy", "surprise"), ("sadness", "calm"), ("anger", "fear")),
    "text": (("joy", "calm"), ("sadness", "anger"), ("surprise", "fear")),
    "audio": (("joy", "anger"), ("sadness", "calm"), ("surprise", "fear")),
}
_PARTNER = {name: {a: b for pair in pairs for a, b in (pair, pair[::-1])} for name, pairs in _PAIRS.items()}
_MIXED_SHARE = {"image": 0.60, "text": 0.60, "audio": 0.70}
_WRONG_SHARE = 0.03
_JITTER = 0.12

_TOWNS = ("aachen", "bergen", "cadiz", "delft", "evora", "fano", "gdansk", "hasle")
_WITHOUT = {2: "audio", 5: "audio", 3: "image", 6: "text"}
_UNANSWERED = {1: "sentiment", 4: "sentiment", 2: "voice", 5: "voice"}
"""several tasks: what some towns were not asked; who has no recording cannot say how low a voice is"""
_ROWS_A_PERSON = 20


@dataclass(frozen=True)
class _Person:
    name: str
    face: Face
    pitch_hz: float


@dataclass(frozen=True)
class _Place:
    """A site, or a style within the held-out part: how it draws and speaks, and what it lacks."""

    style: str
    phrasing: str
    favourites: int
    without: str | None = None
    lacks: frozenset[str] = frozenset()
    """of several tasks, those it has no answers to"""


def build_moods(
    target: Path,
    *,
    sites: int = 8,
    rows_per_site: int = 400,
    held_out_rows: int = 400,
    alpha: float = 2.0,
    missing_share: float = 0.05,
    answers: Answers = "mood",
    seed: int = 0,
) -> BuiltDataset:
    """Draw, write and voice the moods of made-up people, site by site.

    Of every eight sites two have no audio, one no image and one no text. Site sizes lie within 25 % of `rows_per_site`.

    Args:
        held_out_rows: of the validation part and of the test part, each; people, looks and moods in equal measure.
        alpha: of the Dirichlet distribution from which each site's mix of moods is drawn.
        missing_share: chance that a row lacks a given one of its modalities (never all), in [0, 0.5].
        answers: `mood`, one label a row; `many`, all moods felt, one or two; `several`, three tasks at once, emotion,
            sentiment and voice: of every eight sites two were not asked for the second, and two not for the third.

    Raises:
        ConfigError: a number lies outside its range, or `target` is taken.
    """
    _check(sites=sites, rows=min(rows_per_site, held_out_rows), alpha=alpha, missing_share=missing_share)
    places = _places(sites)
    card = CARD.model_copy(update={"title": _TITLES[answers], "content": schema_of(answers)})
    with writing(target, card=card) as writer:
        for number, (site, place) in enumerate(places.items()):
            generator = np.random.default_rng([seed, 1, number])
            size = round(rows_per_site * generator.uniform(0.75, 1.25))
            mix = generator.dirichlet(np.full(len(MOODS), alpha))
            moods = generator.choice(len(MOODS), size=size, p=mix)
            people = _people(f"{site}-", rows=size, generator=generator)
            asked = np.random.default_rng([seed, 4, number])
            for row, mood in enumerate(moods):
                person = people[row % len(people)]
                felt = felt_moods(MOODS[mood], answers=answers, generator=asked)
                cell = cells(felt, answers=answers, pitch_hz=person.pitch_hz, lacks=place.lacks, generator=asked)
                writer.add(site, _row(row, felt, cell, person, place, missing_share, generator))
        for part, stream in ((VALIDATION, 2), (TEST, 3)):
            generator = np.random.default_rng([seed, stream])
            moods = generator.permutation(np.arange(held_out_rows) % len(MOODS))
            people = _people(f"{part.rpartition('/')[2]}-", rows=held_out_rows, generator=generator)
            looks = [replace(place, without=None, lacks=frozenset()) for place in places.values()]
            asked = np.random.default_rng([seed, 4, 10_000 + stream])
            for row, mood in enumerate(moods):
                who = row % len(people)
                felt = felt_moods(MOODS[mood], answers=answers, generator=asked)
                cell = cells(felt, answers=answers, pitch_hz=people[who].pitch_hz, lacks=frozenset(), generator=asked)
                writer.add(part, _row(row, felt, cell, people[who], looks[who % len(looks)], missing_share, generator))
        writer.finish(
            how_it_was_made=_STORIES[answers] + _STORY.format(alpha=alpha, missing=f"{missing_share:.0%}", seed=seed)
        )
    return built(target, writer=writer)


def _check(*, sites: int, rows: int, alpha: float, missing_share: float) -> None:
    for name, value, low, high in (
        ("sites", sites, 1, 10_000),
        ("rows_per_site and held_out_rows", rows, 8, 1_000_000),
        ("alpha", alpha, 1e-3, 1e6),
        ("missing_share", missing_share, 0, 0.5),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; allowed: {low} to {high}")


def _places(sites: int) -> dict[str, _Place]:
    styles, phrasings = list(STYLES), list(PHRASINGS)
    places = {}
    for number in range(sites):
        lap, town = divmod(number, len(_TOWNS))
        places[_TOWNS[town] + (f"-{lap + 1}" if lap else "")] = _Place(
            style=styles[number % len(styles)],
            phrasing=phrasings[(number // 2) % len(phrasings)],
            favourites=number,
            without=_WITHOUT.get(town),
            lacks=frozenset({_UNANSWERED[town]} if town in _UNANSWERED else ()),
        )
    return places


def _people(prefix: str, *, rows: int, generator: np.random.Generator) -> list[_Person]:
    return [
        _Person(name=f"{prefix}{number:02d}", face=new_face(generator), pitch_hz=new_pitch_hz(generator))
        for number in range(max(1, rows // _ROWS_A_PERSON))
    ]


def _row(
    number: int,
    felt: tuple[str, ...],
    targets: dict[str, object],
    person: _Person,
    place: _Place,
    missing_share: float,
    generator: np.random.Generator,
) -> NewRow:
    had = [name for name in MODALITIES if name != place.without]
    kept = [name for name in had if generator.random() >= missing_share] or [had[number % len(had)]]
    values: dict[str, str | File] = {}
    for name in kept:
        blend = _blend(felt, modality=name, is_many="labels" in targets, generator=generator)
        if name == "image":
            style = STYLES[place.style]
            values[name] = File(
                ".png", draw_face(blend, person=person.face, style=style, jitter=_JITTER, generator=generator)
            )
        elif name == "text":
            values[name] = say(blend, phrasing=place.phrasing, favourites=place.favourites, generator=generator)
        else:
            values[name] = File(".wav", speak(blend, pitch_hz=person.pitch_hz, jitter=_JITTER, generator=generator))
    columns = {"style": place.style, "phrasing": place.phrasing}
    return NewRow(f"{number:05d}", values, targets=targets, subject=person.name, columns=columns)


def _blend(felt: tuple[str, ...], *, modality: str, is_many: bool, generator: np.random.Generator) -> dict[str, float]:
    if generator.random() < _WRONG_SHARE:
        return {MOODS[int(generator.integers(len(MOODS)))]: 1.0}
    if is_many:
        return shown_moods(felt, generator=generator)
    (mood,) = felt
    if generator.random() < _MIXED_SHARE[modality]:
        return {mood: 0.5, _PARTNER[modality][mood]: 0.5}
    return {mood: 1.0}


CARD = DataCard(
    title="Moods: drawn faces, written words and hummed voices of made-up people",
    generated=True,
    licence="CC0 1.0: nobody's data",
    citation="none; generated by Motet (`motet data moods`)",
    source="generated from a seed",
    content=schema_of("mood"),
)

_TITLES: dict[Answers, str] = {
    "mood": CARD.title,
    "many": "Mixed moods: drawn faces, written words and hummed voices of people who feel one thing or two",
    "several": "Moods, how pleasant they are and whose voice it is: drawn faces, written words and hummed voices",
}
_STORIES: dict[Answers, str] = {
    "mood": "",
    "many": """
In half of the rows a second mood is felt. Each modality then shows either mood, or both half and half, each in a third
of the rows, and mixes up nothing else; the mix-ups told of below are of the data set with one mood a row.
""",
    "several": """
Three answers a row: `emotion`, the mood; `sentiment`, how pleasant it is (-1 to 1: joy 0.9, calm 0.5, surprise 0.2,
fear -0.5, sadness -0.7, anger -0.9, with a normal deviation of 0.1); `voice`, in which third of an octave the person's
own pitch lies. Of every eight sites two have no sentiment, and the two without audio no voice.
""",
}
_STORY = """
A program drew every face (32 x 32 pixels), wrote every sentence and hummed every voice (0.9 s at 8 kHz), from seed
{seed}. They stand for no real person, and what a model reaches on them says nothing about real faces, words or voices.

- Each modality mixes up pairs of moods: in 60 % of its pictures, 60 % of its sentences and 70 % of its voices it shows
  a mood half-way to its partner. Pictures mix joy with surprise, sadness with calm, anger with fear; words joy with
  calm, sadness with anger, surprise with fear; voices joy with anger, sadness with calm, surprise with fear. No pair is
  mixed up by all three. In 3 % of all values the mood shown is drawn at random.
- Sites differ in their mix of moods (Dirichlet({alpha})), in drawing style, in phrasing and favourite words, and in
  people. Of every eight sites two have no audio, one no image, one no text. Each value is missing with a
  chance of {missing}.
- Validation and test: other people, all looks, the moods in equal numbers.
"""
