"""Clips: what a file declares is judged first, what is decoded after it, and frames come with their times."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import MediaFault
from shared.media import SUFFIXES, Clip, animation, clip, decode, video
from shared.media.video import decode_video
from shared.schema import ModalitySchema
from tests.shared.clips import ANIMATIONS, FORMATS, animation_bytes, clip_bytes, greys, sound_only_bytes, video_bytes
from tests.shared.media_samples import image_bytes, png_declaring

EVERY = (*FORMATS, *ANIMATIONS)


def fault_of(data: bytes, suffix: str) -> MediaFault:
    with pytest.raises(MediaFault) as caught:
        decode_video(data, suffix=suffix)
    return caught.value


def shades(of: Clip) -> list[int]:
    """The mean grey of every frame."""
    return [round(float(np.asarray(picture).mean())) for _, picture in of.read(range(len(of.times_s)))]


def test_every_ending_of_a_clip_is_tried_here() -> None:
    assert set(SUFFIXES["video"]) == set(EVERY)


@pytest.mark.parametrize("suffix", EVERY)
def test_frames_come_with_their_times_in_order(suffix: str) -> None:
    made = decode(clip_bytes(suffix), path=Path(f"clip{suffix}"), schema=ModalitySchema(kind="video"))

    assert isinstance(made, Clip)
    assert made.times_s == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], abs=1e-3)
    assert made.duration_s == pytest.approx(0.5, abs=1e-3)
    assert shades(made) == pytest.approx([0, 20, 40, 60, 80], abs=4)
    assert all(picture.mode == "RGB" and picture.size == (32, 24) for _, picture in made.read(range(5)))


def test_uneven_times_are_those_of_the_file() -> None:
    made = decode_video(video_bytes(greys(3), tick=lambda number: (700, 705, 790)[number]), suffix=".mkv")
    shown = decode_video(animation_bytes(greys(3), frame_ms=(50, 200, 100)), suffix=".gif")

    assert made.times_s == pytest.approx([0.0, 0.05, 0.9])
    assert shown.times_s == pytest.approx([0.0, 0.05, 0.25])
    assert shown.duration_s == pytest.approx(0.35)


@pytest.mark.parametrize("suffix", EVERY)
def test_frames_of_a_long_clip_are_decoded_anew_and_not_kept(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = shades(decode_video(clip_bytes(suffix), suffix=suffix))
    monkeypatch.setattr(clip, "KEPT_BYTES", 0)
    opened = Counter[str]()
    for module in (video, animation):
        real = module._again
        monkeypatch.setattr(module, "_again", lambda *a, real=real, **k: (opened.update(["again"]), real(*a, **k))[1])

    made = decode_video(clip_bytes(suffix), suffix=suffix)

    assert shades(made) == kept
    assert [number for number, _ in made.read([3, 1, 3])] == [1, 3]
    assert opened["again"] == 2


def test_the_frame_that_is_seen_at_a_time_is_the_last_that_began() -> None:
    made = decode_video(clip_bytes(".mkv"), suffix=".mkv")

    assert [made.number_at(time) for time in (-1.0, 0.0, 0.09, 0.1, 0.39, 0.4, 99.0)] == [0, 0, 0, 1, 3, 4, 4]


@pytest.mark.parametrize("suffix", EVERY)
def test_a_clip_that_was_cut_is_refused_wherever_it_was_cut(suffix: str) -> None:
    data = clip_bytes(suffix, num=8)

    for share in (0.02, 0.3, 0.6, 0.9, 0.99):
        assert fault_of(data[: max(1, int(share * len(data)))], suffix).field in ("content", "size", "frames")


def test_a_video_whose_index_comes_first_is_refused_when_cut(tmp_path: Path) -> None:
    data = video_bytes(greys(8), suffix=".mp4", options={"movflags": "faststart"}, path=tmp_path / "clip.mp4")

    decode_video(data, suffix=".mp4")
    assert "truncated" in fault_of(data[:-40], ".mp4").came


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_damage_is_a_fault_or_harmless_and_never_another_error(suffix: str) -> None:
    data, draws = clip_bytes(suffix, num=4), np.random.default_rng(0)

    outcomes = set()
    for _ in range(40):
        broken = bytearray(data)
        for place in draws.integers(0, len(data), 8):
            broken[place] ^= int(draws.integers(1, 256))
        try:
            decode_video(bytes(broken), suffix=suffix)
            outcomes.add("decoded")
        except MediaFault:
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize(
    ("data", "suffix", "field"),
    [
        (b"", ".mp4", "content"),
        (b"hello, this is a text and no video", ".mp4", "content"),
        (image_bytes(), ".mp4", "content"),
        (clip_bytes(".mkv"), ".mp4", "content"),
        (clip_bytes(".mp4"), ".webm", "content"),
        (clip_bytes(".gif"), ".webp", "content"),
        (sound_only_bytes(), ".mkv", "streams"),
        (png_declaring(60_000, 60_000), ".png", "size"),
        (clip_bytes(".mp4"), ".mpg", "name"),
    ],
)
def test_what_is_no_clip_is_a_fault_that_says_so(data: bytes, suffix: str, field: str) -> None:
    fault = fault_of(data, suffix)

    assert (fault.field, bool(fault.came), bool(fault.allowed)) == (field, True, True)


def test_a_playlist_that_names_other_files_opens_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "secret.mkv").write_bytes(clip_bytes(".mkv"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.mkv\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mkv'\n"

    for text in (playlist, concat):
        for suffix in FORMATS:
            assert fault_of(text.encode(), suffix).field == "content"


def test_a_declared_size_is_judged_before_any_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # width and height in AVI's stream header, 40 bytes long
    data = clip_bytes(".avi")
    place = data.index((40).to_bytes(4, "little") + (32).to_bytes(4, "little"))
    huge = data[: place + 4] + (60_000).to_bytes(4, "little") * 2 + data[place + 12 :]
    monkeypatch.setattr(clip.Look, "see", lambda *_, **__: pytest.fail("a frame was decoded"))
    monkeypatch.setattr(clip, "MAX_FRAME_SIDE", 16)

    assert fault_of(data, ".avi").came == "32 x 24 declared pixels"
    assert fault_of(huge, ".avi").field in ("size", "content")
    assert fault_of(clip_bytes(".gif"), ".gif").came == "32 x 24 declared pixels"


@pytest.mark.parametrize(
    ("name", "most", "field"),
    [("MAX_FRAMES", 4, "frames"), ("MAX_VIDEO_S", 0.3, "length"), ("MAX_VIDEO_PIXELS", 32 * 24 * 4, "frames")],
)
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_clip_that_is_too_long_is_refused(
    name: str, most: float, field: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, name, most)

    assert fault_of(clip_bytes(suffix), suffix).field == field


def test_frames_beyond_what_a_header_declares_are_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "judge_length", lambda **_: None)
    monkeypatch.setattr(clip, "MAX_FRAMES", 4)

    assert fault_of(clip_bytes(".webm"), ".webm").field == "frames"


def test_an_absurd_frame_rate_and_an_odd_codec_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAME_RATE_HZ", 9)
    assert fault_of(clip_bytes(".mp4"), ".mp4").field == "frame_rate_hz"
    monkeypatch.setattr(video, "CODECS", ("vp9",))
    assert fault_of(clip_bytes(".mp4"), ".mp4").field == "codec"


@pytest.mark.parametrize("time_s", [None, float("nan"), float("inf"), -1.0])
def test_a_frame_without_a_sane_time_is_a_fault(time_s: float | None) -> None:
    look = clip.Look()
    look.see(0.5, width=2, height=2, picture=lambda: Image.new("RGB", (2, 2)))

    with pytest.raises(MediaFault, match="frame 2"):
        look.see(time_s, width=2, height=2, picture=lambda: Image.new("RGB", (2, 2)))


def test_a_telephone_s_video_is_turned_upright() -> None:
    frame = np.zeros((24, 32, 3), np.uint8)
    frame[:, :16] = 250  # light on the left
    data = bytearray(video_bytes([frame] * 2, suffix=".mp4"))
    # the matrix of the track header: a quarter turn clockwise, as telephones write it (ISO/IEC 14496-12, 8.3.2)
    place = data.index(b"tkhd") + 4 + 40
    for number, value in enumerate((0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)):
        data[place + 4 * number : place + 4 * number + 4] = value.to_bytes(4, "big", signed=True)

    _, picture = next(iter(decode_video(bytes(data), suffix=".mp4").read([0])))
    values = np.asarray(picture)[:, :, 0]

    assert picture.size == (24, 32)
    assert values[:14].mean() > 200
    assert values[18:].mean() < 50


def test_nothing_is_printed_about_a_broken_file(capfd: pytest.CaptureFixture[str]) -> None:
    for suffix in FORMATS:
        fault_of(clip_bytes(suffix)[:-30], suffix)

    assert capfd.readouterr() == ("", "")
