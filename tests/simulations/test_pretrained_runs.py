"""Runs that adapt a network from a folder: additions travel, its own weights do not, and owners decide on the folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.permission import permit
from client.site import SiteConfig, read_site
from shared.errors import PermissionRefused
from shared.model.multimodal import build_model
from shared.model.parameters import trainable_names
from shared.preprocess.pretrained import local_checkpoint
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.shared.pretrained_folders import encoder_table, pretrained_folder
from tests.simulations.runs import model_of, skip_preflight, toml
from tests.tiny import PRIVACY, tiny_run

WORDS = {"a": ("good", "joy", "sunny"), "b": ("bad", "rain", "again")}
CONTENT: dict[str, object] = {"task": "single-label", "labels": ["a", "b"], "modalities": {"words": {"kind": "text"}}}


def write_texts(folder: Path, *, rows: int, seed: int) -> None:
    """Texts whose words tell their class."""
    draws, lines = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for row in range(rows):
        label = ("a", "b")[row % 2]
        text = " ".join(draws.choice(WORDS[label], size=3))
        lines.append(json.dumps({"label": label, "subject_id": f"{folder.name}-{row}", "words": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def scenario(folder: Path, *, private: bool) -> Path:
    """Two sites with texts, and a run that adapts a tiny random BERT to them."""
    for number, name in enumerate(("sites/north", "sites/south", "held-out/validation", "held-out/test")):
        write_texts(folder / "data" / name, rows=12, seed=number)
    card = [
        'title = "Texts"',
        "generated = true",
        'licence = "CC0 1.0"',
        'citation = "none"',
        'source = "made in a test"',
    ]
    (folder / "data" / "dataset.toml").write_text("\n".join([*card, *toml("content", CONTENT)]), encoding="utf-8")
    network = pretrained_folder(folder / "network", kind="bert")
    encoders = {
        name: {**{key: value for key, value in table.items() if value is not None}, "lora": {"rank": 2, "alpha": 4.0}}
        for name, table in encoder_table(network, kind="bert", mode="lora").items()
    }
    model = {"embedding_width": 6, "encoders": encoders, "fusion": {"name": "concat"}}
    run = tiny_run(private=private, data=CONTENT, model=model, federation={"rounds": 2, "select": "last"})
    if private:
        run["privacy"] = {**PRIVACY, "delta": 1e-2}
    owners = ["[owners]", "reproducible_noise = true"] if private else []
    path = folder / "scenario.toml"
    lines = ['about = "test"', "[source]", 'path = "data"', *owners, *toml("run", run)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("private", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_adapted_network_is_the_same_by_either_engine_and_only_its_additions_travel(
    private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise, and with noise that a seed gives back."""
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    settings, data_set = read_scenario(scenario(tmp_path, private=private), home=tmp_path / "home")
    for engine in ("local", "cohort"):
        prepare_run(settings, data_set=data_set, folder=tmp_path / engine, engine=engine)
        run_simulation(tmp_path / engine)

    local, cohort = (model_of(tmp_path / engine) for engine in ("local", "cohort"))
    for name, value in local.items():
        torch.testing.assert_close(cohort[name], value, rtol=1e-5, atol=1e-6)
    begun = build_model(settings.run)
    assert set(local) == set(cohort) == set(trainable_names(begun, ("words",)))
    additions = [name for name in local if ".lora_" in name]
    assert len(additions) == 8
    assert not any(".base_layer." in name or name.endswith("word_embeddings.weight") for name in local)
    for name in additions:
        assert not torch.equal(local[name], begun.get_parameter(name))


def test_an_owner_permits_a_network_by_listing_its_folder_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    settings, data_set = read_scenario(scenario(tmp_path, private=True), home=tmp_path / "home")
    prepared = prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local").run
    site = read_site(tmp_path / "run" / "sites" / "north.toml")
    assert permit(prepared, site=site).modalities == ("words",)
    assert local_checkpoint(tmp_path / "network").path in site.checkpoints

    said = prepared.model.encoders["words"].options
    assert said["weights_digest"] == local_checkpoint(tmp_path / "network").digest
    for folders in ((), (tmp_path / "run",), (tmp_path,)):
        other = SiteConfig.model_validate({**dict(site), "checkpoints": folders})
        with pytest.raises(PermissionRefused, match="allowed: those the owner lists in checkpoints"):
            permit(prepared, site=other)
