"""Clips as tensors: the frames that a run asks for, each prepared as a picture would be."""

from collections.abc import Collection, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shared.errors import ModelError
from shared.media import Clip
from shared.media.clip import clip_of
from shared.media.video import decode_video
from shared.model.encoders import preprocessor
from shared.preprocess import RawValue
from shared.preprocess.image import ImageOptions, ImagePreprocessor
from shared.preprocess.video import VideoOptions, VideoPreprocessor, picked
from tests.shared.clips import greys, video_bytes
from tests.shared.example_runs import example_run

PICTURES = ImagePreprocessor(ImageOptions(size=8))


def way(**options: object) -> VideoPreprocessor:
    return VideoPreprocessor(VideoOptions.model_validate(options), pictures=PICTURES)


def grey_clip(num: int, *, rate_hz: float = 10.0) -> Clip:
    return clip_of([Image.fromarray(values) for values in greys(num)], rate_hz=rate_hz)


def shades(values: Tensor) -> list[int]:
    return [round(float(frame.float().mean())) // 20 for frame in values[:, :, 2:6, 2:6]]


def test_a_clip_becomes_as_many_squares_as_are_asked_for_and_floats_around_zero() -> None:
    door = way(frames=4)
    read = door.read(grey_clip(12))
    finished = door.finish(torch.stack([read, read]))

    assert (read.dtype, tuple(read.shape), door.shape) == (torch.uint8, (4, 3, 8, 8), (4, 3, 8, 8))
    assert tuple(finished.shape) == (2, 4, 3, 8, 8)
    torch.testing.assert_close(finished[1, 2], PICTURES.finish(read[2:3])[0])
    assert tuple(door.finish(torch.zeros(0, 4, 3, 8, 8, dtype=torch.uint8)).shape) == (0, 4, 3, 8, 8)


@pytest.mark.parametrize(
    ("pick", "num", "wanted"),
    [
        ("even", 12, [1, 4, 7, 10]),
        ("start", 12, [0, 1, 2, 3]),
        ("centre", 12, [4, 5, 6, 7]),
        ("even", 2, [0, 0, 1, 1]),
        ("start", 2, [0, 1, 1, 1]),
        ("centre", 2, [0, 1, 1, 1]),
        ("even", 1, [0, 0, 0, 0]),
    ],
)
def test_frames_are_picked_as_asked(pick: str, num: int, wanted: list[int]) -> None:
    assert shades(way(frames=4, pick=pick).read(grey_clip(num))) == wanted


def test_even_picks_go_by_time_and_not_by_number() -> None:
    """Nine of ten frames lie in the first tenth of the clip."""
    times = np.array([*np.arange(9) / 90, 0.9])
    clip = Clip(times_s=times, duration_s=1.0, read=lambda _: iter(()))

    assert picked(clip, options=VideoOptions(frames=4)) == [8, 8, 8, 8]
    assert picked(clip, options=VideoOptions(frames=20)) == [2, 6, *[8] * 16, 9, 9]


def test_only_the_frames_that_are_looked_at_are_asked_for() -> None:
    asked: list[int] = []

    def read(numbers: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
        asked.extend(sorted(numbers))
        for number in sorted(numbers):
            yield number, Image.new("RGB", (8, 8))

    way(frames=3).read(Clip(times_s=np.arange(600) / 30, duration_s=20.0, read=read))
    assert asked == [100, 300, 500]


def test_every_option_of_pictures_holds_for_frames() -> None:
    run = example_run(
        {
            "clip": {
                "name": "video",
                "preprocess": {"frames": 2, "size": 8, "mode": "L", "contrast": "auto", "spread": 1.0},
            }
        }
    )
    made = preprocessor(run, "clip")
    frame = np.repeat(np.linspace(100, 140, 32, dtype=np.uint8)[None, :, None], 24, axis=0).repeat(3, axis=2)
    values = made.finish(made.read(decode_video(video_bytes([frame] * 3), suffix=".mkv"))[None])

    assert made.shape == (2, 1, 8, 8)
    assert float(values.max() - values.min()) > 200


def test_the_digest_names_the_frames_and_what_is_done_to_each() -> None:
    digests = {
        way(frames=4).digest,
        way(frames=5).digest,
        way(frames=4, pick="start").digest,
        VideoPreprocessor(VideoOptions(frames=4), pictures=ImagePreprocessor(ImageOptions(size=9))).digest,
    }
    assert len(digests) == 4
    assert way(frames=4).digest in digests


@pytest.mark.parametrize("value", ["a text", Image.new("RGB", (8, 8)), np.zeros((4, 3), np.float32)])
def test_what_is_no_clip_is_told_so(value: RawValue) -> None:
    with pytest.raises(TypeError, match="reads a clip"):
        way(frames=2).read(value)


@pytest.mark.parametrize(("option", "value"), [("frames", 0), ("pick", "all"), ("sizes", 3)])
def test_an_option_that_does_not_exist_or_fit_is_named(option: str, value: object) -> None:
    run = example_run({"clip": {"name": "video", "preprocess": {option: value}}})
    with pytest.raises(ModelError, match=option):
        preprocessor(run, "clip")
