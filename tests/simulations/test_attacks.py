"""Hostile sites in whole simulations: what they send goes through every check, and the report names the attack."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from server.records import RunRecord
from shared.errors import ConfigError, RunError
from simulations.attacks.labels import flip_labels, wrong_cells
from simulations.attacks.plan import Attack, hostile_sites, plan_attack, read_attack
from simulations.attacks.settings import AttackSettings
from simulations.datasets.moods_answers import Answers, schema_of
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.runs import model_of, record_of, scenario_file, skip_preflight
from tests.tiny import LABELS, SITES, write_data_set

NAMES = [f"s{n:02d}" for n in range(10)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)


def attacked(
    folder: Path, kind: str, *, share: float = 0.4, factor: float = 10.0, engine: str = "local", private: bool = False
) -> RunRecord:
    """A run of the tiny federation, one of whose three sites is hostile."""
    changes: Mapping[str, object] = {
        "federation": {"rounds": 2}, "evaluation": {"bootstrap_samples": 0, "modality_subsets": False}
    }  # fmt: skip
    path = scenario_file(folder, private=private, changes=changes)
    asked = [f"attack.kind={kind}", f"attack.share={share}", f"attack.factor={factor}"] if kind != "none" else []
    asked += ["owners.reproducible_noise=true"]
    scenario, data_set = read_scenario(path, changes=asked, home=folder / "home")
    run = folder / f"{kind}-{engine}"
    prepare_run(scenario, data_set=data_set, folder=run, engine=engine)
    run_simulation(run)
    return record_of(run)


def outcomes(record: RunRecord) -> dict[str, set[str]]:
    return {name: {each.outcome for r in record.rounds for each in r.sites if each.site == name} for name in SITES}


def test_a_larger_share_takes_in_the_hostile_sites_of_a_smaller_one() -> None:
    found = [
        set(hostile_sites(AttackSettings(kind="not-a-number", share=share), sites=NAMES)) for share in (0, 0.1, 0.3, 1)
    ]
    assert [len(each) for each in found] == [0, 1, 3, 10]
    assert all(small <= large for small, large in itertools.pairwise(found))
    other = AttackSettings(kind="not-a-number", share=0.3, seed=1)
    assert set(hostile_sites(other, sites=NAMES[::-1])) == set(hostile_sites(other, sites=NAMES)) != found[2]


@pytest.mark.parametrize(("kind", "engine"), [("scaled", "local"), ("sign-flipped", "cohort"), ("constant", "cohort")])
def test_what_a_hostile_site_sends_is_used_like_anybodys_and_moves_the_mean(
    kind: str, engine: str, tmp_path: Path
) -> None:
    """Every check passes: its header is that of a private reply."""
    honest, record = (attacked(tmp_path, each, engine=engine, private=True) for each in ("none", kind))
    (hostile,) = json.loads((tmp_path / f"{kind}-{engine}" / "attack.json").read_text())["sites"]
    assert outcomes(record)[hostile] == {"used"}
    assert record.rounds[0].update_norm is not None
    assert honest.rounds[0].update_norm is not None
    assert record.rounds[0].update_norm > 1.5 * honest.rounds[0].update_norm
    assert record.card is not None
    assert record.card.title == f"Tiny; 1 of 3 sites hostile: {kind}"
    assert honest.card is not None
    assert "hostile" not in honest.card.title
    names = set(model_of(tmp_path / f"{kind}-{engine}"))
    assert names == set(model_of(tmp_path / f"none-{engine}"))


@pytest.mark.parametrize("engine", ["local", "cohort"])
def test_an_update_that_is_no_number_is_left_out_and_the_round_goes_on(engine: str, tmp_path: Path) -> None:
    record = attacked(tmp_path, "not-a-number", engine=engine)
    attack = read_attack(tmp_path / f"not-a-number-{engine}")
    assert attack is not None
    found = outcomes(record)
    assert found.pop(attack.sites[0]) == {"invalid"}
    assert set().union(*found.values()) == {"used"}
    assert record.rounds[-1].update_norm is not None


def test_two_simulated_sites_of_one_name_stop_a_run_before_its_first_round(tmp_path: Path) -> None:
    """Of a deployment's sites the key decides: test_a_site_that_speaks_in_anothers_name_is_refused."""
    with pytest.raises(RunError, match="two sites are called"):
        attacked(tmp_path, "other-name")


def test_attackers_with_wrong_labels_train_as_they_are_asked(tmp_path: Path) -> None:
    honest, record = (attacked(tmp_path, kind, share=0.7) for kind in ("none", "label-flipped"))
    assert set().union(*outcomes(record).values()) == {"used"}
    assert record.card is not None
    assert "wrong labels at 2 sites" in record.card.title
    assert record.validation.overall.metrics["accuracy"].value < honest.validation.overall.metrics["accuracy"].value


def test_wrong_labels_are_all_wrong_and_nothing_else_changes(tmp_path: Path) -> None:
    source = write_data_set(tmp_path / "source", rows=12)
    flip_labels(source, tmp_path / "target", sites=["north"])
    for folder in ("sites/north", "sites/south", "held-out/test"):
        before, after = (
            [json.loads(line) for line in (tmp_path / where / folder / "metadata.jsonl").read_text().splitlines()]
            for where in ("source", "target")
        )
        for old, new in zip(before, after, strict=True):
            following = LABELS[(LABELS.index(old["label"]) + 1) % 3]
            assert new["label"] == (following if folder == "sites/north" else old["label"])
            assert new["subject_id"] == old["subject_id"]
            for name in ("left", "right"):
                files = [
                    tmp_path / where / folder / row[f"{name}_file_name"]
                    for where, row in (("source", old), ("target", new))
                    if f"{name}_file_name" in row
                ]
                assert len({path.read_bytes() for path in files}) <= 1
    with pytest.raises(ConfigError, match="exists"):
        flip_labels(source, tmp_path / "target", sites=["north"])


@pytest.mark.parametrize("answers", ["mood", "many", "several"])
def test_every_kind_of_answer_can_be_wrong(answers: Answers) -> None:
    schema = schema_of(answers)
    cells: dict[str, object] = {}
    for column, part in schema.parts.items():
        cells[column] = part.rating_range[0] if part.rating_range else part.labels[0]
        if part.kind == "multi-label":
            cells[column] = list(part.labels[:1])
    wrong = wrong_cells(cells, schema=schema)
    for column, part in schema.parts.items():
        expected: object = part.rating_range[1] if part.rating_range else None
        if part.labels:
            expected = list(part.labels[1:]) if part.kind == "multi-label" else part.labels[1]
        assert wrong[column] == expected


def test_an_attack_is_no_setting_of_the_run_and_no_deployment_has_one(tmp_path: Path) -> None:
    path = scenario_file(tmp_path, private=False)
    plain, _ = read_scenario(path, home=tmp_path / "home")
    hostile, data_set = read_scenario(path, changes=["attack.kind=not-a-number"], home=tmp_path / "home")
    assert hostile.run.digest == plain.run.digest
    with pytest.raises(RunError, match="simulations only"):
        prepare_run(hostile, data_set=data_set, folder=tmp_path / "deployed", engine="deployment", num_sites=3)
    with pytest.raises(ConfigError, match=r"attack: 1 fault.*\s*kind"):
        read_scenario(path, changes=["attack.kind=unknown"], home=tmp_path / "home")


def test_somebody_must_be_left_whose_name_can_be_taken() -> None:
    everybody = AttackSettings(kind="other-name", share=1.0)
    with pytest.raises(ConfigError, match="no site is left"):
        plan_attack(everybody, sites=NAMES)
    some = plan_attack(AttackSettings(kind="other-name", share=0.2), sites=NAMES)
    assert some.pretended not in some.sites
    assert isinstance(some, Attack)


def test_too_few_sites_for_the_aggregation_are_told_before_anything_is_made(tmp_path: Path) -> None:
    federation = {"rounds": 2, "aggregation": "krum", "byzantine_sites": 1, "min_sites": 5}
    path = scenario_file(tmp_path, private=False, changes={"federation": federation})
    scenario, data_set = read_scenario(path, home=tmp_path / "home")
    with pytest.raises(RunError, match=r"3 sites; aggregation = 'krum' with byzantine_sites = 1 needs 2 \* 1 \+ 3 = 5"):
        prepare_run(scenario, data_set=data_set, folder=tmp_path / "run", engine="local")
    assert not (tmp_path / "run").exists()
