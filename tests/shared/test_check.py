"""Check: the owner sees what a folder holds, or everything that is wrong with it."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from motet import app
from shared.card import find_card, infer_schema
from shared.check import RatingSummary, check_folder, data_folders, render_summary
from shared.check_together import leaks
from shared.errors import ConfigError, ManifestError
from shared.schema import DataSchema, ModalitySchema
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


TWO_ROWS = ({"text": "a", "label": "joy"}, {"text": "b", "label": "calm"})


def data_set(root: Path, people: dict[str, list[str]]) -> tuple[str, ...]:
    """The warnings about folders whose rows are about these people."""
    for name, subjects in people.items():
        write_rows(root / name, [{**row, "subject_id": who} for who in subjects for row in TWO_ROWS])
    return leaks([check_folder(folder, schema=None) for folder in data_folders(root)], root=root)


def test_people_who_are_held_out_and_at_a_site_are_told_with_where_they_are(tmp_path: Path) -> None:
    warnings = data_set(
        tmp_path,
        {
            "held-out/test": ["ann", "bob", "cem"],
            "held-out/validation": ["dan"],
            "sites/a": ["eve", "bob"],
            "sites/b": ["bob", "ann"],
            "sites/c": ["fay"],
        },
    )
    assert len(warnings) == 1
    assert warnings[0].startswith("held-out/test: 2 of its 3 subjects are in sites/a, sites/b as well: ann, bob. ")
    assert "give them names of their own" in warnings[0]


def test_people_in_two_held_out_parts_are_told_once_and_those_at_two_sites_not_at_all(tmp_path: Path) -> None:
    warnings = data_set(
        tmp_path,
        {"held-out/test": ["ann"], "held-out/validation": ["ann"], "sites/a": ["eve"], "sites/b": ["eve"]},
    )
    assert [warning[:62] for warning in warnings] == ["held-out/test: 1 of its 1 subjects are in held-out/validation "]


def test_without_names_of_people_or_held_out_parts_there_is_nothing_to_tell(tmp_path: Path) -> None:
    for name in ("held-out/test", "sites/a"):
        write_rows(tmp_path / "nobody" / name, [dict(row) for row in TWO_ROWS])
    root = tmp_path / "nobody"
    assert leaks([check_folder(each, schema=None) for each in data_folders(root)], root=root) == ()
    assert data_set(tmp_path / "alone", {"": ["ann"]}) == ()
    assert data_set(tmp_path / "sites-only", {"sites/a": ["ann"], "sites/b": ["ann"]}) == ()


PAIRS = DataSchema.model_validate(
    {
        "task": "matching",
        "pair": ["text", "words"],
        "item": "thing",
        "groups": ["thing"],
        "modalities": {"text": {"kind": "text"}, "words": {"kind": "text"}},
    }
)


def test_items_of_a_matching_that_are_held_out_and_at_a_site_are_told(tmp_path: Path) -> None:
    for name, things in {"held-out/test": ["cup", "hat"], "sites/a": ["hat"], "sites/b": ["dog"]}.items():
        write_rows(tmp_path / name, [{"text": "a", "words": "b", "thing": thing} for thing in things])
    found = leaks([check_folder(each, schema=PAIRS) for each in data_folders(tmp_path)], root=tmp_path)
    assert [warning[:57] for warning in found] == ["held-out/test: 1 of its 2 items are in sites/a as well: h"]


def test_pairs_are_counted_and_a_folder_without_any_says_what_that_costs(tmp_path: Path) -> None:
    rows = [{"text": "a", "words": "b"}, {"text": "a"}, {"words": "b"}]
    for name, kept, num in (("some", rows, 1), ("none", rows[1:], 0)):
        write_rows(tmp_path / name, list(kept))
        summary = check_folder(tmp_path / name, schema=PAIRS)
        assert summary.num_pairs == num
        screen = io.StringIO()
        Console(file=screen, width=200).print(render_summary(summary))
        assert ("No row has both text and words" in screen.getvalue()) == (num == 0)
        assert "text and words" in screen.getvalue()
    assert check_folder(whole(tmp_path / "other"), schema=SCHEMA).num_pairs is None


def whole(folder: Path) -> Path:
    whole_folder(folder)
    return folder


def test_the_command_names_folders_by_their_path_and_warns_without_failing(tmp_path: Path) -> None:
    for name, who in (("held-out/test", "ann"), ("sites/a", "ann")):
        write_rows(tmp_path / name, [{**row, "subject_id": who} for row in TWO_ROWS])
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "sites/a/metadata.jsonl" in done.output
    assert "held-out/test/metadata.jsonl" in done.output
    assert "warning: held-out/test: 1 of its 1 subjects are in sites/a" in done.output
    alone = CliRunner().invoke(app, ["check", str(tmp_path / "sites" / "a")])
    assert "warning" not in alone.output


def test_the_command_names_a_folder_with_faults_as_it_names_a_sound_one(tmp_path: Path) -> None:
    for site in ("north", "west"):
        write_rows(tmp_path / "sites" / site, TWO_ROWS)
    with (tmp_path / "sites" / "north" / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write("no JSON\n")
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 1
    assert "\nsites/north/metadata.jsonl: 1 fault in " in f"\n{done.output}"
    assert "sites/west/metadata.jsonl" in done.output
    assert f"motet check {tmp_path}/sites/north" in done.output.replace("\n", "")
    alone = CliRunner().invoke(app, ["check", str(tmp_path / "sites" / "north")])
    assert "\nnorth/metadata.jsonl: 1 fault in " in f"\n{alone.output}"
