"""Media: a whole, sane file is decoded exactly; any other is refused before it can cost anything."""

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.media import MediaFault, decode, open_audio, open_features, open_image, open_signal, read_file
from shared.schema import Kind, ModalitySchema
from tests.shared.media_samples import (
    audio_bytes,
    image_bytes,
    motion_bytes,
    npy_bytes,
    npy_declaring,
    png_declaring,
    vector_bytes,
)

SCHEMAS: dict[Kind, ModalitySchema] = {
    "image": ModalitySchema(kind="image"),
    "audio": ModalitySchema(kind="audio"),
    "signal": ModalitySchema(kind="signal", channels=3),
    "features": ModalitySchema(kind="features", width=4),
}


def fault(data: bytes, *, name: str, kind: Kind) -> str:
    with pytest.raises(MediaFault) as caught:
        decode(data, path=Path(name), schema=SCHEMAS[kind])
    return str(caught.value)


def written(folder: Path, *, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# --- what is sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("PNG", ".png"),
        ("JPEG", ".jpg"),
        ("JPEG", ".JPEG"),
        ("WEBP", ".webp"),
        ("BMP", ".bmp"),
        ("GIF", ".gif"),
        ("TIFF", ".tif"),
    ],
)
def test_every_image_format_opens_as_rgb(tmp_path: Path, form: str, suffix: str) -> None:
    image = open_image(written(tmp_path, name=f"a{suffix}", data=image_bytes(form=form)))
    assert (image.mode, image.size) == ("RGB", (12, 9))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_of_png_opens_as_rgb(tmp_path: Path, mode: str) -> None:
    image = open_image(written(tmp_path, name="a.png", data=image_bytes(mode=mode)))
    assert (image.mode, image.size) == ("RGB", (12, 9))


def test_lossless_pixels_are_exact_and_deep_ones_are_scaled(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(9, 12, 3), dtype=np.uint8)
    opened = open_image(written(tmp_path, name="a.png", data=image_bytes()))
    np.testing.assert_array_equal(np.asarray(opened), pixels)
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(deep, format="PNG")
    opened = open_image(written(tmp_path, name="b.png", data=deep.getvalue()))
    assert set(np.asarray(opened).ravel()) == {40_000 // 257}


def test_what_is_transparent_is_white_and_what_lies_on_its_side_is_turned_up(tmp_path: Path) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(clear, format="PNG")
    opened = open_image(written(tmp_path, name="a.png", data=clear.getvalue()))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 9)).save(turned, format="JPEG", exif=exif)
    assert open_image(written(tmp_path, name="b.jpg", data=turned.getvalue())).size == (9, 12)


@pytest.mark.parametrize(
    ("form", "subtype", "suffix"),
    [
        ("WAV", "PCM_16", ".wav"),
        ("WAV", "FLOAT", ".wav"),
        ("WAVEX", "PCM_24", ".wav"),
        ("FLAC", "PCM_16", ".flac"),
        ("OGG", "VORBIS", ".ogg"),
        ("OGG", "OPUS", ".opus"),
        ("MP3", None, ".mp3"),
    ],
)
def test_every_audio_format_opens_with_its_rate_channels_and_length(
    tmp_path: Path, form: str, subtype: str | None, suffix: str
) -> None:
    data = audio_bytes(form=form, subtype=subtype, frames=4000, channels=2)
    waveform = open_audio(written(tmp_path, name=f"a{suffix}", data=data))
    assert waveform.sample_rate_hz == 8000
    assert waveform.samples.shape == (2, 4000)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.flags.c_contiguous


def test_lossless_sound_is_exact_to_its_depth(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, size=(800, 1))
    waveform = open_audio(written(tmp_path, name="a.wav", data=audio_bytes(subtype="FLOAT")))
    np.testing.assert_allclose(waveform.samples, sound.T, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", ">f8", "int8", "uint64", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_plain_type_open_as_float32(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.asarray(np.arange(12).reshape(4, 3), dtype=dtype)
    data = npy_bytes(np.asfortranarray(values) if order == "F" else values)
    opened = open_signal(written(tmp_path, name="a.npy", data=data), channels=3)
    np.testing.assert_array_equal(opened, values.astype(np.float32))
    assert opened.dtype == np.float32
    assert opened.flags.writeable
    opened = open_features(written(tmp_path, name="b.npy", data=npy_bytes(values[:, 0])), width=4)
    np.testing.assert_array_equal(opened, values[:, 0].astype(np.float32))


@pytest.mark.parametrize("head", ["", "x,y,z\n", "\ufeffx,y,z\n", "\ufeff"])
def test_a_csv_signal_opens_with_or_without_column_names(tmp_path: Path, head: str) -> None:
    path = written(tmp_path, name="a.csv", data=f"{head}1,2.5,-3e-1\n 4 ,.5,6\n".encode())
    np.testing.assert_allclose(open_signal(path, channels=3), [[1, 2.5, -0.3], [4, 0.5, 6]], rtol=1e-6)


# --- what is not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name", "kind", "expected"),
    [
        (image_bytes(), "a.wav", "audio", "content is not WAV (looks like PNG); allowed: WAV, as the file's name says"),
        (image_bytes(form="JPEG"), "a.png", "image", "content is not PNG (looks like JPEG); allowed: PNG"),
        (image_bytes(form="WEBP"), "a.gif", "image", "content is not GIF (looks like WebP)"),
        (b"just some words", "a.png", "image", "content is not PNG (looks like text)"),
        (b"just some words", "a.mp3", "audio", "content is not MP3 (looks like text)"),
        (b"just some words", "a.npy", "signal", "content is not a NumPy array (looks like text)"),
        (audio_bytes(form="FLAC"), "a.ogg", "audio", "content is not OGG (looks like FLAC)"),
        (audio_bytes(), "a.mp3", "audio", "content is not MP3 (looks like WAV)"),
        (audio_bytes(), "a.jpg", "image", "content is not JPEG (looks like WAV)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a.npy", "features", "Git LFS pointer"),
        (image_bytes(), "a.svg", "image", "name is ending in '.svg'; allowed: .bmp, .gif"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(data: bytes, name: str, kind: Kind, expected: str) -> None:
    assert expected in fault(data, name=name, kind=kind)


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (9_500, 9_500), (20_000, 10), (10, 2**31 - 1), (0, 5)])
def test_an_image_of_too_many_declared_pixels_is_refused_before_decoding(width: int, height: int) -> None:
    tracemalloc.start()
    text = fault(png_declaring(width, height), name="a.png", kind="image")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "pixels" in text or "content is not PNG" in text
    assert peak_bytes < 1_000_000


def test_the_declared_size_is_named() -> None:
    assert fault(png_declaring(40_000, 40_000), name="a.png", kind="image") == (
        "size is 1600000000 declared pixels; allowed: 1 to 16384 pixels a side and at most 64000000 pixels"
    )


def test_a_film_is_no_image() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    assert fault(file.getvalue(), name="a.gif", kind="image") == "frames is more than one; allowed: one still picture"


@given(share=st.floats(0, 1, exclude_max=True), form=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]))
@settings(max_examples=60, deadline=None)
def test_an_image_cut_anywhere_is_refused(share: float, form: str) -> None:
    data = image_bytes(form=form)
    suffix = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}[form]
    # The last bytes only say that the picture ends (JPEG: 2, PNG: a sum of 4): its pixels are whole without them.
    cut = data[: int(share * (len(data) - 4))]
    assert fault(cut, name=f"a{suffix}", kind="image")


@given(share=st.floats(0, 1, exclude_max=True), form=st.sampled_from(["WAV", "FLAC", "OGG", "OPUS"]))
@settings(max_examples=60, deadline=None)
def test_audio_cut_anywhere_is_refused(share: float, form: str) -> None:
    data = audio_bytes(form="OGG", subtype="OPUS") if form == "OPUS" else audio_bytes(form=form)
    assert fault(data[: int(share * len(data))], name=f"a.{form.lower()}", kind="audio")


def test_an_ogg_that_lacks_its_last_page_is_refused() -> None:
    data = audio_bytes(form="OGG", subtype="VORBIS", rate=16_000, frames=80_000)
    last_page = data.rindex(b"OggS")
    assert "truncated" in fault(data[:last_page], name="a.ogg", kind="audio")


def test_an_mp3_that_declares_its_length_and_was_cut_is_refused() -> None:
    data = audio_bytes(form="MP3", frames=40_000)
    assert "truncated" in fault(data[: len(data) // 2], name="a.mp3", kind="audio")


@given(share=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["signal", "features"]))
@settings(max_examples=60, deadline=None)
def test_an_array_cut_anywhere_is_refused(share: float, kind: Kind) -> None:
    data = motion_bytes() if kind == "signal" else vector_bytes()
    assert fault(data[: int(share * len(data))], name="a.npy", kind=kind)
    assert fault(data + b"x", name="a.npy", kind=kind)


@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"RIFF", b"OggS", b"fLaC", b"\x93NUMPY\x01\x00"]),
)
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_by_every_decoder(data: bytes, head: bytes) -> None:
    names: tuple[tuple[str, Kind], ...] = (
        ("a.png", "image"),
        ("a.jpg", "image"),
        ("a.wav", "audio"),
        ("a.ogg", "audio"),
        ("a.flac", "audio"),
        ("a.npy", "signal"),
        ("a.npy", "features"),
    )
    for name, kind in names:
        assert fault(head + data, name=name, kind=kind)


def wav_with(*, rate: int = 8000, channels: int = 1, body: bytes = bytes(1600), declared: int | None = None) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2 & 0xFFFFFFFF, 2 * channels & 0xFFFF, 16)
    sound = struct.pack("<4sI", b"data", len(body) if declared is None else declared) + body
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(sound), b"WAVE") + form + sound


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (wav_with(rate=0), "sample_rate_hz is 0; allowed: the rate it was recorded at"),
        (wav_with(rate=3_999), "sample_rate_hz is 3999; allowed: 4000 to 192000"),
        (wav_with(rate=192_001), "sample_rate_hz is 192001; allowed: 4000 to 192000"),
        (wav_with(rate=2**31 - 1), "sample_rate_hz is 2147483647; allowed: 4000 to 192000"),
        (wav_with(channels=0), "channels is 0; allowed: 1 or more"),
        (wav_with(channels=9, body=bytes(1800)), "channels is 9; allowed: 1 to 8"),
        (wav_with(body=b""), "samples is 0; allowed: 1 or more"),
        (wav_with(declared=5000), "content is truncated (1600 of 5000 bytes of sound)"),
        (wav_with()[:20], "content is without any sound (no data chunk)"),
        (wav_with(rate=4000, body=bytes(2 * 600 * 4000 + 2)), "length is 600 s; allowed: at most 600 s"),
    ],
)
def test_audio_that_declares_what_cannot_be_is_refused(data: bytes, expected: str) -> None:
    assert fault(data, name="a.wav", kind="audio").startswith(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    sound = np.zeros(800, dtype=np.float32)
    sound[99] = bad
    assert "NaN or infinite" in fault(wav_floats(sound), name="a.wav", kind="audio")
    motion, vector = np.zeros((5, 3)), np.zeros(4)
    motion[2, 1] = vector[3] = bad
    assert fault(npy_bytes(motion), name="a.npy", kind="signal").startswith(
        f"values is {bad} at [2, 1]; allowed: finite"
    )
    assert f"{bad} at [3]" in fault(npy_bytes(vector), name="a.npy", kind="features")
    assert "row 2, column 3 is" in fault(f"1,2,3\n4,5,{bad}\n".encode(), name="a.csv", kind="signal")


def test_a_wav_written_to_a_pipe_may_leave_its_length_open(tmp_path: Path) -> None:
    waveform = open_audio(written(tmp_path, name="a.wav", data=wav_with(declared=0xFFFFFFFF)))
    assert waveform.samples.shape == (1, 800)


def wav_floats(sound: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    body = sound.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 8000, 32_000, 4, 32)
    data = struct.pack("<4sI", b"data", len(body)) + body
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def test_a_number_beyond_float32_is_refused() -> None:
    assert "1e+300 at [0, 0]" in fault(npy_bytes(np.full((2, 3), 1e300)), name="a.npy", kind="signal")


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (motion_bytes(channels=4), "signal", "channels is 4; allowed: 3"),
        (motion_bytes(steps=0), "signal", "time steps is 0; allowed: 1 to 10000000"),
        (npy_bytes(np.zeros(3)), "signal", "shape is [3]; allowed: [time, 3]"),
        (npy_bytes(np.zeros((2, 2, 3))), "signal", "shape is [2, 2, 3]; allowed: one or two dimensions"),
        (npy_bytes(np.array(1.0)), "signal", "shape is []; allowed: one or two dimensions"),
        (vector_bytes(width=5), "features", "shape is [5]; allowed: [4]"),
        (npy_bytes(np.zeros((1, 4))), "features", "shape is [1, 4]; allowed: [4]"),
        (npy_bytes(np.zeros(4, dtype=complex)), "features", "dtype is complex128; allowed: integers or floats"),
        (npy_bytes(np.zeros(4, dtype=bool)), "features", "dtype is bool"),
        (npy_bytes(np.array(["a"] * 4)), "features", "dtype is <U1"),
        (npy_bytes(np.array([1, None, 2, 3]), allow_pickle=True), "features", "dtype is objects"),
        (npy_declaring("(4,)", descr="[('a', '<f8')]"), "features", "dtype is"),
    ],
)
def test_an_array_of_another_form_is_refused(data: bytes, kind: Kind, expected: str) -> None:
    assert fault(data, name="a.npy", kind=kind).startswith(expected)


@pytest.mark.parametrize("shape", ["(1000000000000, 3)", "(9999999999999999999999, 3)", "(-1, 3)", "(2, 3)"])
def test_a_header_that_declares_more_than_is_there_costs_nothing(shape: str) -> None:
    tracemalloc.start()
    text = fault(npy_declaring(shape, body=bytes(24)), name="a.npy", kind="signal")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.startswith("shape is ")
    assert peak_bytes < 1_000_000


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    data = npy_bytes(np.array([Bomb()], dtype=object), allow_pickle=True)
    assert "dtype is objects" in fault(data, name="a.npy", kind="features")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3\n4,5\n", "row 2 is 2 values; allowed: 3 values, as in the rows before"),
        ("1,2,3\n\n4,5,6\n", "row 2 is 0 values"),
        ("1,2,3\n4,five,6\n", "row 2, column 2 is 'five'; allowed: a finite number"),
        ("1,2,3\n4,0x5,6\n", "row 2, column 2 is '0x5'"),
        ("1,2,3\n4,1_0,6\n", "row 2, column 2 is '1_0'"),
        ("1,2,1e400\n", "values is inf at [0, 2]"),
        ("1,2\n3,4\n", "channels is 2; allowed: 3"),
        ("x,y,z\n", "time steps is 0"),
    ],
)
def test_a_csv_signal_that_is_no_table_of_numbers_is_refused(text: str, expected: str) -> None:
    assert fault(text.encode(), name="a.csv", kind="signal").startswith(expected)


def test_only_a_regular_file_with_content_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, name="a.bin", data=b"12345")
    assert read_file(path)[0] == b"12345"
    (tmp_path / "link.bin").symlink_to(path)
    for name, expected in (("none.bin", "not readable"), ("link.bin", "not readable"), (".", "a folder")):
        with pytest.raises(MediaFault, match=expected):
            read_file(tmp_path / name)
    with pytest.raises(MediaFault, match="5 bytes long; allowed: at most 4 bytes"):
        read_file(path, max_bytes=4)
    with pytest.raises(MediaFault, match="empty"):
        read_file(written(tmp_path, name="b.bin", data=b""))
    with pytest.raises(MediaFault, match="a pipe, device"):
        read_file(Path("/dev/null"))
