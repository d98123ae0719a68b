"""Fixtures of sites that are asked in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client import agent
from client.sample_store import SampleStore


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No samples are kept from an earlier test; the preflight, seconds each, is looked at in test_preflight.py."""
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    """An empty store of samples."""
    with SampleStore(tmp_path / "store") as opened:
        yield opened
