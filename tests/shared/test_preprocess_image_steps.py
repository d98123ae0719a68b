"""Enhancement and segmentation of pictures: each step does to a made-up picture what its name says."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from shared.errors import ConfigError, ModelError
from shared.preprocess.frozen import FrozenImagePreprocessor
from shared.preprocess.image import ImageOptions, ImagePreprocessor
from shared.preprocess.pretrained import Checkpoint
from shared.preprocess.pretrained_image import FrozenImageOptions
from shared.settings import parse_settings

SIZE = 32
STEPS: list[dict[str, object]] = [
    {"denoise": "median"},
    {"denoise": "gaussian"},
    {"contrast": "auto"},
    {"contrast": "factor"},
    {"equalise": "global"},
    {"equalise": "adaptive"},
    {"sharpen": 1.0},
    {"segment": "otsu"},
    {"segment": "edge"},
    {"segment": "otsu", "segment_as": "channel"},
    {"segment": "edge", "segment_as": "channel"},
    {"segment": "otsu", "segment_as": "crop"},
    {"segment": "edge", "segment_as": "crop"},
]
ALL_STEPS = {"denoise": "median", "contrast": "auto", "equalise": "adaptive", "sharpen": 1.0}


def options(table: dict[str, object]) -> ImageOptions:
    return parse_settings(ImageOptions, {"size": SIZE, "mode": "L", **table}, place="here")


def pixels(picture: npt.NDArray[Any], **table: object) -> npt.NDArray[np.int64]:
    """The picture's grey values in the run's size, which is its own."""
    return ImagePreprocessor(options(table)).read(Image.fromarray(picture.astype(np.uint8)))[0].numpy().astype(np.int64)


def square(*, dark: int = 40, light: int = 200, noise: float = 0.0) -> npt.NDArray[np.float64]:
    """A light square from 8 to 24 on a dark ground."""
    picture = np.full((SIZE, SIZE), dark, dtype=np.float64)
    picture[8:24, 8:24] = light
    return (picture + np.random.default_rng(0).normal(0, noise, picture.shape)).clip(0, 255)


INSIDE = square(dark=0, light=1) > 0


@pytest.mark.parametrize("table", STEPS)
def test_every_step_changes_the_digest_and_what_comes_out(table: dict[str, object]) -> None:
    plain, stepped = ImagePreprocessor(options({})), ImagePreprocessor(options(table))
    picture = Image.fromarray(square(noise=12).astype(np.uint8))

    assert stepped.digest != plain.digest
    assert not torch.equal(stepped.read(picture)[-1], plain.read(picture)[0])
    assert torch.equal(stepped.read(picture), ImagePreprocessor(options(table)).read(picture.copy()))


@pytest.mark.parametrize("table", [*STEPS, ALL_STEPS])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_blank_tiny_and_extreme_pictures_come_through_every_step(table: dict[str, object], mode: str) -> None:
    door = ImagePreprocessor(options({**table, "mode": mode}))
    noise = np.random.default_rng(1).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    black_and_white = np.zeros((40, 40), np.uint8)
    black_and_white[::2] = 255
    pictures = [Image.new("L", (30, 30), grey) for grey in (0, 128, 255)]
    pictures += [Image.new("RGB", size, (9, 200, 30)) for size in ((1, 1), (1, 70), (70, 2))]
    for picture in (*pictures, Image.fromarray(noise), Image.fromarray(black_and_white)):
        values = door.read(picture)
        assert values.shape == door.shape
        assert door.finish(values[None]).abs().max() <= 1


def test_the_median_removes_single_pixels_and_keeps_an_edge() -> None:
    picture = square()
    picture[4, 4], picture[16, 16], picture[28, 10] = 255, 0, 255
    clean = square().astype(np.int64)
    clean[[8, 8, 23, 23], [8, 23, 8, 23]] = 40  # a median of 3 x 3 takes the corners of a square

    assert np.array_equal(pixels(picture, denoise="median"), clean)


def test_a_gaussian_makes_noise_smaller_by_the_known_factor() -> None:
    """The deviation of white noise falls to 1 / (2 sqrt(pi) sigma), here .14; Pillow's three boxes come near that."""
    noise = np.random.default_rng(0).normal(128, 30, (SIZE, SIZE)).clip(0, 255)
    smooth = pixels(noise, denoise="gaussian", denoise_sigma=2.0)
    assert 0.10 < smooth[6:-6, 6:-6].std() / noise.std() < 0.18


def test_automatic_contrast_reaches_black_and_white_and_the_cutoff_ignores_outliers() -> None:
    picture = square(dark=100, light=140)
    picture[0, 0] = 255

    assert set(np.unique(pixels(picture, contrast="auto", contrast_cutoff=1.0))) == {0, 255}
    assert pixels(picture, contrast="auto", contrast_cutoff=0.0)[16, 16] < 100


def test_the_contrast_factor_multiplies_around_the_mean() -> None:
    picture = square(dark=100, light=140)
    mean = round(picture.mean())
    got = pixels(picture, contrast="factor", contrast_factor=2.0)
    assert abs(got[0, 0] - (mean + 2 * (100 - mean))) <= 1
    assert abs(got[16, 16] - (mean + 2 * (140 - mean))) <= 1


def test_global_equalisation_makes_all_levels_equally_frequent() -> None:
    dark = np.random.default_rng(0).beta(2, 9, (SIZE, SIZE)) * 255
    even = pixels(dark, equalise="global")
    counts = np.histogram(even, bins=4, range=(0, 256))[0]
    assert (np.abs(counts / even.size - 0.25) < 0.05).all()
    assert (np.histogram(dark, bins=4, range=(0, 256))[0] / dark.size).max() > 0.5


def test_adaptive_equalisation_raises_contrast_where_light_is_uneven() -> None:
    draw = np.random.default_rng(0)
    shade = np.where(np.arange(SIZE) < SIZE // 2, 40.0, 180.0)[None, :] + draw.normal(0, 4, (SIZE, SIZE))
    adaptive = pixels(shade, equalise="adaptive", equalise_tiles=2, equalise_limit=0.5)
    whole = pixels(shade, equalise="global")
    left = slice(2, 14)
    assert adaptive[:, left].std() > 1.3 * whole[:, left].std() > shade[:, left].std()


def test_colours_keep_their_hue_under_equalisation() -> None:
    picture = Image.fromarray(np.stack([square(), square() / 2, square() / 4], axis=2).astype(np.uint8))
    for table in ({"equalise": "global"}, {"equalise": "adaptive"}, {"contrast": "auto"}):
        red, green, blue = ImagePreprocessor(options({**table, "mode": "RGB"})).read(picture)[:, 16, 16].tolist()
        assert red > green > blue


def test_sharpening_overshoots_at_an_edge_and_leaves_flat_parts_alone() -> None:
    got = pixels(square(), sharpen=1.0)
    assert got[16, 8] > 200
    assert got[16, 7] < 40
    assert got[16, 16] == 200
    assert got[1, 1] == 40


@pytest.mark.parametrize("how", ["otsu", "edge"])
def test_the_mask_finds_the_square_in_noise(how: str) -> None:
    door = ImagePreprocessor(options({"segment": how, "segment_as": "channel"}))
    values = door.read(Image.fromarray(square(noise=12).astype(np.uint8)))

    assert door.shape == (2, SIZE, SIZE)
    mask = values[1].numpy() > 127
    assert (mask & INSIDE).sum() / (mask | INSIDE).sum() > 0.8
    assert torch.equal(
        values[:1], ImagePreprocessor(options({})).read(Image.fromarray(square(noise=12).astype(np.uint8)))
    )


@pytest.mark.parametrize("how", ["otsu", "edge"])
def test_a_mask_blanks_the_background_to_the_grey_of_the_padding(how: str) -> None:
    got = pixels(square(), segment=how, fill=7)
    assert got[2, 2] == 7
    assert got[16, 16] == 200


@pytest.mark.parametrize("how", ["otsu", "edge"])
def test_a_crop_goes_to_the_box_around_the_square(how: str) -> None:
    got = pixels(square(), segment=how, segment_as="crop", segment_margin=0.0)
    assert (got[4:-4, 4:-4] == 200).all()
    with_margin = pixels(square(), segment=how, segment_as="crop", segment_margin=0.5)
    assert with_margin[0, 0] == 40
    assert with_margin[16, 16] == 200


def test_the_rarer_side_on_the_border_is_foreground_unless_a_side_is_asked_for() -> None:
    dark_square = square(dark=200, light=40)
    assert pixels(dark_square, segment="otsu", fill=7)[[2, 16], [2, 16]].tolist() == [7, 40]
    assert pixels(dark_square, segment="otsu", segment_side="light", fill=7)[[2, 16], [2, 16]].tolist() == [200, 7]
    assert pixels(square(), segment="otsu", segment_side="dark", fill=7)[[2, 16], [2, 16]].tolist() == [40, 7]


def test_where_nothing_stands_out_the_picture_stays_whole() -> None:
    flat = np.full((SIZE, SIZE), 90.0)
    for how in ("otsu", "edge"):
        for use in ("mask", "crop"):
            assert (pixels(flat, segment=how, segment_as=use) == 90).all()


def test_steps_are_taken_at_a_size_that_no_camera_decides() -> None:
    """The same drawing at 4 and 8 times the working size; a step at the file's own size would blur the first twice as much."""
    doors = ImagePreprocessor(options({"denoise": "gaussian", "denoise_sigma": 3.0}))
    drawing = Image.fromarray(square().astype(np.uint8))
    small, large = (drawing.resize((SIZE * times,) * 2, Image.Resampling.NEAREST) for times in (8, 16))
    assert (doors.read(small).int() - doors.read(large).int()).abs().max() <= 4


def test_an_even_window_has_no_middle() -> None:
    with pytest.raises(ConfigError, match="an even window has no middle; allowed: 3, 5"):
        options({"denoise": "median", "denoise_size": 4})


def test_a_frozen_network_takes_no_mask_as_a_channel() -> None:
    frozen = FrozenImageOptions(segment="otsu", segment_as="channel")
    with pytest.raises(ModelError, match="segment_as is 'channel'; allowed: 'mask' or 'crop'"):
        FrozenImagePreprocessor(frozen, checkpoint=Checkpoint(path=Path("nowhere"), digest=""))
