"""What is kept of the owner's files: nothing that may be out of date."""

import os
import time
from pathlib import Path

import pytest

from client.site import read_site
from client.unchanged import SETTLED_S, Unchanged
from shared.errors import ConfigError
from tests.client.asking import site_file


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file had been written long ago: a change of times is one of them, so it is the clock that is moved."""
    now = time.time()
    monkeypatch.setattr("client.unchanged.time.time", lambda: now + SETTLED_S + 1)
    assert path.stat().st_ctime <= now


def test_a_file_that_stays_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []
    path.write_text("one", encoding="utf-8")
    settled(path, monkeypatch)

    def read(path: Path) -> str:
        seen.append(path.read_text(encoding="utf-8"))
        return seen[-1]

    kept = Unchanged(read)
    assert [kept(path) for _ in range(3)] == ["one"] * 3
    assert seen == ["one"]
    path.write_text("two", encoding="utf-8")
    assert [kept(path), kept(path)] == ["two", "two"]


def test_settings_that_were_just_written_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice within what a file system's clock tells apart, of the same length: the owner's last word counts."""
    path = tmp_path / "file"
    path.write_text("yes", encoding="utf-8")
    stamp = path.stat()
    monkeypatch.setattr("client.unchanged.os.stat", lambda *_, **__: stamp)
    kept = Unchanged(lambda path: path.read_text(encoding="utf-8"))
    for word in ("yes", "no!"):
        path.write_text(word, encoding="utf-8")
        assert kept(path) == word


def test_a_file_put_in_the_place_of_another_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_text("one", encoding="utf-8")
    kept = Unchanged(lambda path: path.read_text(encoding="utf-8"))
    settled(path, monkeypatch)
    assert kept(path) == "one"
    other.write_text("two", encoding="utf-8")
    stamp = path.stat()
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(path)
    assert kept(path) == "two"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        kept(path)


def test_settings_are_kept_while_their_file_stays_and_their_data_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_file(tmp_path)
    settled(path, monkeypatch)
    assert read_site(path) is read_site(path)
    before = read_site(path).privacy.epsilon
    site_file(tmp_path, epsilon=before / 2)
    assert read_site(path).privacy.epsilon == before / 2
    (tmp_path / "data").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="no folder"):
        read_site(path)
