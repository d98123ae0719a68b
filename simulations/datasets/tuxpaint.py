"""Tux Paint stamps: children's drawings, each with its name written and spoken in up to nine languages.

in        Debian's package tuxpaint-stamps-default, through tuxpaint_source.py
out       one site a language; some drawings are held out in all languages
relies on writer.py for the folder
"""

import hashlib
import importlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.tuxpaint_source import LANGUAGES, Stamp, copyright_of, read_stamps, stamps_folder
from simulations.datasets.writer import TEST, VALIDATION, BuiltDataset, DatasetWriter, File, NewRow, built, writing

Svg = Literal["without-image", "draw", "leave-out"]


def build_tuxpaint(
    target: Path,
    *,
    source: Path | None = None,
    svg: Svg = "draw",
    categories: int = 10,
    validation_drawings: int = 80,
    test_drawings: int = 120,
    image_side_px: int = 224,
    seed: int = 0,
) -> BuiltDataset:
    """Write the stamps as site folders: a row is a drawing, its name in the site's language and in English, its voice.

    Drawings are held out whole, in all languages: in every category the same share of them, drawn at random. A name
    that nobody spoke is a row without audio.

    Args:
        source: the .deb, or a folder it was unpacked into; None takes the installed package or asks apt for it.
        svg: what becomes of drawings that are there only as SVG: drawn by resvg; rows without an image; or no rows.
        categories: how many of the largest category folders become labels.
        image_side_px: drawings are shrunk until neither side is longer; transparent parts become white.

    Raises:
        ConfigError: there are no stamps, too few of them, or `target` is taken.
    """
    with stamps_folder(source) as folder:
        stamps = [stamp for stamp in read_stamps(folder) if svg != "leave-out" or stamp.drawing.suffix == ".png"]
        sizes = Counter(stamp.category for stamp in stamps)
        labels = tuple(sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:categories]))
        stamps = [stamp for stamp in stamps if stamp.category in labels]
        if len(labels) < 2 or len(stamps) <= validation_drawings + test_drawings:
            raise ConfigError(
                f"{folder}: {len(stamps)} drawings in {len(labels)} categories; allowed: two categories or more, and "
                f"more drawings than the {validation_drawings + test_drawings} held out"
            )
        parts = drawn_parts(stamps, sizes={TEST: test_drawings, VALIDATION: validation_drawings}, seed=seed)
        with writing(target, card=card_of(labels)) as writer:
            adder = StampAdder(writer)
            for number, stamp in enumerate(stamps):
                png = png_of(stamp.drawing, svg=svg, side_px=image_side_px)
                adder.add(stamp, part=parts.get(stamp.key), number=number, png=png)
            only_svg = sum(stamp.drawing.suffix == ".svg" for stamp in stamps)
            writer.finish(
                how_it_was_made=_STORY.format(
                    drawings=len(stamps),
                    names=sum(len(stamp.names) for stamp in stamps),
                    spoken=sum(voice is not None for stamp in stamps for _, voice in stamp.names.values()),
                    only_svg=only_svg,
                    fate={"without-image": "have no image", "draw": "were drawn with resvg"}.get(svg, "were left out"),
                    validation=validation_drawings,
                    test=test_drawings,
                    side_px=image_side_px,
                    repeated=adder.repeated,
                    known=f"{_known_names(stamps, parts):.0%}",
                    seed=seed,
                    copyright=quoted(copyright_of(folder)),
                )
            )
    return built(target, writer=writer)


def drawn_parts(stamps: Sequence[Stamp], *, sizes: Mapping[str, int], seed: int) -> dict[str, str]:
    """Key -> part, of the drawings that are at no site.

    Each category is shuffled and spread over [0, 1]; the lowest come first, so each gives the same share of its own.

    Args:
        sizes: part -> how many drawings; parts are filled in this order.
    """
    generator = np.random.default_rng([seed, 4])
    position: dict[str, float] = {}
    for category in sorted({stamp.category for stamp in stamps}):
        keys = [stamp.key for stamp in stamps if stamp.category == category]
        for rank, index in enumerate(generator.permutation(len(keys))):
            position[keys[int(index)]] = (rank + generator.random()) / len(keys)
    parts = [part for part, size in sizes.items() for _ in range(size)]
    return dict(zip(sorted(position, key=lambda key: position[key]), parts, strict=False))


class StampAdder:
    """Puts the rows of one stamp after another into their parts, each recording once a part."""

    def __init__(self, writer: DatasetWriter, *, matching: bool = False) -> None:
        self.repeated = 0
        """rows without audio because a row before them has the very same recording"""
        self._writer, self._matching = writer, matching
        self._heard: set[tuple[str, bytes]] = set()

    def add(self, stamp: Stamp, *, part: str | None, number: int, png: bytes | None) -> None:
        """Add a row for each language of the stamp, to `part` or to the language's site."""
        for language, (written, spoken) in stamp.names.items():
            values: dict[str, str | File] = {"text": written}
            if stamp.english:
                values["english"] = stamp.english
            place = part or language
            if spoken is not None and self._is_new(spoken, place=place):
                values["audio"] = File(".ogg", spoken)
            if png is not None:
                values["image"] = File(".png", png)
            row = NewRow(
                f"{number:04d}-{language}",
                values,
                targets={} if self._matching else {"label": stamp.category},
                subject=stamp.key,
                columns={"language": language} | ({"category": stamp.category} if self._matching else {}),
            )
            self._writer.add(place, row)

    def _is_new(self, recording: Path, *, place: str) -> bool:
        heard = (place, hashlib.sha256(recording.read_bytes()).digest())
        if heard in self._heard:
            self.repeated += 1
            return False
        self._heard.add(heard)
        return True


def png_of(path: Path, *, svg: Svg, side_px: int) -> bytes | None:
    """A drawing as a PNG file on white, neither side longer than `side_px`; None where SVG is not drawn.

    Raises:
        ConfigError: it is no readable picture, or what draws SVG is not installed.
    """
    drawing = _picture(path, svg=svg, side_px=side_px)
    if drawing is None:
        return None
    content = io.BytesIO()
    drawing.save(content, "PNG")
    return content.getvalue()


def _picture(path: Path, *, svg: Svg, side_px: int) -> Image.Image | None:
    if path.suffix == ".svg" and svg != "draw":
        return None
    content = io.BytesIO(_drawn(path, side_px=side_px) if path.suffix == ".svg" else path.read_bytes())
    try:
        with Image.open(content) as image:
            drawing = image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path}: not readable as an image: {error}; unpack the package again") from None
    drawing.thumbnail((side_px, side_px))
    page = Image.new("RGB", drawing.size, "white")
    page.paste(drawing, mask=drawing)
    return page


def _known_names(stamps: list[Stamp], parts: dict[str, str]) -> float:
    """Share of the test rows whose written name some other drawing at a site has too."""
    at_sites = {(k, v[0]) for stamp in stamps if stamp.key not in parts for k, v in stamp.names.items()}
    test = [(k, v[0]) for stamp in stamps if parts.get(stamp.key) == TEST for k, v in stamp.names.items()]
    return sum(name in at_sites for name in test) / max(1, len(test))


def _drawn(path: Path, *, side_px: int) -> bytes:
    try:
        resvg_py = importlib.import_module("resvg_py")
    except ImportError:
        raise ConfigError(
            "svg is 'draw', which needs the package resvg-py; install it (pip install resvg-py==0.5.0), or take "
            "'without-image' or 'leave-out'"
        ) from None
    try:
        # without a resolution resvg takes sizes in points for zero
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=2 * side_px, dpi=96.0))
    except ValueError as error:
        raise ConfigError(f"{path}: not drawable: {error}; take svg 'without-image'") from None


def quoted(text: str) -> str:
    """The package's copyright file as a Markdown quotation."""
    return "\n".join(
        f"> {line}".rstrip() for line in (text or "(the package's copyright file was not there)").splitlines()
    )


def card_of(labels: tuple[str, ...]) -> DataCard:
    """What the data set says of itself, with these categories as its labels."""
    return DataCard(
        title=f"Tux Paint stamps: drawing, written and spoken name in {len(LANGUAGES)} languages",
        generated=False,
        licence="GPL-2.0-or-later, as the package's copyright file states (quoted in README.md)",
        citation="Tux Paint stamps, Bill Kendrick and contributors, 2002-2022, https://tuxpaint.org/stamps/",
        source="https://packages.debian.org/tuxpaint-stamps-default",
        content=DataSchema(
            task="single-label",
            labels=labels,
            modalities={
                "image": ModalitySchema(kind="image"),
                "text": ModalitySchema(kind="text"),
                "english": ModalitySchema(kind="text"),
                "audio": ModalitySchema(kind="audio"),
            },
            groups=("language",),
        ),
    )


_STORY = """
Volunteers drew the stamps, named them in many languages and spoke the names. Kept are {drawings} drawings of the
largest category folders (the label) and their {names} names written in nine languages, of which {spoken} are spoken
too; the others are rows without audio. `english` is the name that the others were translated from, the same in all
languages. Each language is a site. `subject_id` is the drawing: it appears at a site once, and at several sites. In the
held-out parts one drawing is in a row for each of its languages, the same file each time.

- Drawings are at most {side_px} pixels a side, on white. Where a stamp is there as PNG and as SVG, the PNG was taken;
  {only_svg} are there only as SVG: they {fate}.
- Speech is as it came: Ogg Vorbis, mostly 44.1 kHz stereo. Where the package has one recording for several drawings
  of a part, the first of them has it, and {repeated} more rows have none.
- Held out are {test} drawings for the test and {validation} for validation, each in all its languages, the same
  share of every category. No site has a row about them, but names are not
  unique: {known} of the test rows have a written name that another drawing at the site has too.
- So few drawings are tested that the draw itself moves a score by several points: report it over several seeds.
- Seed {seed}.

The package's copyright file:

{copyright}
"""
