"""Fixtures for the tests of data folders."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples
from tests.shared.dataset_samples import Way, Ways, run_on
from tests.shared.media_samples import whole_folder


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Samples]:
    """Loads a folder under the test's directory with counting preprocessors and one cache."""

    def load(
        *,
        run: RunConfig | None = None,
        ways: dict[str, Way] | None = None,
        modalities: tuple[str, ...] | None = None,
        folder: str = "site",
    ) -> Samples:
        return load_samples(
            tmp_path / folder,
            run=run_on() if run is None else run,
            cache=tmp_path / "cache",
            modalities=modalities,
            preprocessors=Ways() if ways is None else ways,
        )

    return load


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A sound folder of six rows and all five kinds."""
    whole_folder(tmp_path / "site")
    return tmp_path / "site"
