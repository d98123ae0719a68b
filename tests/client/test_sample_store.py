"""Sample store: rows come back as they went in, nobody else can reach them, and memory does not grow with the sites."""

import os
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.sample_store import STALE_AFTER_S, PackedSamples, SampleStore
from shared.batch import Samples
from shared.errors import ConfigError

DTYPES = (torch.float32, torch.int64, torch.uint8, torch.bfloat16, torch.bool)


@dataclass(frozen=True)
class Shape:
    """What a drawn site looks like."""

    num_rows: int
    width: int
    dtype: torch.dtype
    is_blank: bool
    num_subjects: int


shapes = st.builds(
    Shape,
    num_rows=st.integers(0, 9),
    width=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    is_blank=st.booleans(),
    num_subjects=st.integers(1, 4),
)


def site(seed: int, shape: Shape) -> Samples:
    generator, n = torch.Generator().manual_seed(seed), shape.num_rows
    words = torch.zeros(1, 2, 2).expand(n, 2, 2) if shape.is_blank else torch.randn(n, 2, 2, generator=generator)
    subjects = torch.randint(0, shape.num_subjects, (n,), generator=generator).tolist()
    return Samples(
        inputs={
            "sound": torch.randint(0, 5, (n, shape.width), generator=generator).to(shape.dtype),
            "words": words,
        },
        present=torch.tensor([[True, not shape.is_blank]]).expand(n, 2),
        targets=torch.randint(0, 9, (n,), generator=generator),
        subjects=tuple(f"person {number}" for number in subjects),
        groups={"room": ("a",) * n},
    )


def same(packed: PackedSamples, samples: Samples) -> bool:
    """Everything that training looks at is equal, row for row, through the site's own views and through the pack."""
    rows = torch.arange(packed.first_row, packed.first_row + len(samples))
    gathered = packed.pack.take(rows)
    return (
        all(
            torch.equal(either[name], samples.inputs[name])
            for name in samples.inputs
            for either in (packed.inputs, gathered.inputs)
        )
        and packed.inputs.keys() == samples.inputs.keys() == packed.pack.inputs.keys()
        and all(torch.equal(each.present, samples.present) for each in (packed, gathered))
        and all(torch.equal(each.targets, samples.targets) for each in (packed, gathered))
        and len(packed) == len(samples)
        and (packed.numbers_a_row, packed.input_bytes) == (samples.numbers_a_row, samples.input_bytes)
        and len(packed.rows_of_subjects) == len(samples.rows_of_subjects)
        and all(map(torch.equal, packed.rows_of_subjects, samples.rows_of_subjects))
    )


def open_rows(folder: Path) -> dict[Path, str]:
    """Open descriptors of this process's segments in a folder -> the file behind each."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            if ".rows" in (name := str(path.readlink())) and name.startswith(str(folder)):
                found[path] = name
    return found


@settings(max_examples=60, deadline=None)
@given(sites=st.lists(shapes, min_size=1, max_size=12), segment_rows=st.integers(1, 12))
def test_rows_come_back_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, sites: list[Shape], segment_rows: int
) -> None:
    with SampleStore(tmp_path_factory.mktemp("rows"), segment_bytes=segment_rows * 40) as store:
        put = {key: site(key, shape) for key, shape in enumerate(sites)}
        for key, samples in put.items():
            assert same(store.put(key, samples), samples)
        store.relieve()
        for key, samples in put.items():
            got = store.get(key)
            assert got is not None
            assert same(got, samples)
        assert store.get("nobody") is None


def test_a_key_put_anew_has_the_new_rows(tmp_path: Path) -> None:
    old, new = (site(seed, Shape(4, 2, torch.float32, False, 2)) for seed in (1, 2))
    with SampleStore(tmp_path / "rows") as store:
        store.put("a", old)
        store.put("a", new)
        got = store.get("a")
    assert got is not None
    assert same(got, new)


def test_sites_alike_share_a_segment_and_others_do_not(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "rows") as store:
        first, second, other, lacking = (
            store.put(number, site(number, shape))
            for number, shape in enumerate(
                [
                    Shape(4, 2, torch.float32, False, 2),
                    Shape(9, 2, torch.float32, False, 2),
                    Shape(4, 3, torch.float32, False, 2),
                    Shape(4, 2, torch.float32, True, 2),
                ]
            )
        )
    assert first.pack is second.pack
    assert (first.first_row, second.first_row) == (0, 4)
    assert len({id(each.pack) for each in (first, other, lacking)}) == 3


def test_a_site_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "rows", segment_bytes=40 * 6) as store:
        small, large, small_again = (
            store.put(rows, site(rows, Shape(rows, 2, torch.float32, False, 2))) for rows in (2, 9, 1)
        )
    assert len(large.pack) == 9
    assert small.pack is small_again.pack
    assert small_again.first_row == 2


def test_a_modality_that_a_site_lacks_takes_no_room(tmp_path: Path) -> None:
    """Room for a hundred rows of what there is; with the absent modality written out it would be for three."""
    wide = torch.zeros(1, 2000).expand(5, 2000)
    samples = Samples(
        inputs={"sound": torch.ones(5, 12), "words": wide},
        present=torch.tensor([[True, False]]).expand(5, 2),
        targets=torch.zeros(5),
        subjects=("a",) * 5,
        groups={},
    )
    with SampleStore(tmp_path / "rows", segment_bytes=100 * (48 + 2 + 4 + 4)) as store:
        packed = store.put("a", samples)
    assert len(packed.pack) == 100
    assert packed.inputs["words"].stride(0) == 0
    assert not packed.inputs["words"].any()


def test_a_thousand_sites_open_one_file(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "rows") as store:
        kept = [store.put(number, site(number, Shape(3, 2, torch.float32, False, 2))) for number in range(1000)]
        assert len(set(open_rows(tmp_path).values())) == 1
        assert len({id(each.pack) for each in kept}) == 1


def test_a_full_segment_is_open_only_as_a_map(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "rows", segment_bytes=40 * 4) as store:
        kept = [store.put(number, site(number, Shape(3, 2, torch.float32, False, 2))) for number in range(20)]
        assert len({id(each.pack) for each in kept}) == 20
        assert len(open_rows(tmp_path)) == 20 + 1
    del kept
    assert not open_rows(tmp_path)


def test_threads_find_their_own_rows(tmp_path: Path) -> None:
    wrong: list[int] = []

    def work(store: SampleStore, keys: range) -> None:
        for key in keys:
            samples = site(key, Shape(1 + key % 7, 2, torch.float32, key % 3 == 0, 3))
            store.put(key, samples)
            store.relieve()
            got = store.get(key)
            if got is None or not same(got, samples):
                wrong.append(key)

    with SampleStore(tmp_path / "rows", segment_bytes=40 * 50) as store:
        threads = [threading.Thread(target=work, args=(store, range(start, 400, 4))) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert all(store.get(key) is not None for key in range(400))


def test_only_the_owner_may_enter_the_folder(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with SampleStore(tmp_path / "rows") as store:
            store.put("a", site(0, Shape(3, 2, torch.float32, False, 2)))
            assert stat.S_IMODE((tmp_path / "rows").stat().st_mode) == 0o700
            assert {stat.S_IMODE(path.stat().st_mode) for path in open_rows(tmp_path)} == {0o600}
    finally:
        os.umask(before)


def test_names_of_subjects_are_not_stored(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "rows") as store:
        samples = site(0, Shape(6, 2, torch.float32, False, 3))
        packed = store.put("a", samples)
        assert set(packed.subjects) == {"0", "1", "2"}
        assert packed.groups == {}
        stored = next(iter(open_rows(tmp_path))).read_bytes()
    assert samples.targets.numpy().tobytes() in stored
    assert b"person" not in stored


def run_child(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=here, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_killed_process_leaves_no_row_behind(tmp_path: Path) -> None:
    script = """
import os, signal, sys, torch
from pathlib import Path
from client.sample_store import SampleStore
from shared.batch import Samples
store = SampleStore(Path(sys.argv[1]))
kept = store.put("a", Samples(inputs={"x": torch.ones(9, 3)}, present=torch.ones(9, 1, dtype=torch.bool),
                              targets=torch.ones(9), subjects=("a",) * 9, groups={}))
assert kept.inputs["x"].sum() == 27
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_child(script, str(tmp_path / "rows")).returncode == -9
    assert (tmp_path / "rows").is_dir()
    assert list((tmp_path / "rows").iterdir()) == []


def test_an_empty_file_of_a_killed_process_is_swept_and_one_being_made_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, age_s in (("old.rows", STALE_AFTER_S + 60), ("new.rows", 0), ("old.txt", STALE_AFTER_S + 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age_s,) * 2)
    SampleStore(folder).close()
    assert {path.name for path in folder.iterdir()} == {"new.rows", "old.txt"}


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"a file")
    with pytest.raises(ConfigError, match=r"rows: cannot hold the sites' samples"):
        SampleStore(tmp_path / "rows")


def test_a_full_disk_is_an_error_and_no_dead_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with SampleStore(tmp_path / "rows") as store:
        good = site(0, Shape(3, 2, torch.float32, False, 2))
        store.put("good", good)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(ConfigError, match="No space left on device"):
                store.put("bad", site(1, Shape(3, 2, torch.float32, False, 2)))
        assert store.get("bad") is None
        got = store.get("good")
        assert got is not None
        assert same(got, good)


def test_samples_outlive_the_store_and_keys_do_not(tmp_path: Path) -> None:
    samples = site(0, Shape(3, 2, torch.float32, False, 2))
    with SampleStore(tmp_path / "rows") as store:
        packed = store.put("a", samples)
    assert store.get("a") is None
    assert same(packed, samples)
    with pytest.raises(AssertionError, match="closed"):
        store.put("a", samples)


def test_memory_after_ten_times_the_sites_is_the_same(tmp_path: Path) -> None:
    """Sites of 16 KB, 200 of them and 2,000: 32 MB are read, and hardly any of it stays."""
    script = """
import os, sys, torch
from pathlib import Path
from client.sample_store import SampleStore
from shared.batch import Samples

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

inputs = torch.arange(4 * 1024.0).reshape(4, 1024)
site = Samples(inputs={"x": inputs}, present=torch.ones(4, 1, dtype=torch.bool), targets=torch.ones(4),
               subjects=("a", "a", "b", "c"), groups={})
store, before = SampleStore(Path(sys.argv[1])), None
for start, stop in ((0, 200), (200, 2000)):
    for key in range(start, stop):
        store.put(key, site)
    total = sum(float(store.get(key).inputs["x"].sum()) for key in range(stop))
    assert total == stop * float(inputs.sum())
    touched = resident_mb()
    store.relieve()
    print(touched, resident_mb())
"""
    child = run_child(script, str(tmp_path / "rows"))
    assert child.returncode == 0, child.stderr
    (_, few), (touched, many) = (tuple(map(float, line.split())) for line in child.stdout.splitlines())
    assert touched - many > 25
    assert abs(many - few) < 6
