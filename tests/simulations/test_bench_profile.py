"""Tests of the profile: its stages are functions that a round calls, its shares are of the whole."""

from unittest import mock

import pytest
import torch

from shared.errors import RunError
from simulations.bench import profile
from tests.simulations.runs import skip_preflight


def test_the_stages_of_a_round_are_all_called_and_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_preflight(monkeypatch)
    monkeypatch.setenv("MOTET_HOME", "")
    shares = profile.stages("mlp", sites=3, rounds=4)
    assert list(shares) == [*profile.STAGES, "the rest"]
    assert all(0 <= share < 1 for share in shares.values())
    assert shares["training"] > 0.02
    assert sum(shares.values()) == pytest.approx(1)


def test_a_stage_whose_name_is_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_preflight(monkeypatch)
    monkeypatch.setenv("MOTET_HOME", "")
    old = {"gone": ("client/gone.py", "gone")}
    with mock.patch.object(profile, "STAGES", old), pytest.raises(RunError, match="gone"):
        profile.stages("mlp", sites=3, rounds=4)


def test_operators_are_shares_of_the_job() -> None:
    left = torch.randn(300, 300)
    shares = profile.operators(lambda: left @ left)
    assert sum(shares.values()) == pytest.approx(1)
    # which of them is largest follows from how busy the machine is
    assert 0 < shares["aten::mm"] < 1
