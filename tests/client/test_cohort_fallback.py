"""A cohort whose model turns out, in the pass itself, not to be one for a single pass: its sites are trained alone."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client import cohort
from client.sample_store import SampleStore
from shared.messages import TrainReply
from shared.model.multimodal import MultimodalModel
from tests.client.test_cohort import add_sites, answered, asked_of, one_by_one


def test_sites_of_a_model_that_cannot_share_a_pass_are_trained_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = MultimodalModel.forward

    def scaled(self: MultimodalModel, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        weight = next(parameter for parameter in self.parameters() if parameter.requires_grad)
        return original(self, inputs, present) * (1 + weight.mean())

    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)
    monkeypatch.setattr(MultimodalModel, "forward", scaled)
    monkeypatch.setattr(cohort, "_told", set())
    with SampleStore(tmp_path / "store") as store, caplog.at_level(logging.INFO, logger="motet.site"):
        found = answered(asked_of(add_sites(tmp_path / "one", num=3)), store=store)
    wanted = one_by_one(asked_of(add_sites(tmp_path / "two", num=3)))

    assert len(found) == len(wanted) == 3
    for each, other in zip(found, wanted, strict=True):
        assert isinstance(each, TrainReply)
        assert isinstance(other, TrainReply)
        assert each.header == other.header
        assert all(torch.equal(each.update[name], other.update[name]) for name in other.update)
    told = [record.message for record in caplog.records if "one by one" in record.message]
    assert len(told) == 1
    assert "3 sites are trained one by one: parameters" in told[0]
