"""Check: the owner sees what a folder holds, or everything that is wrong with it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from shared.card import find_card, infer_schema
from shared.check import RatingSummary, check_folder, data_folders, render_summary
from shared.errors import ConfigError, ManifestError
from shared.schema import ModalitySchema
from tests.shared.media_samples import RATING, SCHEMA, image_bytes, motion_bytes, vector_bytes, whole_folder, write_rows

CARD = """
title = "Six rows"
generated = true
licence = "CC0-1.0"
citation = "none"
source = "a test"
[content]
task = "single-label"
labels = ["joy", "calm", "fear"]
groups = ["language"]
[content.modalities]
text = {kind = "text"}
image = {kind = "image"}
audio = {kind = "audio"}
motion = {kind = "signal", channels = 3}
vector = {kind = "features", width = 4}
"""


def test_a_summary_counts_rows_modalities_labels_subjects_and_groups(tmp_path: Path) -> None:
    rows = whole_folder(tmp_path)
    del rows[0]["text"], rows[1]["language"]
    write_rows(tmp_path, rows)
    summary = check_folder(tmp_path, schema=SCHEMA)
    assert summary.num_rows == 6
    assert summary.modalities == {"image": 6, "text": 5, "audio": 6, "motion": 6, "vector": 6}
    assert summary.labels == {"joy": 3, "calm": 3}
    assert summary.ratings == {}
    assert summary.answers == {}
    assert summary.num_subjects == 3
    assert summary.groups == {"language": {"el": 2, "fr": 3}}
    assert not summary.is_inferred


def test_a_summary_of_ratings_has_mean_lowest_and_highest(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"text": "a", "rating": rating} for rating in (-2, 0, 3)])
    summary = check_folder(tmp_path, schema=RATING)
    assert summary.ratings == {"rating": RatingSummary(mean=1 / 3, lowest=-2.0, highest=3.0)}
    assert summary.labels == {}
    assert summary.num_subjects is None


def test_every_fault_is_found_in_rows_and_files_together(tmp_path: Path) -> None:
    rows = whole_folder(tmp_path)
    (tmp_path / "img/0.png").write_bytes(b"")
    (tmp_path / "img/1.png").write_bytes(image_bytes(seed=2))
    (tmp_path / "npy/3.npy").write_bytes(motion_bytes(channels=2))
    (tmp_path / "npy/v4.npy").write_bytes((tmp_path / "npy/v5.npy").read_bytes())
    rows[4]["label"] = "anger"
    write_rows(tmp_path, rows)
    with pytest.raises(ManifestError) as caught:
        check_folder(tmp_path, schema=SCHEMA)
    assert [(fault.place, fault.field) for fault in caught.value.faults] == [
        ("line 1", "image_file_name"),
        ("line 3, img/2.png", "image.content"),
        ("line 4, npy/3.npy", "motion.channels"),
        ("line 5", "label"),
    ]


def test_rows_of_one_subject_may_share_a_recording(tmp_path: Path) -> None:
    rows = whole_folder(tmp_path)
    (tmp_path / "img/1.png").write_bytes(image_bytes(seed=0))
    assert check_folder(tmp_path, schema=SCHEMA).num_rows == 6

    for row in rows:
        del row["subject_id"]
    write_rows(tmp_path, rows)
    with pytest.raises(ManifestError, match="1 fault in 6 rows"):
        check_folder(tmp_path, schema=SCHEMA)


def test_a_card_is_found_in_the_folder_or_above_it_and_is_what_counts(tmp_path: Path) -> None:
    folder = tmp_path / "set/sites/one"
    whole_folder(folder)
    assert find_card(folder) is None
    (tmp_path / "set/dataset.toml").write_text(CARD)
    card = find_card(folder)
    assert card is not None
    assert card.title == "Six rows"
    summary = check_folder(folder, schema=None)
    assert summary.labels == {"joy": 3, "calm": 3, "fear": 0}
    assert not summary.is_inferred
    (folder / "dataset.toml").write_text(CARD.replace("CC0-1.0", "").replace("licence", "license"))
    with pytest.raises(ConfigError, match="license"):
        find_card(folder)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_without_a_card_the_columns_tell(tmp_path: Path, suffix: str) -> None:
    whole_folder(tmp_path, suffix=suffix)
    schema = infer_schema(tmp_path)
    assert schema.model_copy(update={"ignored": SCHEMA.ignored, "labels": SCHEMA.labels}) == SCHEMA
    assert schema.labels == ("calm", "joy")
    summary = check_folder(tmp_path, schema=None)
    assert summary.is_inferred
    assert "guessed" in rendered(tmp_path)


def test_a_file_name_column_is_a_modality_named_by_its_kind(tmp_path: Path) -> None:
    for name, data, schema in (
        ("a.png", image_bytes(), {"image": ModalitySchema(kind="image")}),
        ("a.csv", b"1,2\n3,4\n", {"signal": ModalitySchema(kind="signal", channels=2)}),
        ("a.npy", vector_bytes(), {"features": ModalitySchema(kind="features", width=4)}),
    ):
        (tmp_path / name).write_bytes(data)
        write_rows(tmp_path, [{"file_name": name, "rating": rating} for rating in (0, 1)])
        inferred = infer_schema(tmp_path)
        assert inferred.modalities == schema
        assert inferred.rating_range == (0, 1)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a", "label": "joy"},
        {"text": "a"},
        {"label": "joy"},
        {"text": "a", "rating": 1},
        {"Bad Name_file_name": "a.png", "label": "x"},
        {"a_file_name": "../a.npy", "label": "x"},
    ],
)
def test_columns_that_do_not_tell_are_named(tmp_path: Path, row: dict[str, object]) -> None:
    write_rows(tmp_path, [row])
    with pytest.raises(
        ManifestError, match=r"columns is not clear(.|\n)*allowed: columns that tell what they hold, or a"
    ):
        infer_schema(tmp_path)


def test_the_folders_of_a_data_set_are_found(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="manifest is missing"):
        data_folders(tmp_path)
    names = ["held-out/test", "held-out/validation", "sites/a", "sites/b"]
    for name in names:
        write_rows(tmp_path / name, [{"text": "a", "label": "joy"}])
    (tmp_path / "sites/empty").mkdir()
    assert data_folders(tmp_path) == tuple(tmp_path / name for name in names)
    assert data_folders(tmp_path / "sites/a") == (tmp_path / "sites/a",)


def rendered(folder: Path) -> str:
    screen = io.StringIO()
    Console(file=screen, width=100).print(render_summary(check_folder(folder, schema=None)))
    return screen.getvalue()


def test_the_table_says_that_it_stays_here_and_reads_no_markup_from_data(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label, "mood": "[red]x"} for label in ("[bold]joy", "calm")]
    write_rows(tmp_path, rows)
    text = rendered(tmp_path)
    assert "stays on this screen" in text
    assert "label [bold]joy" in text
    assert "mood [red]x" in text
