"""An audit of a matching: canaries are mismatched pairs, told from the run's own public negatives."""

import math
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from simulations.audit import run as audit_run
from simulations.audit.alone import AuditedSite
from simulations.audit.canaries import mislabelled
from simulations.audit.run import AuditPlan, audit_folder, is_alarm
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run
from tests.simulations.matching_runs import matching_run, write_matching_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared private run of matching."""
    data = write_matching_data(tmp_path / "data", held_out_items=30)
    run = {key: value for key, value in matching_run(private=True).items() if key != "data"}
    table = {"about": "Pairs, for tests.", "source": {"path": str(data)}, "run": run}
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    settings, data_set = read_scenario(path, home=tmp_path / "home")
    prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")
    return tmp_path / "run"


def test_a_matching_is_audited_from_its_own_negatives_and_with_pairs_that_are_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AuditedSite] = []
    attack = audit_run.attack_site

    def noting(audited: AuditedSite, *, how: AuditPlan) -> object:
        seen.append(audited)
        return attack(audited, how=how)

    monkeypatch.setattr(audit_run, "attack_site", noting)
    audit = audit_folder(folder, how=AuditPlan(num_canaries=60))
    (audited,) = seen
    negatives = audited.first_model().get_buffer("fusion.negatives")
    assert float(negatives.norm(dim=2).min()) > 0
    assert all(math.isfinite(each.lower_bound) for each in audit.attacks)
    assert not is_alarm(audit)

    canaries = mislabelled(audited.strangers, data=audited.run.data, num=40, generator=np.random.default_rng(0))
    # of rows that belong together the second vector is the first one turned round; of none of these
    turned = canaries.inputs["left"].roll(1, dims=1)
    assert float((canaries.inputs["right"] - turned).norm(dim=1).min()) > 0.1
    of_strangers = audited.strangers.inputs["right"]
    assert all(bool((of_strangers == row).all(dim=1).any()) for row in canaries.inputs["right"])
