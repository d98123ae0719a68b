"""Dataset: rows become the tensors that their files hold, once, and the cache spares every second look."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shared.check
import shared.loader
from shared.batch import Samples
from shared.config import EncoderSettings
from shared.dataset import load_samples
from shared.errors import ManifestError
from tests.shared.dataset_samples import Way, Ways, equal, rewrite, run_on
from tests.shared.media_samples import (
    RATING,
    SCHEMA,
    motion_bytes,
    whole_folder,
    write_rows,
)


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, opening or decoding any media file is an error."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError(f"a media file was opened: {arguments}")

    def seal() -> None:
        for place in (shared.loader, shared.check):
            monkeypatch.setattr(place, "read_file", refuse)
            monkeypatch.setattr(place, "decode", refuse)
        monkeypatch.setattr(Image, "open", refuse)
        monkeypatch.setattr("soundfile.SoundFile", refuse)

    return seal


def test_samples_hold_what_the_files_hold(site: Path, load: Callable[..., Samples]) -> None:
    samples = load()
    assert list(samples.inputs) == ["image", "text", "audio", "motion", "vector"]
    for i in range(6):
        torch.testing.assert_close(samples.inputs["motion"][i], torch.tensor(np.load(site / f"npy/{i}.npy"))[0])
        torch.testing.assert_close(samples.inputs["vector"][i], torch.tensor(np.load(site / f"npy/v{i}.npy"))[:3])
        pixels = np.asarray(Image.open(site / f"img/{i}.png"))[0, 0]
        assert samples.inputs["image"][i].tolist() == pixels.tolist()
    assert samples.present.all()
    assert samples.present.shape == (6, 5)
    assert samples.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert samples.targets.dtype == torch.int64
    assert samples.subjects == ("p0", "p0", "p1", "p1", "p2", "p2")
    assert samples.groups == {"language": ("fr", "el") * 3}


def test_what_a_row_lacks_is_zero_and_marked_absent(site: Path, load: Callable[..., Samples]) -> None:
    whole = load()

    def take_away(rows: list[dict[str, object]]) -> None:
        del rows[0]["image_file_name"]
        rows[1]["text"] = ""
        rows[2]["motion_file_name"] = None
        del rows[3]["language"]

    rewrite(site, take_away)
    samples = load()
    absent = [(0, "image"), (1, "text"), (2, "motion")]
    for row in range(6):
        for column, name in enumerate(run_on().modalities):
            expected = torch.zeros(3) if (row, name) in absent else whole.inputs[name][row]
            assert torch.equal(samples.inputs[name][row], expected)
            assert samples.present[row, column] == ((row, name) not in absent)
    assert samples.groups["language"][3] == ""


def test_rows_without_a_modality_of_the_run_are_left_out(site: Path, load: Callable[..., Samples]) -> None:
    rewrite(site, lambda rows: rows[4].pop("text"))
    samples = load(run=run_on(modalities=("text",)))
    assert list(samples.inputs) == ["text"]
    assert samples.subjects == ("p0", "p0", "p1", "p1", "p2")
    assert samples.present.shape == (5, 1)


def test_a_site_loads_only_the_modalities_it_may_have(
    site: Path, load: Callable[..., Samples], sealed: Callable[[], None]
) -> None:
    sealed()
    samples = load(modalities=("text", "other"))
    assert list(samples.inputs) == ["text"]
    assert samples.present.tolist() == [[False, True, False, False, False]] * 6


def test_a_modality_that_no_row_has_is_zeros_of_the_right_type(site: Path, load: Callable[..., Samples]) -> None:
    rewrite(site, lambda rows: [row.pop("image_file_name") for row in rows])
    ways = Ways()
    ways["image"] = Way(shape=(3,), dtype=torch.int64)
    samples = load(ways=ways)
    assert samples.inputs["image"].dtype == torch.int64
    assert torch.equal(samples.inputs["image"], torch.zeros(6, 3, dtype=torch.int64))
    assert not samples.present[:, 0].any()


def test_no_usable_rows_give_no_samples(site: Path, load: Callable[..., Samples]) -> None:
    rewrite(site, lambda rows: [row.pop("audio_file_name") for row in rows])
    samples = load(run=run_on(modalities=("audio",)))
    assert len(samples) == 0
    assert samples.inputs["audio"].shape == (0, 3)
    assert samples.present.shape == (0, 1)


def test_rows_without_subjects_are_each_their_own(tmp_path: Path, load: Callable[..., Samples]) -> None:
    write_rows(tmp_path / "site", [{"text": "a", "rating": 1}, {"text": "a", "rating": -0.5}])
    samples = load(run=run_on(RATING), ways={"text": Way()})
    assert samples.subjects == ("1", "2")
    assert samples.targets.tolist() == [1.0, -0.5]
    assert samples.targets.dtype == torch.float32
    assert samples.groups == {"language": ("", "")}


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_run_opens_no_media_file(site: Path, load: Callable[..., Samples], sealed: Callable[[], None]) -> None:
    first = load()
    sealed()
    ways = Ways()
    assert equal(load(ways=ways), first)
    assert ways.num_finished == 0


def test_values_are_finished_64_at_a_time(tmp_path: Path, load: Callable[..., Samples]) -> None:
    write_rows(tmp_path / "site", [{"text": f"number {i}", "rating": 0} for i in range(150)])
    ways = {"text": Way()}
    load(run=run_on(RATING), ways=ways)
    assert ways["text"].batches == [64, 64, 22]


def test_equal_texts_are_prepared_once(tmp_path: Path, load: Callable[..., Samples]) -> None:
    write_rows(tmp_path / "site", [{"text": ("yes", "no")[i % 2], "rating": 0} for i in range(10)])
    ways = {"text": Way()}
    samples = load(run=run_on(RATING), ways=ways)
    assert sum(ways["text"].batches) == 2
    assert torch.equal(samples.inputs["text"][0], samples.inputs["text"][8])
    assert not torch.equal(samples.inputs["text"][0], samples.inputs["text"][1])


def test_only_what_is_new_or_changed_is_prepared(site: Path, load: Callable[..., Samples]) -> None:
    load()
    (site / "npy/2.npy").write_bytes(motion_bytes(seed=99, steps=11))
    (site / "npy/new.npy").write_bytes(motion_bytes(seed=100))
    rewrite(site, lambda rows: rows.append({"motion_file_name": "npy/new.npy", "label": "joy", "subject_id": "p9"}))
    ways = Ways()
    samples = load(ways=ways)
    assert {name: sum(way.batches) for name, way in ways.items() if way.batches} == {"motion": 2}
    for row, name in ((2, "2"), (6, "new"), (0, "0")):
        torch.testing.assert_close(samples.inputs["motion"][row], torch.tensor(np.load(site / f"npy/{name}.npy"))[0])


def test_a_file_changed_in_place_is_read_again(site: Path, load: Callable[..., Samples]) -> None:
    before, path = load(), site / "npy/1.npy"
    stamp = path.stat()
    path.write_bytes(motion_bytes(seed=99))
    assert path.stat().st_size == stamp.st_size
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    after = load()
    assert not torch.equal(after.inputs["motion"][1], before.inputs["motion"][1])
    torch.testing.assert_close(after.inputs["motion"][1], torch.tensor(np.load(path))[0])


def test_other_preprocessing_or_another_form_never_meets_old_values(site: Path, load: Callable[..., Samples]) -> None:
    load()
    ways = Ways(digest="another")
    load(ways=ways)
    assert ways.num_finished == 30
    narrower = SCHEMA.model_copy(
        update={
            "modalities": SCHEMA.modalities | {"vector": SCHEMA.modalities["vector"].model_copy(update={"width": 3})}
        }
    )
    with pytest.raises(ManifestError, match=r"vector\.shape is \[4\]; allowed: \[3\]"):
        load(run=run_on(narrower))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""]
)
def test_a_damaged_cache_is_made_again(
    site: Path, load: Callable[..., Samples], damage: Callable[[bytes], bytes]
) -> None:
    first = load()
    for path in (site.parent / "cache").glob("*/*"):
        path.write_bytes(damage(path.read_bytes()))
    ways = Ways()
    assert equal(load(ways=ways), first)
    assert ways.num_finished == 30
    again = Ways()
    assert equal(load(ways=again), first)
    assert again.num_finished == 0


def test_withdrawn_rows_leave_the_cache(site: Path, load: Callable[..., Samples]) -> None:
    """Under every preprocessing, not only that of the next run."""
    load(ways=Ways(digest="older"))
    before = load()
    gone = {name: before.inputs[name][5].numpy().tobytes() for name in before.inputs}

    def holders() -> list[str]:
        files = [path.read_bytes() for path in (site.parent / "cache").glob("*/*") if path.is_file()]
        return [name for name, value in gone.items() if any(value in file for file in files)]

    assert sorted(holders()) == sorted(gone)
    rewrite(site, lambda rows: rows.pop())
    assert len(load()) == 5
    assert holders() == []


def test_several_at_once_share_a_cold_cache(site: Path, load: Callable[..., Samples]) -> None:
    run = run_on(modalities=("text", "motion", "vector"))
    start = threading.Barrier(6)

    def wait_and_load(_: int) -> Samples:
        start.wait()
        return load(run=run)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(wait_and_load, range(6)))
    ways = Ways()
    last = load(run=run, ways=ways)
    assert ways.num_finished == 0
    assert all(equal(result, last) for result in results)


def test_the_preprocessors_of_the_run_are_used_when_none_are_given(site: Path, tmp_path: Path) -> None:
    run = run_on(modalities=("vector",))
    encoders = {"vector": EncoderSettings(name="linear")}
    run = run.model_copy(update={"model": run.model.model_copy(update={"encoders": encoders})})
    samples = load_samples(site, run=run, cache=tmp_path / "cache")
    assert samples.inputs["vector"].shape == (6, 4)


def test_two_folders_with_one_cache_do_not_mix(site: Path, load: Callable[..., Samples]) -> None:
    first = load()
    whole_folder(site.parent / "other", num_rows=3)
    assert len(load(folder="other")) == 3
    ways = Ways()
    assert equal(load(ways=ways), first)
    assert ways.num_finished == 0
