"""From a scenario file to a report, as `motet simulate` does it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from typer.testing import CliRunner

from client import agent
from motet import app
from server.settings import read_settings
from shared.errors import ConfigError, MotetError, RunError
from shared.messages import ReplyHeader
from shared.record_names import ARRAYS, HEADER
from simulations.engine.local import LocalGrid
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.runs import model_of, record_of, scenario_file, simulate, skip_preflight


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    yield
    agent._loaded_samples.cache_clear()


REPRODUCIBLE = "[owners]\nreproducible_noise = true"


def test_a_run_leaves_a_report_a_model_and_a_line_for_every_round(tmp_path: Path) -> None:
    record = simulate(tmp_path)
    run = tmp_path / "run"
    assert len(record.rounds) == 3
    assert {site.outcome for each in record.rounds for site in each.sites} == {"used"}
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert "Tiny" in (run / "report.html").read_text()
    assert model_of(run).keys() == {name for name in model_of(run) if not name.startswith("best/")}
    assert list((run / "tensorboard").glob("events*"))


def test_every_reply_of_a_run_holds_the_allow_list_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Message] = []
    deliver = LocalGrid._deliver

    def watched(grid: LocalGrid, message: Message) -> Message:
        reply = deliver(grid, message)
        seen.append(reply)
        return reply

    monkeypatch.setattr(LocalGrid, "_deliver", watched)
    simulate(tmp_path)
    trains = [reply for reply in seen if reply.metadata.message_type == "train"]
    assert len(trains) == 9
    for reply in trains:
        assert set(reply.content) == {HEADER, ARRAYS}
        assert set(reply.content.config_records[HEADER]) == {"json"}
        header = json.loads(str(reply.content.config_records[HEADER]["json"]))
        assert set(header) == set(ReplyHeader.model_fields)
        assert (header["unclipped_share"], header["is_within_clip"]) == (None, None)
        assert all(name.startswith(("encoders.", "fusion.", "head.")) for name in reply.content.array_records[ARRAYS])


def test_epsilon_after_every_round_is_in_the_metrics_and_bounded_by_what_was_asked(tmp_path: Path) -> None:
    record = simulate(tmp_path)
    for site in record.sites:
        said = [each.epsilon for rounds in record.rounds for each in rounds.sites if each.site == site]
        numbers = [epsilon for epsilon in said if epsilon is not None]
        assert numbers == sorted(numbers)
        assert 7.5 < numbers[-1] <= 8.0
    for plan in record.privacy:
        assert (plan.accountant, plan.second_accountant) == ("pld", "prv")
        assert plan.second_epsilon == pytest.approx(plan.epsilon, rel=0.02)


def test_a_stopped_run_is_resumed_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for private in (False, True):
        folder = tmp_path / str(private)
        folder.mkdir()
        simulate(folder, "whole", private=private, owners=REPRODUCIBLE)
        path = scenario_file(folder, private=private, owners=REPRODUCIBLE)
        settings, data_set = read_scenario(path, home=folder / "home")
        prepare_run(settings, data_set=data_set, folder=folder / "parts", engine="local")
        with monkeypatch.context() as patch:
            from server.progress import ProgressLine

            def stop(line: ProgressLine, record: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(ProgressLine, "tell", stop)
            with pytest.raises(KeyboardInterrupt):
                run_simulation(folder / "parts")
        run_simulation(folder / "parts")
        whole, parts = model_of(folder / "whole"), model_of(folder / "parts")
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_second_run_of_a_scenario_opens_no_media_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate(tmp_path, "first", private=False)
    agent._loaded_samples.cache_clear()

    def opened(*_: object, **__: object) -> None:
        pytest.fail("a media file was opened")

    monkeypatch.setattr("shared.loader.read_file", opened)
    monkeypatch.setattr("shared.loader.decode", opened)
    second = simulate(tmp_path, "second", private=False)
    assert first.test == second.test


def test_the_model_in_the_folder_is_the_one_the_report_speaks_of(tmp_path: Path) -> None:
    from server.evaluation import score
    from server.heldout import load_held_out
    from server.rounds import load_weights
    from shared.model.multimodal import build_model

    record = simulate(tmp_path)
    settings = read_settings(tmp_path / "run")
    model = build_model(settings.run)
    load_weights(model, model_of(tmp_path / "run"))
    again = score(model, load_held_out(settings).test, run=settings.run)
    assert again.metrics["macro_f1"].value == pytest.approx(record.test.overall.metrics["macro_f1"].value)


def test_a_run_folder_in_use_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    simulate(tmp_path)
    settings, data_set = read_scenario(tmp_path / "scenario.toml", home=tmp_path / "home")
    with pytest.raises(RunError, match="--resume"):
        prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")
    with pytest.raises(RunError, match="no run folder"):
        run_simulation(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("run.privacy.epsilon=-1", r"1 fault in the settings\n  run\.privacy\.epsilon: "),
        ("run.federation.rouns=3", r"rouns: no such setting; allowed: .*\brounds, "),
        ("run.model.encoders.smell.name='nose'", "smell"),
        ("nonsense", "KEY.KEY=VALUE"),
        ("source.path=nowhere", "no data set"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(change: str, said: str, tmp_path: Path) -> None:
    path = scenario_file(tmp_path, private=True)
    with pytest.raises(ConfigError, match=said):
        read_scenario(path, changes=[change], home=tmp_path / "home")


def test_the_command_line_shows_an_error_of_ours_without_a_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", str(tmp_path / "missing.toml")])
    assert isinstance(result.exception, MotetError)
    assert "no such scenario" in str(result.exception)


def test_the_command_line_goes_from_a_scenario_to_a_report(tmp_path: Path) -> None:
    path = scenario_file(tmp_path, private=True)
    result = CliRunner().invoke(
        app, ["simulate", str(path), "--out", str(tmp_path / "out"), "--set", "run.federation.rounds=1"]
    )
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert len(record_of(tmp_path / "out").rounds) == 1
    check = CliRunner().invoke(app, ["check", str(tmp_path / "data")])
    assert check.exit_code == 0, check.output
    compared = CliRunner().invoke(app, ["compare", str(tmp_path / "out"), str(tmp_path / "out")])
    assert compared.exit_code == 0, compared.output


def test_a_start_that_fails_leaves_no_folder_in_the_way_of_the_next(tmp_path: Path) -> None:
    path, out = scenario_file(tmp_path, private=True), tmp_path / "out"
    for change in ("run.model.fusion.name='concatt'", "run.model.encoders.left.options.depth=3"):
        result = CliRunner().invoke(app, ["simulate", str(path), "--out", str(out), "--set", change])
        assert isinstance(result.exception, MotetError)
        assert not out.exists()


def test_what_no_owner_may_say_is_told_before_anything_is_made(tmp_path: Path) -> None:
    path, out = scenario_file(tmp_path, private=True), tmp_path / "out"
    result = CliRunner().invoke(app, ["simulate", str(path), "--out", str(out), "--set", "run.privacy.delta=0.9"])
    assert isinstance(result.exception, ConfigError)
    assert re.search(
        r"made from the scenario's run\.privacy.*\n  privacy\.delta is 0\.9; allowed: ", str(result.exception)
    )
    assert not out.exists()


def test_resume_takes_no_other_option_and_leaves_an_ended_run_alone(tmp_path: Path) -> None:
    simulate(tmp_path)
    before = (tmp_path / "run" / "report.json").read_bytes()
    refused = CliRunner().invoke(app, ["simulate", "--resume", str(tmp_path / "run"), "--seed", "5"])
    assert refused.exit_code == 2
    ended = CliRunner().invoke(app, ["simulate", "--resume", str(tmp_path / "run")])
    assert "has ended" in ended.output
    assert (tmp_path / "run" / "report.json").read_bytes() == before


def test_faults_of_all_sites_are_told_at_once(tmp_path: Path) -> None:
    settings, data_set = read_scenario(scenario_file(tmp_path, private=True), home=tmp_path / "home")
    for site in ("north", "west"):
        manifest = data_set / "sites" / site / "metadata.jsonl"
        manifest.write_text(manifest.read_text(encoding="utf-8").replace('"label": "a"', '"label": "x"'))

    with pytest.raises(RunError, match=r"(?s)faults at 2 of 3 sites.*north.*west") as told:
        prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")

    assert str(told.value).count("Check again with: motet check") == 2
    assert not (tmp_path / "run").exists()


def test_a_ray_cluster_is_named_for_runs_of_the_flower_engine_only(tmp_path: Path) -> None:
    settings, data_set = read_scenario(scenario_file(tmp_path, private=False), home=tmp_path / "home")
    prepare_run(settings, data_set=data_set, folder=tmp_path / "run", engine="local")
    with pytest.raises(RunError, match="a run of the engine local; leave --ray-address away"):
        run_simulation(tmp_path / "run", ray_address="127.0.0.1:6379")
    given = ["simulate", str(tmp_path / "scenario.toml"), "--ray-address", "127.0.0.1:6379"]
    assert "of the engine flower" in CliRunner().invoke(app, given).output
    assert not (tmp_path / "runs").exists()
