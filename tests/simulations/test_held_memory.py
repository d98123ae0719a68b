"""Held memory: what a run in this process asks of the C library and of the garbage collector."""

import gc
import platform
import subprocess
import sys

import pytest

from simulations.engine.held_memory import keep_freed_memory, without_search, without_what_is_there


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


def test_imports_are_not_searched_for_garbage_and_what_comes_later_is() -> None:
    try:
        with without_search():
            assert not gc.isenabled()
            kept: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()


def test_whoever_searches_for_no_garbage_is_left_alone() -> None:
    gc.disable()
    try:
        with without_search():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_run_starts_without_what_makes_its_pages() -> None:
    code = "import sys, server.app; print(*({'jinja2', 'tensorboard'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
