"""Owners: what a simulated site says of itself is what its folder holds, and its file says what was checked."""

import json
import tomllib
from pathlib import Path

import pytest

from client.site import read_site
from shared.errors import ConfigError, ManifestError, RunError
from simulations.owners import as_toml, settings_of_owners
from simulations.scenario import Scenario, read_scenario
from tests.simulations.matching_runs import matching_run, write_matching_data
from tests.simulations.runs import scenario_file, toml
from tests.tiny import SITES


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Scenario, list[Path]]:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    scenario, data_set = read_scenario(scenario_file(tmp_path, private=True), home=tmp_path / "home")
    return scenario, sorted((data_set / "sites").iterdir())


def texts(given: tuple[Scenario, list[Path]], tmp_path: Path) -> dict[str, str]:
    scenario, sites = given
    return settings_of_owners(
        scenario, sites=sites, folder=tmp_path, sites_folder=tmp_path / "sites", extensions=[tmp_path / 'a "part".py']
    )


def test_a_site_reads_what_its_owner_is_made_to_say(given: tuple[Scenario, list[Path]], tmp_path: Path) -> None:
    scenario, sites = given
    for (name, text), folder in zip(texts(given, tmp_path).items(), sites, strict=True):
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
        site = read_site(tmp_path / f"{name}.toml")
        num_rows = len((folder / "metadata.jsonl").read_text().splitlines())
        assert (site.name, site.data_set, site.data) == (folder.name, folder.name, folder.resolve())
        assert (site.nominal_size, site.nominal_subjects) == (num_rows, num_rows // 4)
        assert site.modalities == SITES[name]
        assert site.ledger == (tmp_path / "ledger.sqlite").resolve()
        assert site.parts == ((tmp_path / 'a "part".py').resolve(),)
        assert scenario.run.local_privacy is not None
        assert site.privacy.epsilon == scenario.run.local_privacy.epsilon
        assert site.privacy.delta == scenario.run.local_privacy.delta


def test_toml_says_what_the_table_says() -> None:
    inner = {"small": 1e-300, "yes": True, "words": ["ä\n", '"quoted"', "\\", "\x7f"]}
    table: dict[str, object] = {"a": 1, "inner": inner, "b": 0.1, "none": []}
    assert tomllib.loads(as_toml(table)) == table


def test_faults_of_all_sites_are_told_at_once(given: tuple[Scenario, list[Path]], tmp_path: Path) -> None:
    _, sites = given
    (sites[0] / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(ManifestError, match=sites[0].name):
        texts(given, tmp_path)
    (sites[1] / "metadata.jsonl").unlink()
    with pytest.raises(RunError, match=f"faults at 2 of {len(sites)} sites"):
        texts(given, tmp_path)


def test_what_no_owner_may_say_is_told_with_the_file_it_would_stand_in(
    given: tuple[Scenario, list[Path]], tmp_path: Path
) -> None:
    scenario, sites = given
    owners = scenario.owners.model_copy(update={"delta": 0.5})
    with pytest.raises(ConfigError, match=rf"sites/{sites[0].name}\.toml, made from the scenario's"):
        texts((scenario.model_copy(update={"owners": owners}), sites), tmp_path)


def test_some_owners_say_otherwise_and_a_pattern_that_meets_nobody_is_told(
    given: tuple[Scenario, list[Path]], tmp_path: Path
) -> None:
    scenario, sites = given
    table = scenario.model_dump()
    table["owners"]["sites"] = {"n*": {"frozen": ["encoders.left.*"]}, "*": {"tasks": ["mood"]}}
    table["run"]["federation"]["weighting"] = "modality"
    changed = Scenario.model_validate(table)
    for name, text in texts((changed, sites), tmp_path).items():
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
        site = read_site(tmp_path / f"{name}.toml")
        assert site.frozen == (("encoders.left.*",) if name == "north" else ())
        assert site.tasks == (None if name == "north" else ("mood",))
        assert site.nominal_modality_sizes == dict.fromkeys(SITES[name], site.nominal_size)
    table["owners"]["sites"] = {"nowhere": {}}
    with pytest.raises(RunError, match=r"owners\.sites: \['nowhere'\] match no site; there are: north"):
        texts((Scenario.model_validate(table), sites), tmp_path)


def test_a_matching_with_sites_without_a_pair_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a site has one modality alone, nor where its rows have one of the two each."""
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    data = write_matching_data(tmp_path / "data")
    lines = ['about = "test"', "[source]", 'path = "data"', *toml("run", matching_run(private=True))]
    (tmp_path / "scenario.toml").write_text("\n".join(lines), encoding="utf-8")
    scenario, data_set = read_scenario(tmp_path / "scenario.toml", home=tmp_path / "home")
    sites = sorted((data_set / "sites").iterdir())
    assert set(texts((scenario, sites), tmp_path)) == {"north", "south"}

    def keep(site: str, *names: str) -> None:
        manifest = data / "sites" / site / "metadata.jsonl"
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        kept = [
            {key: value for key, value in row.items() if key in ("subject_id", f"{names[n % len(names)]}_file_name")}
            for n, row in enumerate(rows)
        ]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    keep("north", "left")
    with pytest.raises(RunError, match=r"1 of 2 sites have no row with both left and right: north\."):
        texts((scenario, sites), tmp_path)
    keep("south", "left", "right")
    with pytest.raises(RunError, match=r"2 of 2 sites have no row with both left and right: north, south\."):
        texts((scenario, sites), tmp_path)
