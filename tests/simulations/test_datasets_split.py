"""Split: every row once, nobody on both sides, the skew and the losses that were asked for."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from shared.errors import ConfigError, ManifestError
from simulations.datasets.split import split_folder
from simulations.datasets.writer import BuiltDataset
from tests.simulations.folders import digest_of, rows_of

NUM_ROWS = 240


@pytest.fixture(name="source", scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 rows without a card: a signal and a text, 40 people, 3 languages, 4 labels; every tenth has only the text."""
    folder = tmp_path_factory.mktemp("source") / "mine"
    (folder / "steps").mkdir(parents=True)
    lines = []
    for number in range(NUM_ROWS):
        row = {
            "text": f"row {number}",
            "label": "abcd"[number % 4],
            "subject_id": f"p{number % 40}",
            "language": ("fr", "da", "el")[number % 40 % 3],
        }
        if number % 10:
            np.save(folder / f"steps/{number}.npy", np.full((4, 2), number, np.float32))
            row["steps_file_name"] = f"steps/{number}.npy"
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _all_rows(built: BuiltDataset) -> dict[str, list[dict[str, str]]]:
    return {path.parent.name: rows_of(path.parent) for path in sorted(built.folder.rglob("metadata.jsonl"))}


@pytest.mark.parametrize(
    "options",
    [
        {"how": "even", "sites": 7},
        {"how": "dirichlet", "sites": 5, "alpha": 0.5},
        {"how": "column", "column": "language"},
        {"how": "column", "column": "subject_id", "sites": 4, "held_out_share": 0.0},
        {"how": "even", "sites": 3, "remove": {"text": 0.5, "steps": 0.5}},
    ],
)
def test_every_row_lands_in_exactly_one_place(source: Path, tmp_path: Path, options: dict[str, object]) -> None:
    built = split_folder(source, tmp_path / "split", **options)  # type: ignore[arg-type]
    numbers = []
    for path in built.folder.rglob("metadata.jsonl"):
        for row in rows_of(path.parent):
            told = {int(row["text"][4:])} if "text" in row else set()
            if "steps_file_name" in row:
                told.add(int(np.load(path.parent / row["steps_file_name"])[0, 0]))
            assert len(told) == 1
            number = told.pop()
            assert (row["label"], row["subject_id"]) == ("abcd"[number % 4], f"p{number % 40}")
            numbers.append(number)
    assert sorted(numbers) == list(range(NUM_ROWS))


def test_nobody_is_both_held_out_and_at_a_site(source: Path, tmp_path: Path) -> None:
    rows = _all_rows(split_folder(source, tmp_path / "split", how="even", sites=3, held_out_share=0.3))
    people = {name: {row["subject_id"] for row in some} for name, some in rows.items()}
    at_sites = set.union(*(some for name, some in people.items() if name.startswith("site")))
    assert (len(people["validation"]), len(people["test"]), len(at_sites)) == (6, 6, 28)
    assert not people["validation"] & people["test"]
    assert not at_sites & (people["validation"] | people["test"])


def test_a_column_split_keeps_groups_together_and_names_sites_by_value(source: Path, tmp_path: Path) -> None:
    rows = _all_rows(split_folder(source, tmp_path / "split", how="column", column="language"))
    assert {name for name in rows if name not in ("validation", "test")} == {"da", "el", "fr"}
    assert all({row["language"] for row in rows[name]} == {name} for name in ("da", "el", "fr"))
    rows = _all_rows(
        split_folder(source, tmp_path / "two", how="column", column="subject_id", sites=5, held_out_share=0.0)
    )
    people = [{row["subject_id"] for row in some} for some in rows.values()]
    assert len(people) == 5
    assert sum(map(len, people)) == 40


def test_the_dirichlet_skew_is_there_and_the_even_split_has_none(source: Path, tmp_path: Path) -> None:
    """Chi-square test of independence of site and label: the even split passes 1e-6 but for one seed in a million."""

    def p_value(built: BuiltDataset) -> float:
        counts = [Counter(row["label"] for row in rows_of(site)) for site in built.sites]
        return float(stats.chi2_contingency([[count[label] for label in "abcd"] for count in counts]).pvalue)

    skewed = split_folder(source, tmp_path / "a", how="dirichlet", sites=4, alpha=0.2, held_out_share=0.0)
    even = split_folder(source, tmp_path / "b", how="even", sites=4, held_out_share=0.0)
    assert p_value(skewed) < 1e-12
    assert p_value(even) > 1e-6


def test_the_share_of_modalities_asked_for_is_gone_from_sites_and_never_a_rows_last(
    source: Path, tmp_path: Path
) -> None:
    built = split_folder(source, tmp_path / "split", how="even", sites=4, remove={"steps": 0.25}, held_out_share=0.0)
    rows = [row for site in built.sites for row in rows_of(site)]
    assert sum("steps_file_name" in row for row in rows) == 216 - 54
    built = split_folder(source, tmp_path / "last", how="even", sites=4, remove={"text": 1.0}, held_out_share=0.0)
    rows = [row for site in built.sites for row in rows_of(site)]
    assert all(("text" in row) != ("steps_file_name" in row) for row in rows)
    built = split_folder(
        source, tmp_path / "sites", how="even", sites=4, remove={"steps": 0.5}, remove_from="sites", held_out_share=0.2
    )
    lacking = [site.name for site in built.sites if not any("steps_file_name" in row for row in rows_of(site))]
    assert len(lacking) == 2
    assert any("steps_file_name" in row for row in rows_of(built.folder / "held-out/test"))


def test_media_are_shared_with_the_source(source: Path, tmp_path: Path) -> None:
    built = split_folder(source, source.parent / "linked", how="even", sites=2)
    path = next((built.sites[0] / "steps").iterdir())
    assert path.samefile(source / "steps" / f"{int(path.stem)}.npy")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(source: Path, tmp_path: Path) -> None:
    digests = [
        digest_of(split_folder(source, tmp_path / str(n), how="dirichlet", sites=3, alpha=1.0, seed=seed).folder)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_split_of_a_site_of_a_built_data_set_keeps_its_licence(source: Path, tmp_path: Path) -> None:
    first = split_folder(source, tmp_path / "first", how="even", sites=2)
    card = (first.folder / "dataset.toml").read_text("utf-8").replace("not stated", "CC0, stated")
    (first.folder / "dataset.toml").write_text(card, "utf-8")
    second = split_folder(first.sites[0], tmp_path / "second", how="even", sites=2, held_out_share=0.0)
    assert second.card.licence.startswith("CC0, stated")
    assert second.card.content == first.card.content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "even"}, "sites: needed"),
        ({"how": "even", "sites": 2, "alpha": 1.0}, "alpha with 'dirichlet'"),
        ({"how": "dirichlet", "sites": 2}, "alpha with 'dirichlet'"),
        ({"how": "column", "column": "colour"}, "allowed: language, subject_id, label"),
        ({"how": "even", "sites": 2, "remove": {"smell": 0.5}}, "remove: smell"),
        ({"how": "even", "sites": 2, "remove": {"text": 1.5}}, "a share of 0 to 1"),
        ({"how": "even", "sites": 2, "held_out_share": 1.0}, "held_out_share is 1.0"),
        ({"how": "even", "sites": 999}, "allowed: 1 to 192"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    source: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        split_folder(source, tmp_path / "split", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


CARD = """title = "Tasks"
generated = true
licence = "CC0"
citation = "none"
source = "a test"
[content]
task = "several"
modalities = {text = {kind = "text"}}
[content.tasks.mood]
kind = "single-label"
labels = ["joy", "calm"]
[content.tasks.topics]
kind = "multi-label"
labels = ["war", "love"]
[content.tasks.valence]
kind = "rating"
rating_range = [-1, 1]
"""


def tasks_folder(folder: Path) -> list[dict[str, object]]:
    """120 rows of three tasks; every fifth has no mood, every seventh nothing but a mood or a rating."""
    folder.mkdir()
    (folder / "dataset.toml").write_text(CARD)
    rows: list[dict[str, object]] = []
    for number in range(120):
        row: dict[str, object] = {"text": f"row {number}", "valence": number / 120}
        if number % 5:
            row["mood"] = ("joy", "calm")[number % 2]
        if number % 7:
            row["topics"] = [["war"], ["love"], ["love", "war"], []][number % 4]
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {"how": "even", "sites": 3},
        {"how": "dirichlet", "sites": 3, "alpha": 0.3, "column": "mood"},
    ],
)
def test_answers_of_several_tasks_travel_with_their_rows(tmp_path: Path, options: dict[str, object]) -> None:
    rows = {row["text"]: row for row in tasks_folder(tmp_path / "mine")}
    built = split_folder(tmp_path / "mine", tmp_path / "split", held_out_share=0.2, **options)  # type: ignore[arg-type]
    found = [row for some in _all_rows(built).values() for row in some]
    assert len(found) == 120
    for row in found:
        known = rows[row["text"]]
        assert row["valence"] == pytest.approx(known["valence"])
        assert set(row) == set(known)
        assert row.get("mood") == known.get("mood")
        assert sorted(row.get("topics", [])) == sorted(known.get("topics", []))  # type: ignore[call-overload]
    counts = sum("love" in row.get("topics", ()) for row in rows_of(built.sites[0]))
    table = (built.folder / "README.md").read_text()
    assert "| mood.joy | mood.calm | topics.war | topics.love | valence |" in table
    line = next(line for line in table.splitlines() if line.startswith(f"| sites/{built.sites[0].name} "))
    assert line.split(" | ")[6] == str(counts)


def test_several_tasks_are_dealt_out_by_one_that_has_single_labels(tmp_path: Path) -> None:
    tasks_folder(tmp_path / "mine")

    def split(**options: object) -> BuiltDataset:
        return split_folder(tmp_path / "mine", tmp_path / "split", sites=2, **options)  # type: ignore[arg-type]

    with pytest.raises(
        ConfigError, match="'topics' has no single label; allowed: even, column, or dirichlet with colu"
    ):
        split(how="dirichlet", alpha=1.0, column="topics")
    with pytest.raises(ConfigError, match="and with 'dirichlet' where there are several tasks"):
        split(how="dirichlet", alpha=1.0)
    with pytest.raises(ConfigError, match="column is 'topics'; allowed: subject_id, mood"):
        split(how="column", column="topics")
    with pytest.raises(ConfigError, match=r"column 'mood': row .* has none; allowed: a value in every row"):
        split(how="column", column="mood")


def test_many_labels_travel_with_their_rows_and_cannot_be_dealt_out(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    lines = [json.dumps({"text": f"row {n}", "labels": [["a"], ["b", "a"], []][n % 3]}) for n in range(30)]
    (tmp_path / "mine/metadata.jsonl").write_text("\n".join(lines) + "\n")
    built = split_folder(tmp_path / "mine", tmp_path / "split", how="even", sites=2)
    assert (built.card.content.task, built.card.content.labels) == ("multi-label", ("a", "b"))
    found = [row for some in _all_rows(built).values() for row in some]
    assert sorted(len(row["labels"]) for row in found) == [0] * 10 + [1] * 10 + [2] * 10
    with pytest.raises(ConfigError, match="which deals out classes"):
        split_folder(tmp_path / "mine", tmp_path / "no", how="dirichlet", sites=2, alpha=1.0)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        split_folder(tmp_path, tmp_path / "split", how="even", sites=2)
