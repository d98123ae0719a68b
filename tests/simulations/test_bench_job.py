"""Tests of the common job: Motet's model, data and steps are those of its peers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.gradient.plain import PlainEngine
from shared.batch import Batch
from shared.dataset import load_samples
from shared.errors import PrivacyError
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.registry import load_extensions
from shared.privacy.mechanism import Clip
from simulations.bench import motet_job
from simulations.bench.benchmarks import BENCHMARKS
from simulations.bench.harness import Plan
from simulations.bench.models import RECIPES, model_of, random_samples
from simulations.bench.peers import job
from simulations.bench.step import MOTET, OPACUS, motet_update, must_agree, preparing

NAMES = {
    "mlp": {"encoders.picture.linear": "hidden", "head.linear": "out"},
    "cnn": {
        "encoders.picture.first": "first",
        "encoders.picture.second": "second",
        "encoders.picture.hidden": "hidden",
        "head.linear": "out",
    },
}


def both(name: str) -> tuple[MultimodalModel, nn.Module]:
    """Motet's model and the peers', with the same weights."""
    load_extensions(motet_job.PARTS)
    ours = build_model(motet_job.run_config(name, rounds=2, private=False, sites=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = job.make_model(name)
    weights = theirs.state_dict()
    ours.load_state_dict({key: weights[peer_key(name, key)] for key in ours.state_dict()})
    return ours, theirs


def peer_key(name: str, key: str) -> str:
    layer, kind = key.rsplit(".", 1)
    return f"{NAMES[name][layer]}.{kind}"


@pytest.mark.parametrize(("name", "weights"), [("mlp", 58_840), ("cnn", 60_088)])
def test_motets_model_of_the_common_job_is_the_peers(name: str, weights: int) -> None:
    ours, theirs = both(name)
    pictures, labels = job.data(1)
    rows, classes = pictures[0, :10], labels[0, :10]
    batch = Batch(inputs={"picture": rows.flatten(1)}, present=torch.ones(10, 1, dtype=torch.bool), targets=classes)
    names = tuple(key for key, _ in ours.named_parameters())
    sums = PlainEngine().clipped_sum(ours, batch, names=names, clip=Clip(float("inf"))).sums
    nn.functional.cross_entropy(theirs(rows), classes).backward()  # type: ignore[no-untyped-call]

    assert sum(value.numel() for value in sums.values()) == weights
    for key in names:
        wanted = theirs.get_parameter(peer_key(name, key)).grad
        assert wanted is not None
        torch.testing.assert_close(sums[key] / 10, wanted, rtol=1e-5, atol=1e-7)


def test_sites_beyond_the_clients_have_their_records_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "CLIENTS", 2)
    data = motet_job.write_data_set(tmp_path / "data", sites=3)
    pictures, labels = job.data()
    run = motet_job.run_config("mlp", rounds=2, private=False, sites=3)
    for site, client in ((0, 0), (1, 1), (2, 0)):
        samples = load_samples(data / "sites" / f"site-{site:05d}", run=run, cache=tmp_path / "cache")

        assert torch.equal(samples.inputs["picture"], pictures[client].flatten(1))
        assert torch.equal(samples.targets, labels[client])
    first, again = (data / "sites" / f"site-{site:05d}" / "picture" / "00.npy" for site in (0, 2))
    assert first.samefile(again)
    assert np.load(first).shape == (784,)


def test_a_whole_run_of_the_common_job_is_timed_by_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path))
    monkeypatch.setenv("MOTET_RUN_FOLDER", "")
    monkeypatch.setattr(job, "CLIENTS", 2)
    data = motet_job.write_data_set(tmp_path / "data", sites=2)
    motet_job.main([str(data), "--model", "mlp", "--rounds", "3", "--engine", "local"])

    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT ")]
    told = json.loads(line.removeprefix("RESULT "))
    assert len(told["wall_s"]) == 1
    assert told["numbers"]["sites"] == 2


def test_the_private_job_asks_for_the_peers_noise() -> None:
    from shared.privacy.accountant import calibrate_noise

    privacy = motet_job.run_config("mlp", rounds=20, private=True, sites=100).central_privacy

    assert privacy is not None
    assert privacy.clip_norm == job.CLIP_NORM
    noise = calibrate_noise(
        epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=1.0, steps=20, accountant=privacy.accountant
    )
    assert noise == pytest.approx(job.NOISE_MULTIPLIER, rel=0.01)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_model_of_the_benchmarks_takes_its_random_samples(name: str) -> None:
    samples, model = random_samples(name, rows=3), model_of(name)

    loss = model.loss(model(samples.inputs, samples.present), samples.targets)
    assert loss.isfinite().all()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", [*OPACUS, *MOTET])
def test_every_private_contender_of_a_step_is_checked_before_it_is_timed(name: str) -> None:
    """Preparing raises where the update is not that of one backward pass a sample."""
    preparing("head-256", batch=9)[name]()()


def test_a_contender_with_a_wrong_update_gets_no_time() -> None:
    model, samples = model_of("head-256"), random_samples("head-256", rows=8)
    right = motet_update("reference", model, samples, noise=0.0, steps=1)
    must_agree(right, model, samples)

    with pytest.raises(PrivacyError, match="wrong update"):
        must_agree({key: value * 1.01 for key, value in right.items()}, model, samples)
    with pytest.raises(PrivacyError, match="wrong update"):
        must_agree({key: torch.full_like(value, torch.nan) for key, value in right.items()}, model, samples)


def test_peers_without_an_environment_are_told_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "CLIENTS", 1)
    plan = Plan(work=tmp_path, peers=tmp_path / "none", quick=True)
    cases = BENCHMARKS["rounds"].cases(plan)

    told = {name: each.missing for case in cases for each in case.programs for name in each.contenders}
    assert {name for name, why in told.items() if why} == {
        "pfl",
        "pfl, two processes",
        "BlazeFL",
        "BlazeFL, two threads",
        "fluke",
        "Flower, Ray",
    }
    for case in cases:
        known = {name for each in case.programs for name in each.contenders}
        assert all({goal.contender, *goal.against} <= known for goal in case.goals)


@pytest.mark.parametrize("name", ["step", "cohort", "noise", "ledger", "report", "startup"])
def test_goals_name_contenders_that_there_are(name: str, tmp_path: Path) -> None:
    for case in BENCHMARKS[name].cases(Plan(work=tmp_path, peers=tmp_path, quick=True)):
        known = {each for program in case.programs for each in program.contenders}
        assert all({goal.contender, *goal.against} <= known for goal in case.goals)
