"""An audit is of the weights that the run begins with, or of nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from server.checkpoint import save_model
from shared.batch import Samples
from shared.errors import RunError
from shared.model.multimodal import build_model
from simulations.audit import run as audit_run
from simulations.audit.alone import AuditedSite
from simulations.audit.canaries import CanaryModel
from simulations.audit.run import AuditPlan, audit_folder
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run
from tests.simulations.runs import scenario_file, simulate, skip_preflight
from tests.tiny import tiny_config


def test_an_audit_begins_with_what_the_run_begins_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three trainings sees the weights of the earlier run where the scenario takes them, and no others."""
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    fresh = build_model(tiny_config(private=True))
    earlier = {name: torch.full_like(value, 0.25) for name, value in fresh.named_parameters()}
    save_model(earlier, path=tmp_path / "earlier.safetensors", run_digest="another")
    start = {"path": str(tmp_path / "earlier.safetensors"), "parts": ["encoders.*"]}
    model = {**tiny_config(private=True).model.model_dump(exclude_none=True), "start": start}
    settings, data_set = read_scenario(
        scenario_file(tmp_path, private=True, changes={"model": model}), home=tmp_path / "home"
    )
    prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")
    seen: list[tuple[str, dict[str, torch.Tensor]]] = []

    def noting(_: AuditedSite, model: nn.Module, __: Samples, *, purpose: str, **___: object) -> list[None]:
        inner = model.model if isinstance(model, CanaryModel) else model
        seen.append((purpose, {name: value.detach().clone() for name, value in inner.named_parameters()}))
        return []

    monkeypatch.setattr(audit_run, "train_alone", noting)
    audit_folder(tmp_path / "run", how=AuditPlan(num_canaries=10))

    assert [purpose for purpose, _ in seen] == ["gradient", "input", "membership"]
    for _, weights in seen:
        for name, value in weights.items():
            expected = earlier[name] if name.startswith("encoders.") else dict(fresh.named_parameters())[name]
            assert torch.equal(value, expected), name


def test_an_audit_is_refused_once_what_the_run_began_with_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    path, numbers = tmp_path / "earlier.safetensors", dict(build_model(tiny_config(private=True)).named_parameters())
    save_model({name: value.detach() for name, value in numbers.items()}, path=path, run_digest="another")
    model = {**tiny_config(private=True).model.model_dump(exclude_none=True), "start": {"path": str(path)}}
    simulate(tmp_path, changes={"model": model})
    how = AuditPlan(num_canaries=10)
    assert audit_folder(tmp_path / "run", how=how).site == "north"

    save_model({name: value.detach() + 1 for name, value in numbers.items()}, path=path, run_digest="another")
    with pytest.raises(RunError, match=r"began with a model\.start whose SHA-256 is"):
        audit_folder(tmp_path / "run", how=how)
