"""Missing: what is taken away from sites, from whom, and that nothing else changes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.manifest import Row
from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.missing import By, digest_of_source, lost_modalities, take_away
from simulations.datasets.writer import PUBLIC, TEST, VALIDATION, File, NewRow, writing
from simulations.scenario import read_scenario
from tests.simulations.folders import digest_of, rows_of

NAMES = ("steps", "voice", "text")
SITES = tuple(f"site-{number:02d}" for number in range(10))
ROWS = 12
RUN = """
[run]
name = "mine"
seed = 0
privacy = "none"
model.embedding_width = 4
model.encoders.text = { name = "embedding-mean" }
model.fusion.name = "mean"
training = { optimizer = "sgd", learning_rate = 0.1, sample_rate = 0.5, local_steps = 1 }
federation.rounds = 1
"""


@pytest.fixture(name="source", scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sites of twelve rows with three modalities, but that the last site's rows have only the text."""
    folder = tmp_path_factory.mktemp("source") / "mine"
    content = DataSchema(
        task="single-label",
        labels=("a", "b"),
        modalities={
            "steps": ModalitySchema(kind="signal", channels=3),
            "voice": ModalitySchema(kind="signal", channels=3),
            "text": ModalitySchema(kind="text"),
        },
        groups=("language",),
        ignored=("note",),
    )
    card = DataCard(title="Mine", generated=True, licence="CC0", citation="none", source="test", content=content)
    with writing(folder, card=card) as writer:
        for part in (VALIDATION, TEST, PUBLIC, *SITES):
            for number in range(ROWS):
                array = _bytes(100 * len(part) + number)
                values: dict[str, str | File] = {"text": f"{part} {number}"}
                if part != SITES[-1]:
                    values |= {"steps": File(".npy", array), "voice": File(".npy", array)}
                more = {"language": "fr", "note": f"n{number}"}
                target = {"label": "ab"[number % 2]}
                writer.add(part, NewRow(f"{number:03d}", values, targets=target, subject=f"{part}-p", columns=more))
        writer.finish(how_it_was_made="For tests.")
    return folder


def _bytes(value: int) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.full((2, 3), value, np.float32))
    return file.getvalue()


def _had(folder: Path, site: str) -> list[set[str]]:
    """What each row of a site has."""
    columns = {"steps": "steps_file_name", "voice": "voice_file_name", "text": "text"}
    rows = rows_of(folder / "sites" / site)
    return [{name for name, column in columns.items() if column in row} for row in rows]


def _made_up_rows(number: int) -> list[Row]:
    return [
        Row(line=line, values=dict.fromkeys(NAMES, "x"), target=0, subject=None, groups={}) for line in range(number)
    ]


def test_a_site_loses_a_modality_in_all_its_rows_or_in_none(source: Path, tmp_path: Path) -> None:
    built = take_away(source, tmp_path / "less", share=1 / 3, by="site", names=("voice", "steps"))
    sites = {site: _had(built.folder, site) for site in SITES}
    assert all(len(set(map(frozenset, rows))) == 1 for rows in sites.values())
    kept = Counter(name for rows in sites.values() for name in rows[0])
    assert kept == {"text": 10, "steps": 6, "voice": 6}, "a third of the nine sites that had each"


def test_a_row_loses_what_it_loses_by_itself(source: Path, tmp_path: Path) -> None:
    built = take_away(source, tmp_path / "less", share=0.5, by="row", names=("voice", "steps"))
    rows = [row for site in SITES[:-1] for row in _had(built.folder, site)]
    assert Counter(name for row in rows for name in row) == {"text": 108, "steps": 54, "voice": 54}
    assert len({frozenset(row) for row in rows}) == 4, "each modality by itself"
    assert all(len({frozenset(row) for row in _had(built.folder, site)}) > 1 for site in SITES[:-1])


@pytest.mark.parametrize("by", ["site", "row"])
def test_something_is_always_left_and_which_is_drawn(by: By) -> None:
    """Each of three modalities is left in a third of 3,000 units; fails by chance less often than once in 1e6."""
    rows = _made_up_rows(3000)
    shards = [[number] for number in range(3000)]
    generator = np.random.default_rng(0)
    lost = lost_modalities(rows, shards=shards, shares=dict.fromkeys(NAMES, 1.0), by=by, generator=generator)
    left = Counter(tuple(set(NAMES) - lost[number]) for number in range(3000))
    assert set(left) == {(name,) for name in NAMES}
    assert all(abs(count - 1000) < 5 * 26 for count in left.values())


@pytest.mark.parametrize("by", ["site", "row"])
def test_a_row_keeps_one_of_those_that_the_model_takes(by: By) -> None:
    rows, needed = _made_up_rows(40), ("steps", "voice")
    lost = lost_modalities(
        rows,
        shards=[list(range(start, start + 4)) for start in range(0, 40, 4)],
        shares=dict.fromkeys(needed, 0.8),
        by=by,
        generator=np.random.default_rng(0),
        needed=needed,
    )
    assert all(len(names) == 1 for names in lost.values())
    assert len(lost) >= 32, "those that lose steps, and those that lose voice"


@pytest.mark.parametrize("by", ["site", "row"])
def test_a_larger_share_takes_what_a_smaller_one_takes(by: By) -> None:
    rows = _made_up_rows(120)
    shards = [list(range(start, start + 12)) for start in range(0, 120, 12)]
    taken = [
        lost_modalities(rows, shards=shards, shares={"voice": share}, by=by, generator=np.random.default_rng(3)).keys()
        for share in (0.1, 0.3, 0.5)
    ]
    assert [len(numbers) for numbers in taken] == [12, 36, 60]
    assert taken[0] < taken[1] < taken[2]


def test_held_out_and_public_rows_and_all_other_columns_stay(source: Path, tmp_path: Path) -> None:
    built = take_away(source, tmp_path / "less", share=0.9, by="row")
    for part in (VALIDATION, TEST, PUBLIC):
        before, after = rows_of(source / part), rows_of(built.folder / part)
        assert [row["text"] for row in after] == [row["text"] for row in before]
        assert all({*row} == {*old} for row, old in zip(after, before, strict=True))
    for site in SITES:
        before, after = rows_of(source / "sites" / site), rows_of(built.folder / "sites" / site)
        for column in ("label", "subject_id", "language", "note"):
            assert [row[column] for row in after] == [row[column] for row in before]


def test_files_are_shared_not_copied_and_those_taken_away_are_gone(source: Path, tmp_path: Path) -> None:
    built = take_away(source, tmp_path / "less", share=0.5, names=("voice",))
    old = {path.stat().st_ino for path in source.rglob("*.npy")}
    new = list(built.folder.rglob("*.npy"))
    assert {path.stat().st_ino for path in new} <= old
    lacking = [site for site in SITES if "voice" not in _had(built.folder, site)[0]]
    assert len(lacking) == 1 + round(0.5 * 9)
    assert not any((built.folder / "sites" / site / "voice").exists() for site in lacking)


def test_the_same_seed_takes_the_same_and_another_something_else(source: Path, tmp_path: Path) -> None:
    folders = [
        take_away(source, tmp_path / f"{place}", share=0.3, by="row", seed=seed).folder
        for place, seed in enumerate((1, 1, 2))
    ]
    assert digest_of(folders[0]) == digest_of(folders[1])
    first, second = ([_had(folder, site) for site in SITES] for folder in folders[1:])
    assert first != second


def test_the_readme_says_what_was_taken(source: Path, tmp_path: Path) -> None:
    built = take_away(source, tmp_path / "less", share=1 / 3, by="site", names=("voice",), seed=5)
    text = (built.folder / "README.md").read_text()
    assert "- `voice`: 36 of the 108 rows at sites that had it (33.3%)" in text
    assert "Seed 5" in text
    assert "33% of the modalities taken away by site" in (built.folder / "dataset.toml").read_text()


def test_what_cannot_be_taken_away_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a share of 0 to 1 of steps, voice, text"):
        take_away(source, tmp_path / "less", share=0.3, names=("smell",))
    with pytest.raises(ConfigError, match=r"dataset\.toml and sites/"):
        take_away(tmp_path, tmp_path / "less", share=0.3)


def test_a_scenario_and_set_can_ask_for_it_and_it_is_made_once(source: Path, tmp_path: Path) -> None:
    scenario = tmp_path / "mine.toml"
    scenario.write_text(f'about = "x"\n[source]\npath = {json.dumps(str(source))}\n{RUN}')
    home = tmp_path / "home"

    def folder(*changes: str) -> Path:
        return read_scenario(scenario, changes=changes, home=home)[1]

    assert folder() == source
    less = folder("source.missing=0.3", 'source.missing_from=["voice", "text"]')
    assert less.parent == home / "data"
    assert all("text" in row for site in SITES for row in _had(less, site)), "all that the model takes"
    before = less.stat().st_mtime_ns
    assert folder('source.missing_from=["voice", "text"]', "source.missing=0.3", "source.missing_by=site") == less
    assert less.stat().st_mtime_ns == before
    whole = folder("source.missing=0.9")
    assert all(_had(whole, site) == _had(source, site) for site in SITES), "the model takes one, and rows keep it"
    others = {
        folder("source.missing=0.5"),
        folder("source.missing=0.3", "source.missing_by=row"),
        folder("source.missing=0.3", "source.missing_seed=1"),
        folder("source.missing=0.3", 'source.missing_from=["voice"]'),
        folder("source.missing=0.3"),
    }
    assert len(others | {less}) == 6
    with pytest.raises(ConfigError, match="missing"):
        folder("source.missing=1.3")


def test_a_changed_source_is_derived_anew(source: Path, tmp_path: Path) -> None:
    built = take_away(source, tmp_path / "copy", share=0.0)
    before = digest_of_source(built.folder)
    assert digest_of_source(built.folder) == before
    (built.folder / "sites" / SITES[0] / "metadata.jsonl").write_text('{"text": "new", "label": "a"}\n')
    assert digest_of_source(built.folder) != before
