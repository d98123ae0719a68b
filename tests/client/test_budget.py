"""Tests of client/ledger.py, outlook.py, ledger_table.py and `motet budget`: what an owner is told is what the ledger does."""

import io
import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import motet
from client.ledger import Budget, LedgerListing, budget_of, list_ledger
from client.ledger_table import render_budget, render_listing
from client.outlook import Outlook
from client.plan import counts_use
from shared.config import RunConfig, StatisticsSettings, Unit
from shared.errors import BudgetError, ConfigError, LedgerError
from shared.privacy import ledger_transaction as ledger_module
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger
from tests.tiny import CARD, PRIVACY, tiny_config, tiny_run

USE = MechanismUse(2.0, 1.0, 1)
VERSION_1 = Path(__file__).parent / "ledger-version-1.sqlite"
NAME = "north-2026"


def site_file(folder: Path, *, data_set: str = NAME, **privacy: object) -> Path:
    """An owner's settings; nothing else of a site is needed to look at its budget."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "dataset.toml").write_text(CARD, encoding="utf-8")
    values = {
        "name": "north", "data": "data", "data_set": data_set, "nominal_size": 40, "nominal_subjects": 20,
        "modalities": ["left", "right"], "ledger": "ledger.sqlite", "cache": "cache",
    }  # fmt: skip
    owner = {"epsilon": 8.0, "delta": 1e-3, **privacy}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["[privacy]", *(f"{key} = {json.dumps(value)}" for key, value in owner.items())]
    (folder / "site.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "site.toml"


def charge(
    folder: Path,
    *numbers: int,
    run_id: str = "run",
    use: MechanismUse | None = USE,
    unit: Unit = "record",
    data_set: str = NAME,
    cap_epsilon: float = math.inf,
) -> Ledger:
    ledger = Ledger(folder / "ledger.sqlite")
    for number in numbers:
        ledger.reserve(
            data_set=data_set, unit=unit, use=use, run_id=run_id, round_number=number, cap_epsilon=cap_epsilon,
            delta=1e-3, accountant="pld",
        )  # fmt: skip
    return ledger


def epsilon(*uses: MechanismUse) -> float:
    return spent_epsilon(uses, delta=1e-3, accountant="pld")


def outlook(path: Path, run: RunConfig) -> Outlook:
    found = budget_of(path, plan=run).outlook
    assert found is not None
    return found


def shown(budget: Budget) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_budget(budget))
    return console.export_text()


def test_a_ledger_not_begun_has_spent_nothing_and_is_not_begun_by_looking(tmp_path: Path) -> None:
    budget = budget_of(site_file(tmp_path), plan=None)

    assert (budget.is_begun, budget.spent_epsilon, budget.left_epsilon, budget.runs) == (False, 0.0, 8.0, ())
    assert budget.rows == {"reserved": 0, "released": 0, "void": 0}
    assert "There is no ledger at" in shown(budget)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_budget_tells_the_whole_the_runs_and_the_months(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epsilon of the whole is that of all rows; parts are theirs alone, and add up to more."""
    path, day = site_file(tmp_path), ["2026-10-30"]
    monkeypatch.setattr(ledger_module, "_now", lambda: f"{day[0]}T12:00:00+00:00")
    charge(tmp_path, 1, 2, run_id="first")
    day[0] = "2026-11-02"
    charge(tmp_path, 3, run_id="first")
    ledger = charge(tmp_path, 1, run_id="second", use=MechanismUse(4.0, 0.5, 2))
    charge(tmp_path, 1, run_id="third")
    ledger.void(ledger_row(ledger, "third"))
    ledger.release(ledger_row(ledger, "second"))
    charge(tmp_path, 1, data_set="south")
    budget, other = budget_of(path, plan=None), MechanismUse(4.0, 0.5, 2)

    assert budget.spent_epsilon == epsilon(USE, USE, USE, other)
    assert budget.left_epsilon == 8.0 - budget.spent_epsilon
    assert budget.rows == {"reserved": 3, "released": 1, "void": 1}
    assert budget.others == ("south",)
    assert [(run.name, run.rounds, run.epsilon) for run in budget.runs] == [
        ("first", 3, epsilon(USE, USE, USE)),
        ("second", 1, epsilon(other)),
    ]
    assert (budget.runs[0].first_utc[:10], budget.runs[0].last_utc[:10]) == ("2026-10-30", "2026-11-02")
    assert [(month.name, month.rounds, month.epsilon) for month in budget.months] == [
        ("2026-10", 2, epsilon(USE, USE)),
        ("2026-11", 2, epsilon(USE, other)),
    ]
    assert sum(month.epsilon for month in budget.months) > budget.spent_epsilon
    text = shown(budget)
    assert "do not add up" in text
    assert f"{budget.spent_epsilon:.4g}" in text


def ledger_row(ledger: Ledger, run_id: str) -> ledger_module.Reservation:
    row = ledger.rows(NAME, run_id=run_id)[0]
    return ledger_module.Reservation(row.id, NAME, run_id, row.round_number, row.attempt, row.use, 0.0)


def test_a_budget_without_bound_is_valid_json_and_comes_back(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    charge(tmp_path, 1, use=None)
    budget = budget_of(path, plan=tiny_config(private=True))
    assert (budget.spent_epsilon, budget.left_epsilon) == (math.inf, 0.0)
    assert "Spent without bound" in shown(budget)
    assert budget.outlook is not None
    assert (budget.outlook.fate, budget.outlook.next_round_epsilon) == ("refused", None)

    text = budget.model_dump_json()
    table = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert table["spent_epsilon"] == table["runs"][0]["epsilon"] == "infinite"
    assert Budget.model_validate_json(text) == budget


def test_rows_for_records_leave_an_owner_of_subjects_without_bound(tmp_path: Path) -> None:
    charge(tmp_path, 1)
    assert budget_of(site_file(tmp_path, unit="subject"), plan=None).spent_epsilon == math.inf

    charge(tmp_path, 1, data_set="patients", unit="subject")
    assert budget_of(site_file(tmp_path, data_set="patients", unit="subject"), plan=None).spent_epsilon == epsilon(USE)


def test_a_renamed_data_set_is_noticed(tmp_path: Path) -> None:
    charge(tmp_path, 1)
    budget = budget_of(site_file(tmp_path, data_set="north-2027"), plan=None)

    assert (budget.spent_epsilon, budget.others) == (0.0, (NAME,))
    assert "Was data_set renamed?" in shown(budget)


@pytest.mark.parametrize("statistics", [None, StatisticsSettings(noise_multiplier=3.0)])
@pytest.mark.parametrize("spent_rounds", [0, 8])
def test_what_the_outlook_says_is_what_the_ledger_grants(
    tmp_path: Path, spent_rounds: int, statistics: StatisticsSettings | None
) -> None:
    """Its rounds are charged until the ledger refuses: growth, number and total are those foretold."""
    path = site_file(tmp_path, on_short_budget="fewer-rounds")
    charge(tmp_path, *range(spent_rounds), run_id="before")
    run = tiny_config(private=True, **({"statistics": statistics.model_dump()} if statistics else {}))
    told = outlook(path, run)
    assert told.noise_multiplier is not None
    assert told.next_round_epsilon is not None
    use = MechanismUse(told.noise_multiplier, 0.5, 2)

    before = budget_of(path, plan=None).spent_epsilon
    if statistics:
        charge(tmp_path, 0, use=counts_use(statistics, least_noise=0.3), cap_epsilon=8.0)
        after = budget_of(path, plan=None).spent_epsilon
        assert told.counts_epsilon == after - before
        before = after
    granted = 0
    for number in range(1, 4):
        try:
            charge(tmp_path, number, use=use, cap_epsilon=8.0)
        except BudgetError:
            break
        granted += 1
        if granted == 1:
            assert budget_of(path, plan=None).spent_epsilon - before == told.next_round_epsilon
    assert granted == told.rounds_that_fit
    assert told.total_epsilon == budget_of(path, plan=None).spent_epsilon
    assert told.fate == ("fits" if granted == 3 else "fewer-rounds")
    assert (spent_rounds == 0) == (told.fate == "fits")


def test_the_outlook_follows_the_owners_choice_on_a_short_budget(tmp_path: Path) -> None:
    charge(tmp_path, *range(8))
    run, told = tiny_config(private=True), {}
    for choice in ("refuse", "fewer-rounds", "more-noise"):
        told[choice] = outlook(site_file(tmp_path, on_short_budget=choice), run)

    assert {choice: each.fate for choice, each in told.items()} == {
        "refuse": "refused", "fewer-rounds": "fewer-rounds", "more-noise": "more-noise",
    }  # fmt: skip
    assert 'on_short_budget is "refuse"' in told["refuse"].what_happens
    # refused as it is, yet its owner is told what would fit
    assert told["refuse"].rounds_that_fit == told["fewer-rounds"].rounds_that_fit < 3
    assert told["more-noise"].rounds_that_fit == 3
    assert (told["more-noise"].noise_multiplier or 0) > (told["fewer-rounds"].noise_multiplier or math.inf)
    for choice in ("fewer-rounds", "more-noise"):
        assert (told[choice].total_epsilon or math.inf) <= 8.0


def test_nothing_fits_into_a_spent_budget(tmp_path: Path) -> None:
    charge(tmp_path, *range(30))
    for choice in ("refuse", "fewer-rounds", "more-noise"):
        told = outlook(site_file(tmp_path, on_short_budget=choice), tiny_config(private=True))
        assert (told.fate, told.rounds_that_fit) == ("refused", 0)
    assert budget_of(tmp_path / "site.toml", plan=None).left_epsilon == 0.0


def test_what_the_owner_does_not_permit_is_foretold(tmp_path: Path) -> None:
    subjects = tiny_config(private=True, privacy={**PRIVACY, "unit": "subject"})
    sites = tiny_config(private=True, privacy={**PRIVACY, "unit": "site", "trust": "server"})
    path = site_file(tmp_path)
    for run, said in (
        (subjects, "privacy.unit"),
        (sites, "privacy.trust_server"),
        (tiny_config(private=False), "privacy.allow_non_private"),
    ):
        told = outlook(path, run)
        assert (told.fate, told.rounds_that_fit) == ("refused", 0)
        assert said in told.what_happens

    assert outlook(site_file(tmp_path, unit="subject"), subjects).fate == "fits"
    for run in (sites, tiny_config(private=False)):
        told = outlook(site_file(tmp_path, trust_server=run is sites, allow_non_private=run is not sites), run)
        assert (told.fate, told.total_epsilon) == ("without-noise", math.inf)


def test_a_ledger_alone_lists_its_data_sets(tmp_path: Path) -> None:
    charge(tmp_path, 1, 2)
    charge(tmp_path, 1, data_set="patients", unit="subject")
    charge(tmp_path, 2, data_set="patients", unit="record")
    charge(tmp_path, 1, data_set="federation", unit="site")
    listing = list_ledger(tmp_path / "ledger.sqlite", delta=1e-3)

    half = MechanismUse(1.0, 1.0, 1)
    assert [(each.data_set, each.unit, each.epsilon) for each in listing.data_sets] == [
        ("federation", "site", epsilon(USE)),
        (NAME, "record", epsilon(USE, USE)),
        ("patients", "record", epsilon(half, USE)),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_listing(listing))
    assert "patients" in console.export_text()


def called(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(motet.app, ["budget", *map(str, arguments)])
    return result.exit_code, result.output, result.exception


def scenario_file(folder: Path, **changes: object) -> Path:
    """A scenario whose data set would have to be built, and need not be."""

    def lines(table: dict[str, object], name: str) -> list[str]:
        plain = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
        inner = [lines(value, f"{name}.{key}") for key, value in table.items() if isinstance(value, dict)]
        return [f"[{name}]", *plain, *(line for each in inner for line in each)]

    run = {key: value for key, value in tiny_run(private=True, **changes).items() if key != "data"}
    text = ['about = "tiny"', "[source]", 'builder = "moods"', *lines(run, "run")]
    (folder / "scenario.toml").write_text("\n".join(text), encoding="utf-8")
    return folder / "scenario.toml"


def test_the_command_shows_a_budget_and_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    path, scenario = site_file(tmp_path), scenario_file(tmp_path)
    code, text, _ = called(path, "--run", scenario, "--set", "run.federation.rounds=5")
    assert code == 0
    assert "5 of 5" in text

    _, text, _ = called(path, "--run", scenario, "--json")
    assert Budget.model_validate_json(text) == budget_of(path, plan=tiny_config(private=True))
    charge(tmp_path, 1)
    _, text, _ = called("--ledger", tmp_path / "ledger.sqlite", "--delta", "1e-3", "--json")
    assert LedgerListing.model_validate_json(text).data_sets[0].epsilon == epsilon(USE)
    assert not (tmp_path / "home").exists()


def test_the_command_says_which_options_go_together(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    for arguments in (
        (),
        (path, "--ledger", path, "--delta", "1e-3"),
        ("--ledger", path),
        (path, "--delta", "1e-3"),
        (path, "--set", "run.seed=1"),
        (path, "--accountant", "guess"),
    ):
        assert called(*arguments)[0] == 2, arguments
    assert isinstance(called(tmp_path / "none.toml")[2], ConfigError)
    assert isinstance(called("--ledger", tmp_path / "none.sqlite", "--delta", "1e-3")[2], LedgerError)
    assert not (tmp_path / "none.sqlite").exists()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000] + b"\x17" * 20_000)


def make_newer(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(damage, "restore the newest copy"), (make_newer, "Update the program"), (make_foreign, "give another path")],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_way_out(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    path = site_file(tmp_path)
    charge(tmp_path, *range(20))
    spoil(tmp_path / "ledger.sqlite")
    before = (tmp_path / "ledger.sqlite").read_bytes()

    code, _, error = called(path)
    assert code == 1
    assert isinstance(error, LedgerError)
    assert said in str(error)
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_the_budget_of_an_old_ledger_is_shown(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(VERSION_1.read_bytes())
    budget = budget_of(path, plan=None)

    assert budget.spent_epsilon == epsilon(MechanismUse(1.3, 0.25, 12), MechanismUse(2.0, 0.5, 2))
    assert [(run.name, run.rounds) for run in budget.runs] == [("first", 3), ("second", 1)]
