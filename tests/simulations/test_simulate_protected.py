"""Whole runs of every unit and way of clipping: what their reports say is what the ledgers hold."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from client import agent
from server.code_digest import code_digest
from server.history import used_replies
from server.records import RunRecord
from server.settings import read_preflight, read_settings
from shared.errors import ModelError, RunError
from shared.preflight import PreflightCheck
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger
from shared.settings import read_toml
from simulations.scenario import motet_home, read_scenario, state_home
from simulations.simulate import DEPLOYMENT, prepare_run, run_simulation
from tests.simulations.runs import model_of, record_of, scenario_file, simulate, skip_preflight

RECORD: dict[str, object] = {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0}
SUBJECT: dict[str, object] = {**RECORD, "unit": "subject"}
SITE: dict[str, object] = {**RECORD, "unit": "site", "trust": "server"}
TWO_ROUNDS = {"rounds": 2}
QUICK = {"bootstrap_samples": 0, "modality_subsets": False}


@pytest.fixture(autouse=True)
def _own_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    if "preflight" not in request.node.name:
        skip_preflight(monkeypatch)
    yield
    agent._loaded_samples.cache_clear()


def run_of(folder: Path, /, *, out: str = "run", owners: str = "", **changes: object) -> RunRecord:
    """Two rounds of the tiny run, unless the changes say otherwise."""
    table = {"federation": TWO_ROUNDS, "evaluation": QUICK, **changes}
    return simulate(folder, out, private=True, owners=owners, changes=table)


def assert_equals_the_ledgers(record: RunRecord, run: Path) -> None:
    """Every epsilon of the report, computed again from what the owners' and the server's ledgers hold."""
    settings = read_settings(run)
    owners = Ledger.existing(run / "ledger.sqlite")
    for site in record.privacy:
        uses = owners.uses(site.site, unit="subject" if site.unit == "subject" else "record")
        for said, accountant in ((site.epsilon, "pld"), (site.run_epsilon, "pld"), (site.second_epsilon, "prv")):
            again = spent_epsilon(uses, delta=site.delta, accountant="prv" if accountant == "prv" else "pld")
            assert said == pytest.approx(again, rel=1e-9)
        assert (site.epsilon_before, site.cap_epsilon, site.left_after_round) == (0.0, 8.0, None)
        assert site.epsilon <= 8.0
    if record.central is not None:
        central, assert_same = record.central, pytest.approx
        uses = Ledger.existing(run / "server-ledger.sqlite").uses(settings.federation, unit="site")
        again = spent_epsilon(uses, delta=central.delta, accountant="pld")
        assert (central.epsilon, central.epsilon_run) == assert_same((again, again))
        assert central.second_epsilon == assert_same(spent_epsilon(uses, delta=central.delta, accountant="prv"))
        assert uses == (MechanismUse(central.noise_multiplier, central.sample_rate, central.rounds),)
        assert record.rounds[-1].site_epsilon == assert_same(again)
        assert central.epsilon <= 8.0


def test_a_run_that_protects_subjects(tmp_path: Path) -> None:
    training = {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 0.5, "local_steps": 2}
    record = run_of(tmp_path, privacy=SUBJECT, training={**training, "records_per_subject": 3})
    assert {(site.unit, site.nominal_size) for site in record.privacy} == {("subject", 10)}
    assert_equals_the_ledgers(record, tmp_path / "run")
    owner = read_toml(tmp_path / "run" / "sites" / "north.toml")
    assert owner["nominal_subjects"] == 10
    assert owner["privacy"] == {**owner["privacy"], "unit": "subject", "trust_server": False}  # type: ignore[dict-item]


def test_a_run_that_protects_sites_by_a_public_schedule(tmp_path: Path) -> None:
    record = run_of(tmp_path, privacy=SITE, federation={"rounds": 3, "sites_per_round": 2})
    assert record.privacy == ()
    assert record.central is not None
    # three rounds of two of three sites: no site is in more than two of them
    assert (record.central.rounds, record.central.sample_rate, record.central.denominator) == (2, 1.0, 2.0)
    assert_equals_the_ledgers(record, tmp_path / "run")
    used = list(used_replies(record.rounds))
    assert len(used) == 6
    assert all(reply.header.privacy is None for reply in used)
    owners = Ledger.existing(tmp_path / "run" / "ledger.sqlite")
    assert {row.mechanism for site in record.sites for row in owners.rows(site)} == {"none"}


def test_a_run_that_protects_sites_by_a_secret_draw_tells_nothing_of_it(tmp_path: Path) -> None:
    record = run_of(tmp_path, privacy=SITE, federation={"rounds": 4, "site_sample_rate": 0.5})
    assert record.seconds == 0.0
    assert record.central is not None
    assert (record.central.rounds, record.central.sample_rate, record.central.denominator) == (4, 0.5, 1.5)
    assert_equals_the_ledgers(record, tmp_path / "run")
    said = {dataclasses.replace(site, site="") for each in record.rounds for site in each.sites}
    assert len(said) == 1
    assert {each.seconds for each in record.rounds} == {0.0}


def test_records_and_sites_are_protected_together(tmp_path: Path) -> None:
    of_sites = {**SITE, "clip_norm": 0.5}
    record = run_of(tmp_path, privacy=RECORD, site_privacy=of_sites)
    assert len(record.privacy) == 3
    assert record.central is not None
    assert_equals_the_ledgers(record, tmp_path / "run")

    hidden = run_of(
        tmp_path,
        out="hidden",
        privacy=RECORD,
        site_privacy=of_sites,
        federation={**TWO_ROUNDS, "site_sample_rate": 0.5},
    )
    # the bound of all planned rounds, the same for each site, whether or not it was ever drawn
    assert len({site.model_dump_json(exclude={"site"}) for site in hidden.privacy}) == 1
    assert len(hidden.privacy) == 3
    for ours, planned in zip(record.privacy, hidden.privacy, strict=True):
        assert planned.steps == 4
        assert planned.noise_multiplier == pytest.approx(ours.noise_multiplier)
        assert 7.9 < planned.epsilon <= 8.0
        assert planned.epsilon_before is None


@pytest.mark.parametrize("clipping", ["adaptive", "per-layer"])
def test_other_ways_of_clipping_cost_what_the_ledgers_say(clipping: str, tmp_path: Path) -> None:
    record = run_of(tmp_path, privacy={**RECORD, "clipping": clipping})
    assert_equals_the_ledgers(record, tmp_path / "run")
    assert {site.outcome for each in record.rounds for site in each.sites} == {"used"}
    assert (record.rounds[0].clip_norm, record.rounds[1].clip_norm is None) == (
        (1.0, False) if clipping == "adaptive" else (None, True)
    )
    sites = run_of(tmp_path, out="sites", privacy={**SITE, "clipping": clipping})
    assert_equals_the_ledgers(sites, tmp_path / "sites")
    norms = [each.site_clip_norm for each in sites.rounds]
    assert norms[0] == 1.0
    assert (norms[1] != 1.0) == (clipping == "adaptive")


def test_counts_are_inside_the_runs_epsilon_and_weigh_the_sites(tmp_path: Path) -> None:
    record = run_of(
        tmp_path,
        privacy=RECORD,
        statistics={"noise_multiplier": 4.0},
        federation={**TWO_ROUNDS, "weighting": "examples"},
    )
    assert [(site.site, site.noise_multiplier, len(site.counts)) for site in record.statistics] == [
        ("north", 4.0, 3), ("south", 4.0, 3), ("west", 4.0, 3)
    ]  # fmt: skip
    assert all(abs(sum(site.counts) - 40) < 5.5 * 4.0 * 3**0.5 for site in record.statistics)
    assert_equals_the_ledgers(record, tmp_path / "run")
    owners = Ledger.existing(tmp_path / "run" / "ledger.sqlite")
    assert [row.mechanism for row in owners.rows("north")] == ["counts", "gaussian", "gaussian"]


def test_a_run_of_sites_that_was_stopped_is_resumed_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"privacy": SITE, "evaluation": QUICK, "federation": {"rounds": 3, "site_sample_rate": 0.7}}
    owners = "[owners]\nreproducible_noise = true"
    whole = simulate(tmp_path, "whole", owners=owners, changes=changes)
    path = scenario_file(tmp_path, private=True, owners=owners, changes=changes)
    settings, data_set = read_scenario(path, home=tmp_path / "home")
    prepare_run(settings, data_set=data_set, folder=tmp_path / "parts", engine="local")
    with monkeypatch.context() as patch:
        from server.progress import ProgressLine

        def stop(line: ProgressLine, record: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(ProgressLine, "tell", stop)
        with pytest.raises(KeyboardInterrupt):
            run_simulation(tmp_path / "parts")
    run_simulation(tmp_path / "parts")
    first, second = model_of(tmp_path / "whole"), model_of(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    parts = record_of(tmp_path / "parts")
    assert parts.central == whole.central
    assert parts.reproducible_noise
    assert_equals_the_ledgers(parts, tmp_path / "parts")


def test_the_preflight_of_a_run_is_made_once_and_stands_in_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_of(tmp_path, privacy=RECORD)
    assert "checks passed" in capsys.readouterr().out
    assert record.preflight == read_preflight(tmp_path / "run")
    assert {check.passed for check in record.preflight} == {True}
    assert record.code_digest == code_digest()

    failed = (PreflightCheck(name="bounded", passed=False, detail="moved by 2 clip norms"),)
    monkeypatch.setattr("client.preflight.preflight", lambda run: failed)
    with pytest.raises(ModelError, match="bounded: moved by 2 clip norms"):
        run_of(tmp_path, out="unsound", privacy=RECORD)
    assert not (tmp_path / "unsound" / "metrics.jsonl").exists()


def test_a_deployment_keeps_what_its_sites_cost_beyond_one_run(tmp_path: Path) -> None:
    path = scenario_file(
        tmp_path, private=True, owners="[owners]\nreproducible_noise = true", changes={"privacy": SITE}
    )
    settings, data_set = read_scenario(path, home=tmp_path / "home")
    for name in ("one", "two"):
        prepare_run(
            settings, data_set=data_set, folder=tmp_path / name, engine=DEPLOYMENT, num_sites=3, site_cap_epsilon=12.0
        )
        made = read_settings(tmp_path / name)
        assert made.ledger == tmp_path / "home" / "server-ledger.sqlite"
        assert (made.federation, made.site_cap_epsilon, made.reproducible_noise) == ("Tiny", 12.0, False)


def test_subjects_that_a_simulated_site_does_not_name_are_refused(tmp_path: Path) -> None:
    path = scenario_file(tmp_path, private=True, changes={"privacy": SUBJECT})
    manifest = tmp_path / "data" / "sites" / "west" / "metadata.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "subject_id"}) for row in rows))
    settings, data_set = read_scenario(path, home=tmp_path / "home")
    with pytest.raises(RunError, match="no subject_id"):
        prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")


def test_the_code_digest_changes_with_every_file_and_with_nothing_else(tmp_path: Path) -> None:
    for folder in ("client", "server", "shared", "tests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.py").write_text("one = 1\n")
    before = code_digest(tmp_path)
    (tmp_path / "tests" / "part.py").write_text("one = 2\n")
    (tmp_path / "client" / "notes.txt").write_text("not a part of the program")
    assert code_digest(tmp_path) == before
    (tmp_path / "shared" / "part.py").rename(tmp_path / "shared" / "path.py")
    renamed = code_digest(tmp_path)
    (tmp_path / "server" / "page.toml").write_text("a = 1\n")
    assert len({before, renamed, code_digest(tmp_path)}) == 3


def test_the_ledger_of_a_deployments_server_lies_where_no_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOTET_HOME")

    assert motet_home() not in (state_home(), *state_home().parents)
    assert not any("cache" in part for part in state_home().relative_to(Path.home()).parts)
