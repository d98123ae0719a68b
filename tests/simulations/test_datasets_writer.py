"""The writer: whole or not at all, and readable back."""

import tomllib
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema, ModalitySchema
from shared.settings import parse_settings
from simulations.datasets.writer import TEST, VALIDATION, DatasetWriter, File, NewRow, built, writing

CARD = DataCard(
    title='Quotes " and Ümlaute',
    generated=True,
    licence="CC0",
    citation="none",
    source="this test",
    content=DataSchema(
        task="single-label",
        labels=("no", "yes"),
        modalities={"words": ModalitySchema(kind="text"), "steps": ModalitySchema(kind="signal", channels=3)},
        groups=("language",),
    ),
)


def _row(name: str, *, target: str = "yes") -> NewRow:
    values: dict[str, str | File] = {"words": "é", "steps": File(".npy", b"123")}
    return NewRow(name, values, targets={"label": target}, subject="p1", columns={"language": "fr"})


def _add_twice(writer: DatasetWriter) -> None:
    for _ in range(2):
        writer.add("ada", _row("0001"))


def test_rows_land_in_their_parts_with_a_card_that_reads_back(tmp_path: Path) -> None:
    with writing(tmp_path / "data", card=CARD) as writer:
        for part in ("ada", "bo", VALIDATION, TEST):
            writer.add(part, _row("0001"))
        writer.add("ada", NewRow("0002", {"words": "alone"}, targets={"label": "no"}))
        writer.finish(how_it_was_made="By hand.")
        assert not (tmp_path / "data").exists()
    result = built(tmp_path / "data", writer=writer)

    assert result.site_rows == {"ada": 2, "bo": 1}
    assert (result.validation_rows, result.test_rows) == (1, 1)
    assert (result.sites[0] / "metadata.jsonl").read_text("utf-8").splitlines() == [
        '{"words": "é", "steps_file_name": "steps/0001.npy", "label": "yes", "subject_id": "p1", "language": "fr"}',
        '{"words": "alone", "label": "no"}',
    ]
    assert (result.sites[0] / "steps/0001.npy").read_bytes() == b"123"
    card = tomllib.loads((tmp_path / "data/dataset.toml").read_text("utf-8"))
    assert parse_settings(DataCard, card, place="dataset.toml") == CARD
    readme = (tmp_path / "data/README.md").read_text("utf-8")
    assert "generated" in readme
    assert "| sites/ada | 2 | 2 | 1 | 1 | 1 |" in readme


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there already"), writing(tmp_path / "data", card=CARD) as writer:
        _add_twice(writer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with (
        pytest.raises(ConfigError, match="remove it or give the path of a new one"),
        writing(tmp_path / "data", card=CARD),
    ):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with writing(tmp_path / "data", card=CARD) as writer:
        writer.add("ada", _row("0001"))
        writer.finish(how_it_was_made="By hand.")
    assert (tmp_path / "data/sites/ada/metadata.jsonl").is_file()


@pytest.mark.parametrize("site", ["../out", "a/b", "", "-x", ".hidden"])
def test_a_site_name_that_is_no_file_name_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a file"), writing(tmp_path / "data", card=CARD) as writer:
        writer.add(site, _row("0001"))


def test_a_linked_file_is_the_same_file_and_a_copied_one_is_not(tmp_path: Path) -> None:
    source = tmp_path / "voice.npy"
    source.write_bytes(b"voice")
    with writing(tmp_path / "data", card=CARD) as writer:
        for name, link in (("0001", True), ("0002", False)):
            writer.add("ada", NewRow(name, {"steps": File(".npy", source, link=link)}, targets={"label": "no"}))
        writer.finish(how_it_was_made="By hand.")
    folder = tmp_path / "data/sites/ada/steps"
    assert (folder / "0001.npy").samefile(source)
    assert not (folder / "0002.npy").samefile(source)
    assert (folder / "0002.npy").read_bytes() == b"voice"
