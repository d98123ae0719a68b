"""Targets: what cells say, in every form of manifest; what is no answer is named; and cells come back from numbers."""

import io
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shared.card import infer_schema
from shared.check import RatingSummary, check_folder, render_summary
from shared.errors import ManifestError
from shared.manifest import read_manifest
from shared.schema import DataSchema
from shared.targets import Target, cells_of, listed_labels, stacked_targets
from tests.shared.media_samples import write_rows

MODALITIES = {"text": {"kind": "text"}}
MANY = DataSchema.model_validate({"task": "multi-label", "labels": ("war", "love", "sea"), "modalities": MODALITIES})
SEVERAL = DataSchema.model_validate(
    {
        "task": "several",
        "tasks": {
            "mood": {"kind": "single-label", "labels": ("joy", "calm")},
            "topics": {"kind": "multi-label", "labels": ("war", "love")},
            "valence": {"kind": "rating", "rating_range": (-3, 3)},
        },
        "modalities": MODALITIES,
    }
)
NAN = math.nan


def targets_in(folder: Path, schema: DataSchema) -> list[Target]:
    return [row.target for row in read_manifest(folder, schema=schema).rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_many_labels_stand_in_a_list(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "a", "labels": labels} for labels in (["sea", "war"], ["love"], [])]
    write_rows(tmp_path, rows, suffix=suffix)
    assert targets_in(tmp_path, MANY) == [(1, 0, 1), (0, 1, 0), (0, 0, 0)]


def test_many_labels_stand_in_a_text_where_there_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('text,labels\na,sea|war\na,"[""love""]"\na,[]\na, love | sea\n')
    assert targets_in(tmp_path, MANY) == [(1, 0, 1), (0, 1, 0), (0, 0, 0), (0, 1, 1)]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            ["war", "peace"],
            r"labels is \['war', 'peace'\] .*allowed: a list of any of 'war', 'love', 'sea', also an empty one",
        ),
        ("peace", "labels is 'peace'; allowed: a list of any of"),
        ("[war]", r"labels is '\[war\]'"),
        ([1], r"labels is \[1\]"),
        ({"war": True}, "labels is"),
        (3, "labels is 3"),
        (None, "labels is absent"),
        ("", "labels is absent"),
    ],
)
def test_a_cell_that_names_no_labels_is_named(tmp_path: Path, cell: object, said: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"text": "a", "labels": cell}) + "\n")
    with pytest.raises(ManifestError, match=said):
        targets_in(tmp_path, MANY)


def test_a_row_may_answer_some_of_several_tasks_and_must_answer_one(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "a", "mood": "calm", "topics": ["love"], "valence": -1.5},
        {"text": "a", "valence": 3},
        {"text": "a", "topics": [], "mood": None},
    ]
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = stacked_targets(targets_in(tmp_path, SEVERAL), schema=SEVERAL)
    expected = torch.tensor([[1, 0, 1, -1.5], [NAN, NAN, NAN, 3], [NAN, 0, 0, NAN]])
    assert torch.equal(found.nan_to_num(99.0), expected.nan_to_num(99.0))
    path.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "a", "mood": "war", "valence": 9}) + "\n")
    with pytest.raises(ManifestError) as caught:
        targets_in(tmp_path, SEVERAL)
    text = str(caught.value)
    assert "line 1: mood, topics, valence is all absent; allowed: an answer to at least one of them" in text
    assert "line 2: mood is 'war'; allowed: 'joy', 'calm'" in text


@given(
    st.sampled_from([0.0, 1.0, NAN]),
    st.sampled_from([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (NAN, NAN)]),
    st.sampled_from([-3.0, 0.5, NAN]),
)
def test_cells_made_of_numbers_say_the_numbers(mood: float, topics: tuple[float, float], valence: float) -> None:
    """Through JSON and back, as `motet data split` writes them and a site reads them."""
    target = (mood, *topics, valence)
    if all(math.isnan(number) for number in target):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata.jsonl"
        path.write_text(json.dumps({"text": "a", **cells_of(target, schema=SEVERAL)}) + "\n")
        (again,) = targets_in(Path(folder), SEVERAL)
    assert isinstance(again, tuple)
    assert [str(float(number)) for number in again] == [str(number) for number in target]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_without_a_card_a_column_of_labels_tells_of_many(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "a", "labels": labels} for labels in (["sea", "war"], ["love"], ["sea"])]
    if suffix == ".csv":
        (tmp_path / "metadata.csv").write_text("text,labels\na,sea|war\na,love\na,sea\n")
    else:
        write_rows(tmp_path, rows, suffix=suffix)
    schema = infer_schema(tmp_path)
    assert (schema.task, schema.labels) == ("multi-label", ("love", "sea", "war"))
    summary = check_folder(tmp_path, schema=None)
    assert summary.labels == {"love": 1, "sea": 2, "war": 1}
    assert summary.is_inferred


def test_a_summary_of_several_tasks_counts_answers_and_labels(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "a", "mood": "calm", "topics": ["love", "war"], "valence": -1.5},
        {"text": "a", "mood": "calm", "valence": 2.5},
        {"text": "a", "topics": []},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = check_folder(tmp_path, schema=SEVERAL)
    assert summary.answers == {"mood": 2, "topics": 2, "valence": 2}
    assert summary.labels == {"mood.joy": 0, "mood.calm": 2, "topics.war": 1, "topics.love": 1}
    assert summary.ratings == {"valence": RatingSummary(mean=0.5, lowest=-1.5, highest=2.5)}
    screen = io.StringIO()
    Console(file=screen, width=100).print(render_summary(summary))
    text = screen.getvalue()
    assert "task topics" in text
    assert "valence: mean (lowest to highest)" in text


def test_labels_of_a_text_are_those_between_bars_or_of_its_json() -> None:
    assert listed_labels(" a | b c ") == ["a", "b c"]
    assert listed_labels('["a|b"]') == ["a|b"]
    assert listed_labels("[") is None
    assert listed_labels("[" * 100_000) is None
    assert listed_labels('[["a"]]') is None
    assert listed_labels(2.5) is None
