"""Cache: sound values come back as they were stored; anything else counts as absent; nobody else may look."""

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from shared.cache import STALE_AFTER_S, FolderCache
from shared.errors import ConfigError
from shared.media import stamp_of


def digests(*names: str) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest() for name in names]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/a.npy").write_bytes(b"one")
    return (tmp_path / "site").resolve()


def opened(tmp_path: Path, folder: Path) -> FolderCache:
    return FolderCache(tmp_path / "cache", folder=folder)


def filled(tmp_path: Path, folder: Path, *, values: Tensor | None = None) -> Path:
    cache = opened(tmp_path, folder)
    values = torch.arange(12.0).reshape(3, 4) if values is None else values
    cache.store("image", key="k", digests=digests("a", "b", "c"), values=values, withdrawn=False)
    stamp = stamp_of(folder / "a.npy")
    assert stamp is not None
    cache.remember(folder / "a.npy", stamp=stamp, digest=digests("a")[0])
    cache.close(named=[folder / "a.npy"])
    return next((tmp_path / "cache").glob("*/image-*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bfloat16, torch.bool])
def test_values_come_back_bit_for_bit(tmp_path: Path, folder: Path, dtype: torch.dtype) -> None:
    values = (torch.arange(12).reshape(3, 2, 2) % 7).to(dtype)
    filled(tmp_path, folder, values=values)
    stored = opened(tmp_path, folder).stored("image", key="k")
    assert stored is not None
    assert stored.values.dtype == dtype
    assert torch.equal(stored.values, values)
    assert stored.positions == dict(zip(digests("a", "b", "c"), range(3), strict=True))


def test_what_is_stored_is_a_safetensors_file_as_others_read_it(tmp_path: Path, folder: Path) -> None:
    with safe_open(filled(tmp_path, folder), framework="pt") as file:
        assert file.metadata()["key"] == "k"
        assert torch.equal(file.get_tensor("values"), torch.arange(12.0).reshape(3, 4))
        assert file.get_tensor("digests").numpy().tobytes() == b"".join(digests("a", "b", "c"))


def test_values_of_a_type_without_a_name_are_not_stored_and_those_before_go(tmp_path: Path, folder: Path) -> None:
    path = filled(tmp_path, folder)
    cache = opened(tmp_path, folder)
    cache.store("image", key="k", digests=digests("a"), values=torch.zeros(1, dtype=torch.complex64), withdrawn=True)
    assert not path.exists()


def test_another_key_modality_or_folder_finds_nothing(tmp_path: Path, folder: Path) -> None:
    filled(tmp_path, folder)
    (tmp_path / "other").mkdir()
    assert opened(tmp_path, folder).stored("image", key="other") is None
    assert opened(tmp_path, folder).stored("audio", key="k") is None
    assert opened(tmp_path, tmp_path / "other").stored("image", key="k") is None


def test_no_damage_to_a_stored_file_goes_unseen(tmp_path: Path, folder: Path) -> None:
    path = filled(tmp_path, folder)
    sound = path.read_bytes()
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x55]) + sound[position + 1 :])
        stored = opened(tmp_path, folder).stored("image", key="k")
        # A flipped bit in the header's padding or in a name of no consequence leaves the values as they were.
        assert stored is None or torch.equal(stored.values, torch.arange(12.0).reshape(3, 4))
        path.write_bytes(sound[:position])
        assert opened(tmp_path, folder).stored("image", key="k") is None
    path.write_bytes(sound)
    assert opened(tmp_path, folder).stored("image", key="k") is not None


def test_a_file_is_known_until_its_size_or_time_changes(tmp_path: Path, folder: Path) -> None:
    filled(tmp_path, folder)
    path = folder / "a.npy"
    assert opened(tmp_path, folder).digest_of(path) == digests("a")[0]
    os.utime(path, ns=(0, 1_000))
    assert opened(tmp_path, folder).digest_of(path) is None
    assert opened(tmp_path, folder).digest_of(folder / "none.npy") is None


def test_a_file_changed_behind_the_same_size_and_time_is_noticed(tmp_path: Path, folder: Path) -> None:
    path = folder / "a.npy"
    os.utime(path, ns=(0, 1_000))
    filled(tmp_path, folder)
    time.sleep(0.02)  # past the tick of the file system's clock
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1_000))
    assert opened(tmp_path, folder).digest_of(path) is None


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"format": "x", "files": {}}', b'{"format": "motet-cache-1"}', b"[" * 99_999]
)
def test_a_damaged_index_counts_as_none(tmp_path: Path, folder: Path, damage: bytes) -> None:
    path = filled(tmp_path, folder).parent / "files.json"
    assert opened(tmp_path, folder).digest_of(folder / "a.npy") is not None
    path.write_bytes(damage)
    assert opened(tmp_path, folder).digest_of(folder / "a.npy") is None


def test_only_the_owner_may_enter(tmp_path: Path, folder: Path) -> None:
    before = os.umask(0)
    try:
        path = filled(tmp_path, folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    path.parent.chmod(0o755)
    opened(tmp_path, folder)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_half_written_is_left_or_read(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path, folder)

    def fail(path: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ConfigError, match="No space left on device"):
            filled(tmp_path, folder, values=torch.zeros(3, 4))
    stored = opened(tmp_path, folder).stored("image", key="k")
    assert stored is not None
    assert torch.equal(stored.values, torch.arange(12.0).reshape(3, 4))
    assert not list(path.parent.glob("*.tmp"))


def test_what_a_killed_process_left_is_swept_and_what_a_running_one_writes_is_not(tmp_path: Path, folder: Path) -> None:
    place = filled(tmp_path, folder).parent
    for name, age_s in (("old.tmp", STALE_AFTER_S + 60), ("new.tmp", 0)):
        (place / name).touch()
        os.utime(place / name, (time.time() - age_s,) * 2)
    opened(tmp_path, folder)
    assert not (place / "old.tmp").exists()
    assert (place / "new.tmp").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(ConfigError, match="cannot be used as a cache"):
        opened(tmp_path, folder)


def test_a_file_no_longer_named_is_forgotten_with_all_that_may_hold_it(tmp_path: Path, folder: Path) -> None:
    path = filled(tmp_path, folder)
    cache = opened(tmp_path, folder)
    cache.close(named=[folder / "a.npy"])
    assert path.exists()
    cache = opened(tmp_path, folder)
    cache.close(named=[])
    assert not path.exists()
    assert opened(tmp_path, folder).digest_of(folder / "a.npy") is None


def test_values_are_mapped_without_an_open_file_and_writing_to_them_changes_no_file(
    tmp_path: Path, folder: Path
) -> None:
    path = filled(tmp_path, folder)
    stored = opened(tmp_path, folder).stored("image", key="k")
    assert stored is not None
    assert str(path) in Path("/proc/self/maps").read_text()
    assert not any(file.exists() and file.samefile(path) for file in Path("/proc/self/fd").iterdir())
    before = path.read_bytes()
    stored.values.zero_()
    assert path.read_bytes() == before


def test_values_of_other_runs_leave_a_full_cache_first(tmp_path: Path, folder: Path) -> None:
    """Those that were used longest ago; what this run uses stays, however much it is."""
    values, rows = torch.zeros(3, 1000), digests("a", "b", "c")

    def run(key: str, most_bytes: int | None) -> set[str]:
        cache = opened(tmp_path, folder)
        if cache.stored("image", key=key) is None:
            cache.store("image", key=key, digests=rows, values=values, withdrawn=False)
        cache.close(named=[folder / "a.npy"], most_bytes=most_bytes)
        time.sleep(0.02)  # times of files, which tell which is older
        return {each for each in "pqrs" if opened(tmp_path, folder).stored("image", key=each) is not None}

    run("p", None)
    run("q", None)
    assert run("r", None) == {"p", "q", "r"}
    room_for_three = 3 * 13_000
    assert run("p", room_for_three) == {"p", "q", "r"}
    assert run("s", room_for_three) == {"p", "r", "s"}
    assert run("s", 1) == {"s"}
