"""Manifest: every row is sound, or the error says which is not, where, and what is allowed."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import ManifestError, MediaFault
from shared.location import Locator
from shared.manifest import Row, find_manifest, read_manifest
from shared.schema import DataSchema, ModalitySchema
from tests.shared.media_samples import RATING, SCHEMA, RowCells, image_bytes, motion_bytes, whole_folder, write_rows

TEXT_ROW = {"text": "hello", "label": "joy"}


def faults(folder: Path, *, schema: DataSchema = SCHEMA) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder, schema=schema)
    return [str(fault) for fault in caught.value.faults]


def write_lines(folder: Path, *lines: bytes, name: str = "metadata.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def line(**cells: object) -> bytes:
    return json.dumps({**TEXT_ROW, **cells}).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_three_forms_of_a_manifest_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = whole_folder(tmp_path / "a")
    rows[2] = {"text": "only text", "label": "calm", "subject_id": "p9"}
    first = read_manifest_of(tmp_path / "a", rows=rows, suffix=".jsonl")
    again = read_manifest_of(tmp_path / "a", rows=rows, suffix=suffix)
    assert [row.values for row in again] == [row.values for row in first]
    assert [(row.target, row.subject, row.groups) for row in again] == [
        (row.target, row.subject, row.groups) for row in first
    ]
    assert [row.line for row in again] == list(range(2, 8) if suffix == ".csv" else range(1, 7))
    assert again[2].values == {"text": "only text"}
    assert again[1].target == 1
    assert again[1].groups == {"language": "el"}


def read_manifest_of(folder: Path, *, rows: list[dict[str, object]], suffix: str) -> list[Row]:
    for old in folder.glob("metadata.*"):
        old.unlink()
    write_rows(folder, rows, suffix=suffix)
    return list(read_manifest(folder, schema=SCHEMA).rows)


def test_one_file_modality_may_be_called_file_name(tmp_path: Path) -> None:
    schema = DataSchema(task="single-label", labels=("joy", "calm"), modalities={"image": ModalitySchema(kind="image")})
    write_rows(tmp_path, [{"file_name": "a.png", "label": "joy"}])
    (tmp_path / "a.png").write_bytes(image_bytes())
    assert read_manifest(tmp_path, schema=schema).rows[0].values == {"image": tmp_path.resolve() / "a.png"}
    write_rows(tmp_path, [{"file_name": "a.png", "image_file_name": "a.png", "label": "joy"}])
    assert "line 1: file_name is beside image_file_name" in faults(tmp_path, schema=schema)[0]


def test_a_folder_needs_exactly_one_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="manifest is missing; allowed: exactly one of metadata"):
        find_manifest(tmp_path)
    with pytest.raises(ManifestError, match="no folder"):
        find_manifest(tmp_path / "nowhere")
    write_rows(tmp_path, [TEXT_ROW])
    assert find_manifest(tmp_path) == tmp_path / "metadata.jsonl"
    write_rows(tmp_path, [TEXT_ROW], suffix=".csv")
    with pytest.raises(ManifestError, match=r"metadata\.jsonl and metadata\.csv"):
        find_manifest(tmp_path)


def test_a_manifest_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "real", [TEXT_ROW])
    for name, make in (("link", lambda path: path.symlink_to(tmp_path / "real/metadata.jsonl")), ("pipe", os.mkfifo)):
        folder = tmp_path / name
        folder.mkdir()
        make(folder / "metadata.jsonl")
        with pytest.raises(ManifestError, match="a link or no file"):
            find_manifest(folder)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (b'{"text": "x", "label": "joy"', "line 2: row is not JSON"),
        (b'["text", "joy"]', "line 2: row is ['text', 'joy'] (a list); allowed: a JSON object"),
        (b"17", "line 2: row is 17 (a number)"),
        (b"", "line 2: row is blank"),
        (b"   ", "line 2: row is blank"),
        (b"[" * 200_000, "line 2: row is JSON too deep or with too long a number"),
        (b'{"text": "x", "label": "joy", "label": "calm"}', "line 2: 'label' is given twice in this row"),
        (b'{"text": "x", "label": NaN}', "line 2: row is with the value NaN"),
        (b'{"text": "caf\xe9", "label": "joy"}', "line 2: encoding is not UTF-8 (byte 0xe9 at 14)"),
        (b'{"text": "%s", "label": "joy"}' % (b"x" * (1 << 20)), "line 2: row is 1048604 bytes long"),
        (b'{"text": "x", "label": "anger"}', "line 2: label is 'anger'; allowed: 'joy', 'calm'"),
        (b'{"text": "x", "label": 1}', "line 2: label is 1 (a number); allowed: 'joy', 'calm'"),
        (b'{"text": "x", "label": true}', "line 2: label is True (true or false)"),
        (b'{"text": "x"}', "line 2: label is absent"),
        (b'{"text": 5, "label": "joy"}', "line 2: text is 5 (a number); allowed: a text"),
        (b'{"text": "\\ud800", "label": "joy"}', "line 2: text is half a surrogate pair"),
        (b'{"text": "%s", "label": "joy"}' % (b"x" * 100_001), "line 2: text is 100001 characters long"),
        (b'{"label": "joy"}', "line 2: row is image, text, audio, motion, vector all absent"),
        (
            b'{"text": null, "image_file_name": " ", "label": "joy"}',
            "line 2: row is image, text, audio, motion, vector",
        ),
        (b'{"text": "x", "label": "joy", "language": ["fr"]}', "line 2: language is ['fr'] (a list)"),
        (b'{"text": "x", "label": "joy", "language": "f\\n"}', r"line 2: language is 'f\n'; allowed: a word or number"),
        (
            b'{"text": "x", "label": "joy", "subject_id": "p1"}',
            "line 1: subject_id is absent; allowed: a value in every",
        ),
        (
            b'{"text": "x", "label": "joy", "mood": 1}',
            "line 2: 'mood' is an unknown column; allowed: 'audio_file_name'",
        ),
    ],
)
def test_a_bad_row_is_named_with_line_field_and_what_is_allowed(tmp_path: Path, bad: bytes, expected: str) -> None:
    found = faults(write_lines(tmp_path, line(), bad, line()))
    assert found[0].startswith(expected)
    assert "; allowed: " in found[0]


def test_all_faults_come_in_one_error_in_the_order_of_the_lines(tmp_path: Path) -> None:
    write_lines(
        tmp_path, line(label="x"), b"{", line(), line(image_file_name="no.png"), line(image_file_name="../a.png")
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path, schema=SCHEMA)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path.name}/metadata.jsonl: 4 faults in 5 rows, nothing was loaded\n  line 1: label")
    assert [fault.place for fault in caught.value.faults] == ["line 1", "line 2", "line 4", "line 5"]
    assert text.endswith(f"Check again with: motet check {tmp_path}")


def test_an_unknown_column_is_named_once_however_many_rows_have_it(tmp_path: Path) -> None:
    write_lines(tmp_path, line(), *[line(mood="x", note="y")] * 3)
    found = faults(tmp_path)
    assert len(found) == 1
    assert found[0].startswith("line 2: 'mood' is an unknown column (in 3 rows); allowed: 'audio_file_name'")


def test_a_byte_order_mark_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_lines(tmp_path, b"\xef\xbb\xbf" + line())
    assert faults(tmp_path) == [
        'line 1: encoding is UTF-8 with a byte order mark; allowed: UTF-8 without one (save as plain "UTF-8")'
    ]
    (tmp_path / "metadata.jsonl").write_text(line().decode(), encoding="utf-16")
    assert faults(tmp_path) == ['line 1: encoding is UTF-16; allowed: UTF-8 (save as plain "UTF-8")']
    (tmp_path / "metadata.jsonl").unlink()
    write_lines(tmp_path, b"\xef\xbb\xbftext,label", b"hello,joy", name="metadata.csv")
    assert len(faults(tmp_path)) == 1


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_an_empty_manifest_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert faults(tmp_path) == [f"{name}: file is empty (0 bytes); allowed: a file with content"]


def test_a_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path, b"text,label", name="metadata.csv")
    assert faults(tmp_path) == ["metadata.csv: rows is none; allowed: one or more"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"text,label", b"hello,joy,more"), "line 2: row is 3 cells; allowed: 2 cells"),
        ((b"text,label", b"hello"), "line 2: row is 1 cells; allowed: 2 cells"),
        ((b"text,label", b"hello,joy", b"", b"hello,joy"), "line 3: row is blank"),
        ((b"text,label,text", b"hello,joy,x"), "line 1: 'text' is the name of several columns"),
        ((b"text,label", b'"two', b'lines",joy', b"x,anger"), "line 4: label is 'anger'"),
        ((b"text,label", b'"never closed,joy'), "line 2: row is not CSV"),
        ((b"text,label", b"caf\xe9,joy"), "line 2: encoding is not UTF-8 (byte 0xe9 at 4)"),
        ((b"text,label,mood", b"x,joy,y"), "line 2: 'mood' is an unknown column"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(tmp_path: Path, lines: tuple[bytes, ...], expected: str) -> None:
    assert faults(write_lines(tmp_path, *lines, name="metadata.csv"))[0].startswith(expected)


def test_a_bad_parquet_is_named_with_its_row(tmp_path: Path) -> None:
    write_rows(tmp_path, [TEXT_ROW, {"text": "x", "label": "anger"}], suffix=".parquet")
    assert faults(tmp_path) == ["row 2: label is 'anger'; allowed: 'joy', 'calm'"]
    path = write_rows(tmp_path, [{"text": b"x", "label": float("nan")}], suffix=".parquet")
    assert [fault.split(" is ")[0] for fault in faults(tmp_path)] == ["row 1: label", "row 1: text"]
    path.write_bytes(path.read_bytes()[:-20])
    assert faults(tmp_path)[0].startswith("metadata.parquet: content is not readable as parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_rating_is_a_number_in_its_range(tmp_path: Path, suffix: str) -> None:
    write_rows(tmp_path, [{"text": "a", "rating": rating} for rating in (-3, 0.5, 3)], suffix=suffix)
    assert [row.target for row in read_manifest(tmp_path, schema=RATING).rows] == [-3.0, 0.5, 3.0]
    write_rows(tmp_path, [{"text": "a", "rating": 3.1}, {"text": "b", "rating": None}], suffix=suffix)
    first, shown = (2, "'3.1'") if suffix == ".csv" else (1, "3.1 (a number)")
    unit = "row" if suffix == ".parquet" else "line"
    assert [fault.split("; ")[0] for fault in faults(tmp_path, schema=RATING)] == [
        f"{unit} {first}: rating is {shown}",
        f"{unit} {first + 1}: rating is absent",
    ]


@pytest.mark.parametrize("rating", ["nan", "inf", "1_0", "0x1", "", "high", True, [1], 10**400, "1e999", None])
def test_what_is_no_number_in_range_is_no_rating(tmp_path: Path, rating: object) -> None:
    write_rows(tmp_path, [{"text": "a", "rating": rating}])
    assert "rating is" in faults(tmp_path, schema=RATING)[0]


def test_a_nan_rating_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"text": "a", "rating": float("nan")}], suffix=".parquet")
    assert faults(tmp_path, schema=RATING) == ["row 1: rating is nan (a number); allowed: a number from -3.0 to 3.0"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing.png", "'missing.png', which is missing"),
        ("/etc/hostname.png", "'/etc/hostname.png', an absolute path"),
        ("C:/photos/a.png", "'C:/photos/a.png', an absolute path"),
        ("../outside.png", "'../outside.png', which leads upwards"),
        ("img/../../outside.png", "'img/../../outside.png', which leads upwards"),
        ("img\\a.png", r"'img\\a.png', written with \; "),
        ("link.png", "'link.png', a link out of the folder"),
        ("linked/outside.png", "'linked/outside.png', a link out of the folder"),
        ("loop.png", "'loop.png', a pipe, device, socket or link"),
        ("folder.png", "'folder.png', a folder"),
        ("pipe.png", "'pipe.png', a pipe, device, socket or link"),
        ("empty.png", "'empty.png', empty (0 bytes)"),
        ("a.png/b.png", "'a.png/b.png', which is missing"),
        ("a\0.png", r"'a\x00.png', with characters that cannot be printed"),
        (f"{'x' * 300}.png", "which cannot be reached (File name too long)"),
        ("a.txt", "'a.txt'; allowed: a file ending in .bmp, .gif"),
        ("a", "'a'; allowed: a file ending in .bmp, .gif"),
        (7, "7 (a number); allowed: the name of a file"),
        (["a.png"], "['a.png'] (a list); allowed: the name of a file"),
    ],
)
def test_a_name_that_is_not_of_a_file_inside_is_refused(tmp_path: Path, name: object, expected: str) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(image_bytes())
    (folder / "a.png").write_bytes(image_bytes())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.png")
    write_lines(folder, line(), line(image_file_name=name))
    found = faults(folder)
    assert len(found) == 1
    assert found[0].startswith("line 2: image_file_name is ")
    assert expected in found[0]


def test_a_link_that_stays_inside_is_followed_and_the_file_used_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "b.png").symlink_to("a.png")
    write_lines(tmp_path, line(image_file_name="b.png"))
    assert read_manifest(tmp_path, schema=SCHEMA).rows[0].values["image"] == tmp_path.resolve() / "a.png"
    write_lines(tmp_path, line(image_file_name="a.png"), line(image_file_name="b.png"))
    assert faults(tmp_path) == [
        "line 2: image_file_name is 'b.png', used before (line 1, image_file_name); allowed: each file once"
    ]


@pytest.mark.parametrize("again", ["img/a.npy", "./img/a.npy", "img//a.npy", "img/./a.npy"])
def test_the_same_file_twice_is_refused(tmp_path: Path, again: str) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.npy").write_bytes(motion_bytes())
    write_lines(tmp_path, line(motion_file_name="img/a.npy"), line(motion_file_name=again))
    assert "used before (line 1, motion_file_name)" in faults(tmp_path)[0]


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "img", "linked", "/", "~", "a.png", "secret.png", "\\", "\0", "..png", "C:"])
    | st.text(max_size=5),
    max_size=6,
).map("/".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
def test_no_string_leads_out_of_the_folder(tmp_path: Path, name: str, opened: Callable[[], list[str]]) -> None:
    folder = tmp_path / "site"
    if not folder.exists():
        (folder / "img").mkdir(parents=True)
        (folder / "img/a.png").write_bytes(image_bytes())
        (tmp_path / "secret.png").write_bytes(image_bytes(seed=1))
        (folder / "linked").symlink_to(tmp_path)
    before = len(opened())
    try:
        path = Locator(folder).find(name)
    except MediaFault:
        pass
    else:
        assert path == folder.resolve() / "img/a.png"
    assert len(opened()) == before


_OPENED: list[str] = []


@pytest.fixture(scope="module")
def opened() -> Callable[[], list[str]]:
    """Every path that this process opens from now on; an audit hook cannot be taken away again."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            _OPENED.append(str(arguments[0]))

    sys.addaudithook(note)
    return lambda: [path for path in _OPENED if path.endswith(".png")]


CELLS = st.dictionaries(
    st.sampled_from(["text", "label", "image_file_name", "vector_file_name", "subject_id", "language", "note", "x"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2) | NAMES,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CELLS, min_size=1, max_size=4))
def test_whatever_the_rows_hold_they_are_sound_or_refused(tmp_path: Path, rows: list[RowCells]) -> None:
    write_rows(tmp_path, rows)
    try:
        manifest = read_manifest(tmp_path, schema=SCHEMA)
    except ManifestError:
        return
    for row in manifest.rows:
        assert row.values
        assert row.target in (0, 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=200), suffix=st.sampled_from([".jsonl", ".csv", ".parquet"]))
def test_whatever_bytes_a_manifest_holds_it_is_sound_or_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    folder = tmp_path / suffix
    folder.mkdir(exist_ok=True)
    (folder / f"metadata{suffix}").write_bytes(data)
    with pytest.raises(ManifestError):
        read_manifest(folder, schema=SCHEMA)


def test_a_person_is_one_subject_however_the_name_is_written(tmp_path: Path) -> None:
    names = ("P17", "p17 ", " p\uff11\uff17", "p18")
    folder = write_lines(tmp_path / "a", *(line(subject_id=name) for name in names))
    rows = read_manifest(folder, schema=SCHEMA).rows
    assert [row.subject for row in rows] == ["p17", "p17", "p17", "p18"]
    nobody = write_lines(tmp_path / "b", line(subject_id="p17"), line(subject_id="  "))
    (fault,) = faults(nobody)
    assert fault.startswith("line 2: subject_id is absent")
