"""Attacks on the training code: what they plant, what they see in honest and in broken code, and what is said of it.

An audit gives a false alarm in at most one of twenty runs. All runs here have fixed seeds, so theirs are drawn once.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn
from typer.testing import CliRunner

from client.gradient import choose_engine
from client.site import SiteConfig, read_site
from motet import app
from server.records import Audit, AuditAttack
from shared.batch import Samples
from shared.dataset import load_samples
from shared.errors import ConfigError, PermissionRefused, RunError
from shared.model.multimodal import build_model
from shared.model.parameters import trainable_names
from shared.privacy.mechanism import Clip
from shared.schema import DataSchema
from shared.settings import parse_settings
from simulations.audit import run as audit_run
from simulations.audit.alone import AuditedSite, audited_site, train_alone
from simulations.audit.canaries import MARK, STRENGTH, CanaryModel, mislabelled, with_gradient_canaries
from simulations.audit.membership import rows_of_units
from simulations.audit.run import AuditPlan, attack_site, audit_folder, gradient_canaries, gradient_scores, is_alarm
from simulations.audit.show import sentences
from simulations.planted_faults import planted
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run
from tests.simulations.runs import scenario_file
from tests.tiny import tiny_config, write_data_set

ALL_AT_ONCE = {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 1}
SAMPLED = {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 0.5, "local_steps": 2}
PRIVACY = {"unit": "record", "trust": "nobody", "epsilon": 1.0, "delta": 1e-6, "clip_norm": 0.7}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("audit") / "data", rows_per_subject=4)


def site_of(
    data: Path,
    *,
    unit: str = "record",
    noise: str = "float64",
    training: dict[str, object] | None = None,
    rounds: int = 4,
    **privacy: object,
) -> AuditedSite:
    """North of the tiny data set, where 10 subjects have 4 records each."""
    run = tiny_config(
        private=True,
        training=training or ALL_AT_ONCE,
        privacy={**PRIVACY, "unit": unit, **privacy},
        federation={"rounds": rounds},
    )
    table = {
        "name": "north",
        "data": data / "sites" / "north",
        "data_set": "north",
        "nominal_size": 40,
        "nominal_subjects": 10,
        "modalities": ("left", "right"),
        "ledger": data / "never.sqlite",
        "cache": data.parent / "cache",
        "privacy": {"epsilon": 100.0, "delta": 1e-3, "unit": unit, "noise": noise},
    }
    site = parse_settings(SiteConfig, table, place="test")
    strangers = load_samples(data / "held-out" / "test", run=run, cache=site.cache)
    return audited_site(run, site, sites=("north",), strangers=strangers)


def alarmed(audited: AuditedSite, *, num_canaries: int = 1000) -> bool:
    return any(
        attack.lower_bound > audited.plan.epsilon
        for attack in gradient_canaries(audited, how=AuditPlan(num_canaries=num_canaries))
    )


def canary_batch(audited: AuditedSite, included: list[bool]) -> tuple[CanaryModel, Samples, tuple[str, ...]]:
    samples = with_gradient_canaries(audited.samples, included=np.array(included))
    model = CanaryModel(build_model(audited.run), num_canaries=len(included), gradient_norm=STRENGTH)
    return model, samples, tuple(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("engine", ["reference", "functional", "hooks"])
def test_a_canarys_gradient_is_its_own_weight_and_real_rows_have_none_there(data: Path, engine: str) -> None:
    """For every engine; so an update shows each canary in a number of its own, and the model trains as without them."""
    audited = site_of(data)
    model, samples, names = canary_batch(audited, [True, False, True])
    assert len(samples) == 42
    with_canaries = choose_engine(engine, model).clipped_sum(model, samples, names=names, clip=Clip(1.0)).sums  # type: ignore[arg-type]
    torch.testing.assert_close(with_canaries["canaries.weight"], torch.tensor([[1.0], [0.0], [1.0]]))

    plain = build_model(audited.run)
    own = trainable_names(plain, audited.run.modalities)
    alone = choose_engine("reference", plain).clipped_sum(plain, audited.samples, names=own, clip=Clip(1.0)).sums
    for name in own:
        torch.testing.assert_close(with_canaries[f"model.{name}"], alone[name], rtol=1e-4, atol=1e-6)


def test_a_canary_is_fifty_clip_norms_long_before_the_clip(data: Path) -> None:
    audited = site_of(data)
    model, samples, names = canary_batch(audited, [True])
    sums = choose_engine("reference", model).clipped_sum(model, samples, names=names, clip=Clip(float("inf"))).sums
    assert sums["canaries.weight"].item() == pytest.approx(STRENGTH)


@pytest.mark.parametrize(
    ("changes", "signal"),
    [
        ({}, 4.0),
        ({"unit": "subject"}, 4.0),
        ({"noise": "discrete"}, 4.0),
        ({"noise": "float32"}, 4.0),
    ],
)
def test_a_score_is_one_clip_norm_a_step_and_the_noise_that_was_planned(
    data: Path, changes: dict[str, str], signal: float
) -> None:
    """Variance by chi-square, false alarm 1e-6; catches a scale 20 % off either way."""
    audited = site_of(data, **changes)  # type: ignore[arg-type]
    scores, included = gradient_scores(audited, how=AuditPlan(num_canaries=1000))
    noise = scores * audited.plan.expected_batch_size - signal * included
    ratio = noise / (audited.plan.noise_multiplier * 2)  # four rounds: twice the deviation of one

    def is_plausible(values: np.ndarray) -> bool:
        total = float((values**2).sum())
        return bool(chi2.ppf(5e-7, 1000) < total < chi2.isf(5e-7, 1000))

    assert is_plausible(ratio)
    assert not is_plausible(ratio * 1.2)
    assert not is_plausible(ratio / 1.2)
    # and none of the signal is left over: five deviations of the difference of two means of 500
    assert abs(ratio[included].mean() - ratio[~included].mean()) < 5 * (4 / 1000) ** 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unit": "subject"},
        {"training": SAMPLED},
        {"noise": "discrete"},
        {"clipping": "per-layer"},
        {"clipping": "adaptive"},
        {"epsilon": 8.0},
    ],
)
def test_honest_training_stays_below_the_claim(data: Path, changes: dict[str, object]) -> None:
    assert not alarmed(site_of(data, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("noise-divided-by-four", {}),
        ("noise-divided-by-four", {"unit": "subject"}),
        ("noise-divided-by-four", {"noise": "discrete"}),
        ("noise-divided-by-four", {"training": SAMPLED}),
        ("forgotten-clip", {}),
        ("forgotten-clip", {"clipping": "adaptive"}),
        ("ghost-clipping-with-the-ordinary-loss", {}),
    ],
)
def test_a_leak_raises_the_lower_bound_above_the_claim(data: Path, fault: str, changes: dict[str, object]) -> None:
    """Epsilon 1 is claimed; a quarter of the noise, or no clip, shows far more."""
    with planted(fault):
        audited = site_of(data, **changes)  # type: ignore[arg-type]
        assert alarmed(audited)


def test_subjects_whose_rows_are_clipped_apart_are_seen(data: Path) -> None:
    """Four rows of a subject then count four times."""
    training = {**ALL_AT_ONCE, "records_per_subject": 4}
    assert not alarmed(site_of(data, unit="subject", training=training))
    with planted("subject-rows-unbounded"):
        assert alarmed(site_of(data, unit="subject", training=training))


def test_a_mislabelled_record_never_has_its_own_label(data: Path) -> None:
    audited = site_of(data)
    canaries = mislabelled(audited.strangers, data=audited.run.data, num=1000, generator=np.random.default_rng(0))
    assert len(canaries) == len(audited.strangers) == 60
    assert (canaries.targets != audited.strangers.targets).all()
    assert set(canaries.targets.tolist()) == {0, 1, 2}
    assert len(set(canaries.subjects)) == 60


def test_a_mislabelled_rating_is_the_end_of_the_range_that_is_further_away(data: Path) -> None:
    ratings = torch.tensor([-2.0, 2.5, 0.5])
    rows = site_of(data).strangers.subset(torch.arange(3))
    records = Samples(
        inputs=rows.inputs, present=rows.present, targets=ratings, subjects=rows.subjects, groups=rows.groups
    )
    schema = parse_settings(
        DataSchema,
        {"task": "rating", "rating_range": (-3, 3), "modalities": {"left": {"kind": "features", "width": 4}}},
        place="test",
    )
    targets = mislabelled(records, data=schema, num=3, generator=np.random.default_rng(0)).targets
    assert targets.tolist() == [3.0, -3.0, -3.0]


@pytest.mark.parametrize("unit", ["record", "subject"])
def test_a_model_that_remembers_who_it_was_trained_on_is_seen(
    data: Path, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for training notes whom it was given, and their loss is zero afterwards: all guesses are right."""
    audited = site_of(data, unit=unit)
    seen: set[str] = set()
    first = {}

    def noting(_: AuditedSite, __: nn.Module, samples: Samples, **___: object) -> list[None]:
        seen.update(samples.subjects)
        first["inputs"] = {tuple(row.tolist()) for row in samples.inputs["left"]}
        return []

    def remembered(_: nn.Module, samples: Samples) -> np.ndarray:
        if not first:
            return np.ones(len(samples))
        return np.array([float(tuple(row.tolist()) not in first["inputs"]) for row in samples.inputs["left"]])

    monkeypatch.setattr(audit_run, "train_alone", noting)
    monkeypatch.setattr(audit_run, "losses", remembered)
    mine = audit_run.input_canaries(audited, how=AuditPlan())
    assert "area under the curve 1.000" in mine.detail
    assert {name for name in seen if not name.startswith("canary")} == set(audited.samples.subjects)
    first.clear()
    members = audit_run.membership(audited, how=AuditPlan())
    units = 10 if unit == "subject" else 40
    assert f"about {units} {unit}s right" in members.detail
    assert "area under the curve 1.000" in members.detail
    assert "100.0% of members found" in members.detail
    # of 40 records, all guesses right prove something; 10 subjects are too few to prove much
    assert members.lower_bound > (0.5 if unit == "record" else -1)


def test_subjects_are_kept_or_left_out_as_a_whole(data: Path) -> None:
    rows = rows_of_units(site_of(data, unit="subject").samples, unit="subject")
    assert [len(numbers) for numbers in rows] == [4] * 10
    assert [len(numbers) for numbers in rows_of_units(site_of(data).samples, unit="record")] == [1] * 40


def test_one_release_a_planned_round_and_equal_seeds_give_equal_ones(data: Path) -> None:
    audited = site_of(data)
    names = trainable_names(build_model(audited.run), audited.run.modalities)

    def updates(seed: int) -> list[torch.Tensor]:
        model = build_model(audited.run)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        found = list(train_alone(audited, model, audited.samples, names=names, seed=seed, purpose="test"))
        # fedavg with rate 1: the final weights are the first and all updates
        for name, value in model.named_parameters():
            moved = before[name] + torch.stack([release.update[name] for release in found]).sum(dim=0)
            torch.testing.assert_close(value.detach(), moved)
        return [release.update[names[0]] for release in found]

    first = updates(0)
    assert len(first) == audited.plan.planned_rounds == 4
    assert all(torch.equal(one, other) for one, other in zip(first, updates(0), strict=True))
    assert not torch.equal(first[0], updates(1)[0])
    assert not torch.equal(first[0], first[1])


def test_an_adaptive_norm_moves_as_the_server_would_move_it(data: Path) -> None:
    audited = site_of(data, clipping="adaptive", clip_norm=1e-3)
    names = trainable_names(build_model(audited.run), audited.run.modalities)
    model = build_model(audited.run)
    norms = [
        release.clip_norm
        for release in train_alone(audited, model, audited.samples, names=names, seed=0, purpose="test")
    ]
    assert norms[0] == 1e-3
    assert len(set(norms)) == 4


def test_all_attacks_share_the_chance_of_error(data: Path) -> None:
    attacks = attack_site(site_of(data, rounds=1), how=AuditPlan(num_canaries=20))
    assert len(attacks) == audit_run.NUM_BOUNDS
    assert sum(1 - attack.confidence for attack in attacks) == pytest.approx(0.05)


def made_audit(*bounds: float, fault: str | None = None) -> Audit:
    attacks = tuple(AuditAttack(name=f"attack {b}", lower_bound=b, confidence=0.99, detail="") for b in bounds)
    return Audit(
        claimed_epsilon=1.0, delta=1e-5, unit="record", attacks=attacks, started="", site="north", planted_fault=fault
    )


def test_what_is_said_claims_no_more_than_was_found() -> None:
    quiet = " ".join(sentences(made_audit(0.0, 0.9)))
    assert "evidence, not proof" in quiet
    assert "not that nothing leaks" in quiet
    assert "ALARM" not in quiet
    assert "98.0% of all of them together" in quiet
    loud = " ".join(sentences(made_audit(0.0, 1.1, fault="forgotten-clip")))
    assert 'ALARM: the attack "attack 1.1" shows epsilon 1.10 at least' in loud
    assert "2.0% of audits" in loud
    assert "broken on purpose: forgotten-clip" in loud
    assert "evidence, not proof" not in loud
    assert (is_alarm(made_audit(0.0, 1.0)), is_alarm(made_audit(1.1))) == (False, True)


def test_the_command_audits_a_scenario_and_a_finished_folder_and_touches_no_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    path = scenario_file(
        tmp_path, private=True, changes={"training": ALL_AT_ONCE, "privacy": {**PRIVACY, "epsilon": 0.5}}
    )
    settings, data_set = read_scenario(path, home=tmp_path / "home")
    prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}

    done = CliRunner().invoke(app, ["audit", "--run", str(tmp_path / "run"), "--site", "west", "--canaries", "300"])
    assert done.exit_code == 0, done.output
    found = Audit.model_validate_json((tmp_path / "run" / "audit.json").read_text())
    assert (found.site, found.unit, found.planted_fault) == ("west", "record", None)
    assert found.claimed_epsilon == pytest.approx(0.5, rel=2e-3)
    after = {
        file: file.read_bytes()
        for file in (tmp_path / "run").rglob("*")
        if file.name != "audit.json" and file.is_file()
    }
    assert after == before
    assert not list(tmp_path.rglob("*.sqlite"))

    broken = ["audit", str(path), "--canaries", "300", "--plant", "noise-divided-by-four", "--json"]
    loud = CliRunner().invoke(app, [*broken, "--out", str(tmp_path / "broken.json"), "--set", "run.privacy.epsilon=1"])
    assert loud.exit_code == 1
    shown = Audit.model_validate(json.loads(loud.stdout))
    assert shown == Audit.model_validate_json((tmp_path / "broken.json").read_text())
    assert (shown.site, shown.planted_fault) == ("north", "noise-divided-by-four")
    assert is_alarm(shown)

    both = CliRunner().invoke(app, ["audit", "--run", str(tmp_path / "run"), "--plant", "forgotten-clip"])
    assert both.exit_code == 2


def test_what_cannot_be_audited_is_refused(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    settings, data_set = read_scenario(scenario_file(tmp_path, private=True), home=tmp_path / "home")
    prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")
    how = AuditPlan(num_canaries=10)
    with pytest.raises(ConfigError, match="'east': no such site; allowed: north, south, west"):
        audit_folder(tmp_path / "run", site="east", how=how)
    with pytest.raises(ConfigError, match="no such fault"):
        audit_folder(tmp_path / "run", how=how, fault="gremlins")
    open_run = tiny_config(private=False)
    site = read_site(tmp_path / "run" / "sites" / "north.toml")
    strangers = load_samples(data / "held-out" / "test", run=open_run, cache=site.cache)
    with pytest.raises(PermissionRefused, match="nothing is claimed"):
        audited_site(open_run, site, sites=("north",), strangers=strangers)
    for file in (tmp_path / "run" / "sites").iterdir():
        file.unlink()
    with pytest.raises(RunError, match="only a simulated run"):
        audit_folder(tmp_path / "run", how=how)


def test_what_an_owner_freezes_is_not_trained_in_an_audit(data: Path) -> None:
    audited = site_of(data)
    site = audited.site.model_copy(update={"frozen": ("encoders.left.*",)})
    frozen = dataclasses.replace(audited, site=site)
    model = frozen.first_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    names = audit_run._names(frozen)
    list(train_alone(frozen, model, frozen.samples, names=names, seed=0, purpose="test"))
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoders.left.")


def test_a_site_that_lacks_a_modality_is_attacked_with_what_it_has(data: Path) -> None:
    audited = site_of(data)
    west = audited.site.model_copy(update={"name": "west", "data": data / "sites" / "west", "modalities": ("left",)})
    strangers = load_samples(data / "held-out" / "test", run=audited.run, cache=west.cache)
    found = audited_site(audited.run, west, sites=("west",), strangers=strangers)
    assert set(found.strangers.inputs) == set(found.samples.inputs) == {"left"}
    assert not found.strangers.present[:, 1].any()
    assert len(attack_site(found, how=AuditPlan(num_canaries=20))) == audit_run.NUM_BOUNDS
    assert MARK not in found.samples.inputs
