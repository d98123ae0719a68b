"""TensorBoard events: what was written can be read back."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from server.tensorboard import EventWriter, round_scalars
from tests.server.made_records import build_record


def test_every_scalar_of_every_round_is_read_back(tmp_path: Path) -> None:
    rounds = build_record(rounds=4).rounds
    with EventWriter(tmp_path) as events:
        for entry in rounds:
            events.write(entry)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()

    assert set(found.Tags()["scalars"]) == set(round_scalars(rounds[0]))
    assert [event.step for event in found.Scalars("validation/macro_f1")] == [1, 2, 3, 4]
    for entry, event in zip(rounds, found.Scalars("privacy/epsilon_highest"), strict=True):
        assert event.value == pytest.approx(max(site.epsilon or 0.0 for site in entry.sites))


def test_a_round_is_on_disk_before_the_next_one(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as events:
        events.write(build_record(rounds=1).rounds[0])
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        assert found.Scalars("sites/used")[0].value == 6


def test_a_run_without_privacy_has_no_epsilon_and_a_round_without_scores_no_validation() -> None:
    entry = build_record(rounds=1, private=False).rounds[0]
    tags = set(round_scalars(entry.model_copy(update={"validation": None, "update_norm": None})))
    assert tags == {"round/seconds", "sites/asked", "sites/used"}


def test_no_round_writes_nothing_and_loads_nothing(tmp_path: Path) -> None:
    with EventWriter(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    program = "import sys, server.tensorboard; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
