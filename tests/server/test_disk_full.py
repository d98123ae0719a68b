"""A full disk at the server: the run ends with one clear error, and goes on after the last round that is whole."""

from pathlib import Path

import pytest
import torch

from server.checkpoint import load_progress
from server.history import METRICS_FILE
from server.settings import write_atomically
from shared.errors import RunError
from tests.no_space import no_space_beyond
from tests.server import conftest
from tests.server.conftest import CallTransport, small_run

SITES = {"north": ("left", "right"), "south": ("left", "right")}


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    with no_space_beyond(100), pytest.raises(RunError, match=r"state\.json: cannot be written: File too large"):
        write_atomically(path, bytes(200))
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"state.json": b"old"}


@pytest.mark.parametrize(
    ("room", "kept_rounds"), [(0, 2), (300, 2), (1000, 3)], ids=["nothing", "a line cut short", "one more round"]
)
def test_a_run_whose_disk_was_full_ends_with_the_model_of_one_whose_disk_was_not(
    tmp_path: Path, room: int, kept_rounds: int
) -> None:
    run = small_run(rounds=4)
    whole = conftest.train(run, tmp_path / "whole", transport=CallTransport(run, SITES))
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        conftest.train(run, folder, transport=CallTransport(run, SITES), stop_after=2)
    # a line of metrics.jsonl is over 300 bytes here and under 1,000
    size = (folder / METRICS_FILE).stat().st_size if room else 0
    with no_space_beyond(size + room), pytest.raises(RunError, match="Make room, and start the run again"):
        conftest.train(run, folder, transport=CallTransport(run, SITES), attempt=1)
    kept = load_progress(folder=folder, run_digest=run.digest)
    assert kept is not None
    assert kept.round_number == kept_rounds
    progress = conftest.train(run, folder, transport=CallTransport(run, SITES), attempt=2)
    assert [record.round for record in progress.history] == [1, 2, 3, 4]
    assert all(torch.equal(progress.weights[name], value) for name, value in whole.weights.items())
    assert not list(folder.rglob("*.part"))
