"""Held memory: what a run in this process asks of the C library and of the garbage collector."""

import gc
import platform

import pytest

from simulations.engine.held_memory import keep_freed_memory, without_what_is_there


def test_garbage_collection_leaves_out_what_was_there_until_the_end() -> None:
    before = gc.get_freeze_count()
    with without_what_is_there():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0


def test_what_was_there_is_collected_again_after_an_error() -> None:
    with pytest.raises(RuntimeError), without_what_is_there():
        raise RuntimeError
    assert gc.get_freeze_count() == 0


def test_glibc_takes_every_setting() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_nothing_is_asked_of_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
