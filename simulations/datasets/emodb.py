"""EmoDB, the Berlin database of emotional speech: ten people speak ten sentences in several emotions.

in        a folder with the recordings under their published names, such as 03a01Fa.wav
out       one site a speaker; some speakers for validation, others for the test
relies on the names alone (speaker, sentence, emotion, version) and on writer.py for the folder
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.writer import TEST, VALIDATION, BuiltDataset, File, NewRow, built, writing

_EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
# http://emodb.bilderbar.info/index-1280.html
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_GENDERS = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "man"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "woman"),
}
_NAME = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<version>[a-z])")


@dataclass(frozen=True)
class _Recording:
    path: Path
    speaker: str
    sentence: str
    emotion: str


def build_emodb(
    target: Path,
    *,
    source: Path,
    validation_speakers: int = 2,
    test_speakers: int = 2,
    twice: bool = False,
    seed: int = 0,
) -> BuiltDataset:
    """Write EmoDB as site folders: a site is a speaker; a row is a recording and the sentence spoken.

    Held-out speakers stand in one mixed order, women and men by turns; a seed says how far it is turned, so that seeds
    that follow each other test other speakers, until all have had their turn. The sentences carry no emotion: every
    emotion has all of them.

    Args:
        source: a folder with .wav or .flac files under their published names, at any depth; every emotion that occurs
            becomes a label.
        twice: the recording is also modality `voice`, so that a second encoder can read it.
        seed: the test begins `seed * test_speakers` places along the order of speakers.

    Raises:
        ConfigError: there are no such files, too few speakers, or `target` is taken.
    """
    recordings = _read(source)
    emotions = {recording.emotion for recording in recordings}
    speakers = sorted({recording.speaker for recording in recordings})
    held_out = validation_speakers + test_speakers
    if min(validation_speakers, test_speakers) < 1 or held_out >= len(speakers) or len(emotions) < 2:
        raise ConfigError(
            f"{source}: {len(speakers)} speakers, {len(emotions)} emotions, {validation_speakers} speakers for "
            f"validation, {test_speakers} for the test; allowed: one or more for each, fewer than {len(speakers)} "
            "together, two emotions or more"
        )
    order = _by_turns(speakers, generator=np.random.default_rng([0, 6]))
    first = seed * test_speakers % len(order)
    order = order[first:] + order[:first]
    parts = dict.fromkeys(order[:test_speakers], TEST) | dict.fromkeys(order[test_speakers:held_out], VALIDATION)
    labels = tuple(label for label in _EMOTIONS.values() if label in emotions)
    with writing(target, card=_card(labels, twice=twice)) as writer:
        for recording in recordings:
            sound = File(recording.path.suffix, recording.path)
            row = NewRow(
                recording.path.stem,
                dict.fromkeys(("audio", "voice") if twice else ("audio",), sound)
                | {"text": _SENTENCES[recording.sentence]},
                targets={"label": recording.emotion},
                subject=recording.speaker,
                columns={"gender": _GENDERS[recording.speaker], "sentence": recording.sentence},
            )
            writer.add(parts.get(recording.speaker, f"speaker-{recording.speaker}"), row)
        story = _STORY.format(recordings=len(recordings), test=test_speakers, validation=validation_speakers, seed=seed)
        writer.finish(how_it_was_made=story)
    return built(target, writer=writer)


def _by_turns(speakers: list[str], *, generator: np.random.Generator) -> list[str]:
    mixed = [speakers[int(index)] for index in generator.permutation(len(speakers))]
    lines = [[speaker for speaker in mixed if _GENDERS[speaker] == gender] for gender in ("woman", "man")]
    turns = [speaker for pair in zip(*lines, strict=False) for speaker in pair]
    return turns + [speaker for speaker in mixed if speaker not in turns]


def _read(source: Path) -> list[_Recording]:
    found: dict[str, _Recording] = {}
    for path in sorted(source.rglob("*")):
        match = _NAME.fullmatch(path.stem)
        if path.suffix not in (".wav", ".flac") or match is None or not path.is_file():
            continue
        speaker, sentence = match["speaker"], match["sentence"]
        if speaker not in _GENDERS or sentence not in _SENTENCES:
            raise ConfigError(
                f"{path}: speaker {speaker}, sentence {sentence}; allowed: speakers {sorted(_GENDERS)}, sentences "
                f"{sorted(_SENTENCES)}"
            )
        if path.stem in found:
            raise ConfigError(f"{path}: there is also {found[path.stem].path}; give a folder with one of each")
        found[path.stem] = _Recording(path, speaker, sentence, _EMOTIONS[match["emotion"]])
    if not found:
        raise ConfigError(
            f"{source}: no recordings; allowed: a folder with EmoDB's files, such as 03a01Fa.wav, from "
            "http://emodb.bilderbar.info"
        )
    return list(found.values())


def _card(labels: tuple[str, ...], *, twice: bool) -> DataCard:
    sounds = dict.fromkeys(("audio", "voice") if twice else ("audio",), ModalitySchema(kind="audio"))
    return DataCard(
        title="EmoDB: emotional speech of ten speakers, with the sentences spoken",
        generated=False,
        licence="freely usable, as its authors state",
        citation=(
            "F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss. A database of German emotional speech. "
            "Interspeech 2005"
        ),
        source="http://emodb.bilderbar.info",
        content=DataSchema(
            task="single-label",
            labels=labels,
            modalities=sounds | {"text": ModalitySchema(kind="text")},
            groups=("gender",),
            ignored=("sentence",),
        ),
    )


_STORY = """
Ten actors, five women and five men, spoke ten everyday German sentences in several emotions; here are {recordings} of
the recordings, as they came. Each speaker is a site. The text is the sentence spoken: by design it does not carry the
emotion, so a model that does well on text alone has learnt something else.

- Held out, women and men by turns: {test} speakers for the test, {validation} for validation.
- Seed {seed}: the test begins {test} x {seed} places along one mixed order of the speakers, and validation follows it,
  so that the seeds 0, 1, 2 and so on test other speakers.
"""
