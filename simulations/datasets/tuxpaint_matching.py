"""Tux Paint stamps for matching: which name belongs to which drawing; every category, native and English names.

in        Debian's package tuxpaint-stamps-default, through tuxpaint_source.py
out       one site a language; drawings held out whole, and others in public/ that a run may tell pairs from
relies on tuxpaint.py for rows and parts, writer.py for the folder
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.tuxpaint import StampAdder, Svg, card_of, drawn_parts, png_of, quoted
from simulations.datasets.tuxpaint_source import LANGUAGES, Stamp, copyright_of, read_stamps, stamps_folder
from simulations.datasets.writer import PUBLIC, TEST, VALIDATION, BuiltDataset, built, writing


def build_tuxpaint_matching(
    target: Path,
    *,
    source: Path | None = None,
    svg: Literal["draw", "leave-out"] = "draw",
    name: str = "english",
    validation_drawings: int = 80,
    test_drawings: int = 120,
    public_drawings: int = 120,
    image_side_px: int = 224,
    seed: int = 0,
) -> BuiltDataset:
    """Write the stamps as site folders: a row is a drawing, its name in the site's language and in English, its voice.

    A drawing is at the sites, or in one held-out part, or public, in all its languages.

    Args:
        source: the .deb, or a folder it was unpacked into; None takes the installed package or asks apt for it.
        svg: what becomes of drawings that are there only as SVG: drawn by resvg, or no rows.
        name: what drawings are matched with: "english" or "text", the name in the site's language.
        image_side_px: drawings are shrunk until neither side is longer; transparent parts become white.

    Raises:
        ConfigError: there are no stamps, too few of them, `name` is neither, or `target` is taken.
    """
    if name not in ("english", "text"):
        raise ConfigError(f"name is {name!r}; allowed: 'english', or 'text' for the name in the site's language")
    kept_apart = validation_drawings + test_drawings + public_drawings
    with stamps_folder(source) as folder:
        pictures = _distinct_pictures(read_stamps(folder), svg=svg, side_px=image_side_px)
        stamps = list(pictures)
        if len(stamps) <= kept_apart:
            raise ConfigError(f"{folder}: {len(stamps)} drawings; allowed: more than the {kept_apart} not at sites")
        sizes = {TEST: test_drawings, VALIDATION: validation_drawings, PUBLIC: public_drawings}
        parts = drawn_parts(stamps, sizes=sizes, seed=seed)
        with writing(target, card=matching_card(name)) as writer:
            adder = StampAdder(writer, matching=True)
            for number, (stamp, png) in enumerate(pictures.items()):
                adder.add(stamp, part=parts.get(stamp.key), number=number, png=png)
            writer.finish(
                how_it_was_made=_STORY.format(
                    drawings=len(stamps),
                    names=sum(len(stamp.names) for stamp in stamps),
                    at_sites=len(stamps) - kept_apart,
                    validation=validation_drawings,
                    test=test_drawings,
                    public=public_drawings,
                    side_px=image_side_px,
                    seed=seed,
                    copyright=quoted(copyright_of(folder)),
                )
            )
    return built(target, writer=writer)


def _distinct_pictures(stamps: Sequence[Stamp], *, svg: Svg, side_px: int) -> dict[Stamp, bytes]:
    """Each stamp and its picture; of those with the very same one the first, or it could be at a site and held out."""
    seen, kept = set[bytes](), dict[Stamp, bytes]()
    for stamp in stamps:
        if svg == "leave-out" and stamp.drawing.suffix == ".svg":
            continue
        png = png_of(stamp.drawing, svg=svg, side_px=side_px)
        if png is not None and png not in seen:
            seen.add(png)
            kept[stamp] = png
    return kept


def matching_card(name: str) -> DataCard:
    """What the data set says of itself, with drawings matched with this modality."""
    return card_of(("", "-")).model_copy(
        update={
            "title": f"Tux Paint stamps: drawings and their names in {len(LANGUAGES)} languages, to be matched",
            "content": DataSchema(
                task="matching",
                pair=("image", name),
                item="subject_id",
                modalities={
                    "image": ModalitySchema(kind="image"),
                    "text": ModalitySchema(kind="text"),
                    "english": ModalitySchema(kind="text"),
                    "audio": ModalitySchema(kind="audio"),
                },
                groups=("language", "category"),
            ),
        }
    )


_STORY = """
Volunteers drew the stamps, named them in many languages and spoke the names. Kept are {drawings} drawings of every
category and their {names} names written in nine languages. Each language is a site. A row is a drawing (`image`), its
name in the site's language (`text`), the English name it was translated from (`english`) and, where somebody spoke
it, its spoken name (`audio`). `category` is the package's folder. `subject_id` is the drawing: rows that share it show
the same thing.

- {at_sites} drawings are at the sites, {validation} held out for validation and {test} for the test, and {public} in
  `public/`, the same share of every category; a drawing is in one of them alone, with all its languages.
- Drawings are at most {side_px} pixels a side, on white; those there only as SVG were drawn with resvg.
- Of drawings that are there twice, the very same picture, one is kept. Names are not unique: two drawings may well be
  called the same.
- Seed {seed}.

The package's copyright file:

{copyright}
"""
