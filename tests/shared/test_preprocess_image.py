"""Images: any picture becomes a square of the run's size, by public constants alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shared.preprocess.image import ImageOptions, ImagePreprocessor

RED_TOP = Image.fromarray(np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8).repeat(20, 0), 80, 1))


def finish(options: ImageOptions, picture: Image.Image) -> Tensor:
    door = ImagePreprocessor(options)
    return door.finish(door.read(picture)[None])[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64)])
def test_every_picture_has_the_promised_shape_and_range(mode: str, size: tuple[int, int]) -> None:
    for wanted in ("RGB", "L"):
        door = ImagePreprocessor(ImageOptions(size=16, mode=wanted))
        pixels = door.read(Image.new(mode, size))
        assert pixels.dtype == torch.uint8
        assert pixels.shape == door.shape == (3 if wanted == "RGB" else 1, 16, 16)
        assert door.finish(pixels[None]).abs().max() <= 1


def test_the_default_constants_bring_black_to_minus_one_and_white_to_one() -> None:
    assert torch.equal(finish(ImageOptions(size=8), Image.new("RGB", (5, 5), (255,) * 3)), torch.ones(3, 8, 8))
    assert torch.equal(finish(ImageOptions(size=8), Image.new("RGB", (5, 5))), -torch.ones(3, 8, 8))


def test_a_wide_picture_is_padded_cropped_or_stretched_as_asked() -> None:
    padded = finish(ImageOptions(size=16, fill=255), RED_TOP)
    assert torch.equal(padded[:, :3], torch.ones(3, 3, 16))
    assert torch.equal(padded[:, 5, 8], torch.tensor([1.0, -1.0, -1.0]))

    for fit in ("crop", "stretch"):
        whole = finish(ImageOptions(size=16, fit=fit), RED_TOP)
        assert torch.equal(whole[:, 0, 8], torch.tensor([1.0, -1.0, -1.0]))
        assert torch.equal(whole[:, -1, 8], torch.tensor([-1.0, -1.0, 1.0]))


def test_the_digest_changes_with_every_setting() -> None:
    variants = [
        ImageOptions(), ImageOptions(size=16), ImageOptions(mode="L"), ImageOptions(fit="crop"), ImageOptions(fill=9),
        ImageOptions(center=0.0), ImageOptions(spread=255.0),
    ]  # fmt: skip
    digests = [ImagePreprocessor(options).digest for options in variants]

    assert len(set(digests)) == len(variants)
    assert ImagePreprocessor(ImageOptions()).digest == digests[0]


def test_a_value_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="reads an image; came: str"):
        ImagePreprocessor(ImageOptions()).read("a text")
