"""Faces of the generated moods: a mood becomes mouth, brows and eyes, a style becomes colours and lines.

in        a blend of moods (weights that sum to 1), a person, a style
out       PNG bytes, 32 x 32 pixels, RGB
relies on nothing but Pillow; the draws come from the caller's generator
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 32
_FINE = 4  # drawn so many times larger, then averaged down: smooth lines at 32 pixels
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """How a site's pictures look: the same moods with other ink."""

    paper: Colour
    skin: Colour
    ink: Colour
    line_px: float


STYLES: dict[str, Style] = {
    "pencil": Style((250, 250, 250), (228, 228, 228), (40, 40, 40), 1.2),
    "crayon": Style((255, 246, 220), (250, 205, 150), (90, 40, 20), 1.7),
    "pastel": Style((225, 235, 250), (245, 220, 225), (70, 60, 110), 1.4),
    "poster": Style((200, 225, 215), (255, 225, 120), (25, 25, 60), 2.0),
}

# mouth curve (1 smiles), mouth opening, brow slope (1 rises inwards), brow height, eye opening
_FEATURES: dict[str, tuple[float, float, float, float, float]] = {
    "joy": (1.0, 0.45, 0.0, 0.3, 0.55),
    "surprise": (0.0, 1.0, 0.1, 1.0, 1.0),
    "sadness": (-1.0, 0.0, 0.9, 0.1, 0.35),
    "calm": (0.35, 0.0, 0.0, 0.1, 0.25),
    "anger": (-0.8, 0.3, -1.0, -0.4, 0.6),
    "fear": (-0.45, 0.65, 0.8, 0.8, 1.0),
}


@dataclass(frozen=True)
class Face:
    """What stays the same in all pictures of one person."""

    width: float
    """of the head, as a share of the usual one"""
    height: float
    hair: Colour


def new_face(generator: np.random.Generator) -> Face:
    """A person's head and hair."""
    shade = int(generator.integers(30, 150))
    hair = (shade, int(shade * generator.uniform(0.5, 1.0)), int(shade * generator.uniform(0.3, 1.0)))
    return Face(width=generator.uniform(0.9, 1.08), height=generator.uniform(0.92, 1.05), hair=hair)


def draw_face(
    blend: Mapping[str, float], *, person: Face, style: Style, jitter: float, generator: np.random.Generator
) -> bytes:
    """A face whose features are the blend of its moods', each moved by `jitter` times a standard normal."""
    features = sum(weight * np.array(_FEATURES[mood]) for mood, weight in blend.items())
    curve, opening, slope, lift, eye = features + generator.normal(0.0, jitter, size=5)
    side = SIDE_PX * _FINE
    image = Image.new("RGB", (side, side), style.paper)
    pen = ImageDraw.Draw(image)
    middle = side / 2 + generator.normal(0.0, 0.5 * _FINE, size=2)
    reach = np.array([0.40 * person.width, 0.44 * person.height]) * side
    line = round(style.line_px * _FINE)
    pen.ellipse([*(middle - reach), *(middle + reach)], fill=style.skin, outline=style.ink, width=line // 2)
    pen.chord([*(middle - reach), *(middle + reach)], 205, 335, fill=person.hair)
    for sign in (-1, 1):
        eye_at = middle + reach * np.array([0.42 * sign, -0.12])
        eye_reach = np.array([0.15 * reach[0], reach[1] * (0.03 + 0.15 * float(np.clip(eye, 0.0, 1.3)))])
        pen.ellipse([*(eye_at - eye_reach), *(eye_at + eye_reach)], fill=style.ink)
        inner = eye_at + reach * np.array([-0.20 * sign, -0.27 - 0.10 * lift - 0.12 * slope])
        outer = eye_at + reach * np.array([0.24 * sign, -0.27 - 0.10 * lift + 0.12 * slope])
        pen.line([*inner, *outer], fill=style.ink, width=line)
    _draw_mouth(pen, middle=middle, reach=reach, curve=curve, opening=opening, ink=style.ink, line=line)
    content = io.BytesIO()
    image.reduce(_FINE).save(content, "PNG", compress_level=3)
    return content.getvalue()


def _draw_mouth(
    pen: ImageDraw.ImageDraw,
    *,
    middle: np.ndarray,
    reach: np.ndarray,
    curve: float,
    opening: float,
    ink: Colour,
    line: int,
) -> None:
    along = np.linspace(-1.0, 1.0, 15)
    half_width = 0.46 - 0.14 * float(np.clip(opening, 0.0, 1.0))
    bend = 0.20 * curve * (0.5 - along**2)
    gap = 0.24 * max(0.0, opening) * np.sqrt(1 - along**2)
    lips = [
        np.stack([middle[0] + along * half_width * reach[0], middle[1] + reach[1] * (0.52 + bend + sign * gap)], axis=1)
        for sign in (-1, 1)
    ]
    around = [(float(x), float(y)) for x, y in np.concatenate([lips[0], lips[1][::-1]])]
    pen.polygon(around, fill=ink)
    for lip in lips:
        pen.line([(float(x), float(y)) for x, y in lip], fill=ink, width=line, joint="curve")
