"""Tests of who takes part in a cohort: each owner's own word, looked at in each round, and nothing kept of who is done."""

import gc
import os
import time
from pathlib import Path

import pytest

from client.cohort import answer_cohort
from client.cohort_entry import CohortSite
from client.open_round import open_round
from client.permission import Cards
from client.sample_store import SampleStore
from client.site import OwnerPrivacy, SiteConfig, read_site
from client.unchanged import SETTLED_S
from shared.card import find_card
from shared.messages import Refusal, TrainReply
from tests.client.test_cohort import NO_NOISE, add_site, add_sites, answered, asked_of, header_of, one_by_one
from tests.tiny import CARD

OTHER_CARD = CARD.replace('"b"', '"d"')


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all files had been written long ago."""
    now = time.time
    monkeypatch.setattr("client.unchanged.time.time", lambda: now() + SETTLED_S + 1)


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore(tmp_path / "store")


def codes(answers: list[TrainReply | Refusal]) -> list[str]:
    return [answer.code if isinstance(answer, Refusal) else "" for answer in answers]


def forbid(path: Path) -> None:
    """The owner takes back the leave to train without noise."""
    text = path.read_text(encoding="utf-8")
    assert text.count("allow_non_private = true") == 1
    path.write_text(text.replace("allow_non_private = true", "allow_non_private = false"), encoding="utf-8")


def add_line(path: Path, line: str) -> None:
    """A line at the top of an owner's settings."""
    path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")


def test_one_owners_leave_is_nobody_elses(tmp_path: Path, store: SampleStore) -> None:
    """Sites that differ in one thing each, between others that permit the run: refused as they would be alone."""
    assert OTHER_CARD != CARD
    paths = add_sites(tmp_path, 7)
    forbid(paths[1])
    add_line(paths[2], "max_parameters = 3")
    (paths[3].parent / "data" / "dataset.toml").write_text(OTHER_CARD, encoding="utf-8")
    (paths[4].parent / "dataset.toml").write_text(OTHER_CARD, encoding="utf-8")
    add_line(paths[5], 'parts = ["gone.py"]')
    expected = codes(one_by_one(asked_of(paths, NO_NOISE)))

    assert [bool(code) for code in expected] == [False, True, True, True, True, True, False]
    assert codes(answered(asked_of(paths, NO_NOISE, run_id="together"), store=store)) == expected


def test_what_is_permitted_rests_on_the_terms_alone(tmp_path: Path) -> None:
    """Whatever else opening a round may look at would make two owners of equal terms differ."""
    seen = set()

    class Watched(SiteConfig):
        def __getattribute__(self, name: str) -> object:
            seen.add(name)
            return super().__getattribute__(name)

    site = read_site(add_site(tmp_path, "site-0"))
    watched = Watched.model_construct(**dict(site))
    seen.clear()
    opened = open_round(header_of(NO_NOISE), site=watched)
    looked_at = seen & set(SiteConfig.model_fields)
    seen.clear()
    _ = watched.terms
    assert {"privacy", "modalities", "parts", "max_parameters"} <= looked_at
    for field in looked_at - {"data"}:
        changed = site.model_copy(update={field: object()})
        assert changed.terms != site.terms, field
    other = site.model_copy(update={"name": "other", "data_set": "other"})
    assert (opened.at(other).site, opened.at(other).permitted) == (other, opened.permitted)


def test_what_an_owner_changes_between_rounds_counts_in_the_next(tmp_path: Path, store: SampleStore) -> None:
    paths = add_sites(tmp_path, 5)
    assert codes(answered(asked_of(paths, NO_NOISE), store=store)) == [""] * 5
    forbid(paths[1])
    (paths[2].parent / "dataset.toml").write_text(OTHER_CARD, encoding="utf-8")
    (paths[3].parent / "data").rename(paths[3].parent / "gone")
    assert codes(answered(asked_of(paths, NO_NOISE, number=2), store=store)) == [
        "", "refused", "refused", "settings-invalid", "",
    ]  # fmt: skip
    (tmp_path / "dataset.toml").write_text(OTHER_CARD, encoding="utf-8")
    assert codes(answered(asked_of(paths, NO_NOISE, number=3), store=store))[0] == "refused"


def test_the_nearest_card_counts_and_none_further_than_three_above(tmp_path: Path) -> None:
    """As `find_card` finds it, for folders that share what is above them and are asked about in any order."""
    folders = [tmp_path / "a" / "b" / "c" / name / "data" for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", folders[0].parent, folders[0]):
        (place / "dataset.toml").write_text(OTHER_CARD if place == folders[0] else CARD, encoding="utf-8")
        cards = Cards()
        for folder in (*folders, folders[0].parent, *reversed(folders)):
            assert cards.card_of(folder) == find_card(folder), (place, folder)
    assert find_card(folders[0]) != find_card(folders[1])
    (folders[0] / "dataset.toml").unlink()
    (folders[0] / "dataset.toml").mkdir()
    assert Cards().card_of(folders[0]) == find_card(folders[0])


def test_a_round_looks_at_each_of_a_sites_files_once(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings, folder and manifest, and where a card might lie; its folder twice, before and after it is paid."""
    paths = add_sites(tmp_path, 12)
    answered(asked_of(paths, NO_NOISE), store=store)
    looked, real = list[str](), os.stat

    def stat(path: object, **rest: object) -> os.stat_result:
        looked.append(str(path))
        return real(path, **rest)  # type: ignore[arg-type]

    # made before, because it looks for files itself
    some, most = (asked_of(chosen, NO_NOISE, number=number) for number, chosen in ((2, paths[:4]), (3, paths)))
    monkeypatch.setattr(os, "stat", stat)
    answered(some, store=store)
    num_of_four = len(looked)
    answered(most, store=store)
    monkeypatch.undo()

    num_of_twelve = len(looked) - num_of_four
    assert num_of_twelve - num_of_four <= 8 * 6
    assert looked.count(str(paths[0])) == 2
    assert looked.count(str(tmp_path / "sites" / "dataset.toml")) <= 2


def test_nothing_is_held_of_a_site_whose_answer_has_left(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.cohort_loading.LOADED_AT_ONCE", 1)
    asked, held = asked_of(add_sites(tmp_path, 6), NO_NOISE), []
    for _ in answer_cohort(asked, store=store, memory_bytes=1):
        gc.collect()
        held.append(sum(type(each) is CohortSite for each in gc.get_objects()))
    # those to come, or the last one
    assert held == [5, 4, 3, 2, 1, 1]


def test_what_is_equal_among_owners_is_one_object(tmp_path: Path) -> None:
    one, two = (read_site(add_site(tmp_path, name)) for name in ("site-1", "site-2"))
    other = read_site(add_site(tmp_path, "site-3", epsilon=1.0))
    for field in ("privacy", "modalities", "ledger", "checkpoints", "parts"):
        assert getattr(one, field) is getattr(two, field)
    assert other.privacy is not one.privacy
    assert isinstance(other.privacy, OwnerPrivacy)
    assert other.privacy.epsilon == 1.0
    # built past the checks from what passed them: the same object as far as anybody can see
    assert SiteConfig.model_validate(one.model_dump()) == one
    assert one.name == "site-1"
    assert one.data == (tmp_path / "sites" / "site-1" / "data").resolve()
