"""A whole private run of sites with keys, one of which comes late: rounds, ledgers, report and its verification agree."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from flwr.app import Message, MessageType
from rich.console import Console

from client.app import app as client_app
from client.site import read_site
from server import latecomers
from server.app import app as server_app
from server.enrolment import enrol
from server.handshake import read_handshake
from server.report.closing import closing_table
from server.report.html import read_record
from server.report.verify import verify
from server.roster import first_rounds
from server.settings import read_settings, write_settings
from shared.errors import RunError
from shared.keys import new_key, private_text, public_line, write_secret
from shared.privacy.ledger import Ledger
from simulations.engine.local import LocalGrid, run_over
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run
from tests.simulations.runs import scenario_file
from tests.tiny import PRIVACY, SITES

ROUNDS = 5
LATE, *EARLY = sorted(SITES)


class LateGrid(LocalGrid):
    """The first site is on line from the middle of a round on; others go where a test has them go."""

    def __init__(
        self, sites: Sequence[Path], *, from_round: int, gone: Sequence[str] = (), killed_in: int | None = None
    ) -> None:
        super().__init__(client_app, sites=sites)
        self._from, self._gone, self._killed_in, self.round = from_round, gone, killed_in, 0

    def get_node_ids(self) -> Iterable[int]:
        away = {*self._gone, *([LATE] if self.round < self._from else [])}
        return [node for node, path in self._sites.items() if path.stem not in away]

    def replies(self, messages: Sequence[Message]) -> Iterator[Message]:
        for message in messages:
            if message.metadata.message_type == MessageType.TRAIN:
                self.round = int(message.metadata.group_id)
                if self.round == self._killed_in:
                    raise RunError("killed")
            yield self._deliver(message)


def prepared(folder: Path, **federation: object) -> tuple[Path, list[Path]]:
    """A run folder whose sites have keys, and their settings."""
    changes = {
        "federation": {"rounds": ROUNDS, "wait_for_sites_s": 0.1, **federation},
        "privacy": {**PRIVACY, "epsilon": 4.0},
    }
    scenario, data = read_scenario(scenario_file(folder, private=True, changes=changes), home=folder / "home")
    settings = prepare_run(scenario, data_set=data, folder=folder / "run", engine="local")
    sites = sorted((folder / "run" / "sites").glob("*.toml"))
    for path in sites:
        name, key = path.stem, new_key()
        (folder / f"{name}.pub").write_text(public_line(key.public_key(), name=name), encoding="utf-8")
        enrol(folder / f"{name}.pub", folder=folder / "enrolled", days=None)
        write_secret(path.with_suffix(".key"), private_text(key))
        path.write_text(f'{path.read_text("utf-8")}\n[agent]\nkey = "{name}.key"\n', encoding="utf-8")
    write_settings(settings.model_copy(update={"enrolled": folder / "enrolled"}), folder=folder / "run")
    return folder / "run", sites


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latecomers, "AGAIN_S", 0.0)


def run(folder: Path, grid: LateGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_RUN_FOLDER", str(folder))
    run_over(grid, server_app)


def charged(folder: Path, site: Path) -> list[int]:
    settings = read_site(site)
    rows = Ledger(settings.ledger).rows(settings.data_set, run_id=read_settings(folder).run_id)
    return [row.round_number for row in rows if row.state != "void"]


def test_a_run_with_a_late_site_ends_with_a_report_that_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sites = prepared(tmp_path)
    # it comes while round 1 is on, is asked before round 2, and heard before round 3
    run(folder, LateGrid(sites, from_round=1), monkeypatch)
    assert first_rounds(folder) == {**dict.fromkeys(EARLY, 1), LATE: 3}
    assert {path.stem: charged(folder, path) for path in sites} == {
        **{name: [1, 2, 3, 4, 5] for name in EARLY}, LATE: [3, 4, 5],
    }  # fmt: skip
    record = read_record(folder)
    assert record.sites == tuple(sorted(SITES))
    # calibrated for the three rounds that were left, and within the run's epsilon
    plans = {plan.site: plan for plan in record.privacy}
    assert plans[LATE].epsilon <= 4.0
    assert plans[LATE].noise_multiplier < plans[EARLY[0]].noise_multiplier
    assert plans[LATE].steps * 5 == plans[EARLY[0]].steps * 3
    checked = verify(folder)
    assert checked.is_sound, [check for check in checked.checks if check.verdict in {"differs", "not checked"}]
    page = (folder / "report.html").read_text("utf-8")
    assert f"Came on line after the run had begun: {LATE} from round 3 on." in page
    console = Console(record=True, width=200)
    console.print(closing_table(record, folder=folder))
    assert f"{len(SITES)} of {len(SITES)} contributed; {LATE} from round 3 on" in console.export_text()
    found = read_handshake(folder)
    assert found is not None
    assert {each.site: each.code for each in found.introductions} == dict.fromkeys(SITES)


def test_a_run_that_nobody_joins_late_says_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sites = prepared(tmp_path)
    run(folder, LateGrid(sites, from_round=0), monkeypatch)
    assert set(first_rounds(folder).values()) == {1}
    assert "Came on line after" not in (folder / "report.html").read_text("utf-8")
    assert verify(folder).is_sound


def test_a_run_resumed_with_other_sites_asks_nobody_more_often_than_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two of three in a round, a schedule of the two that are back would ask each of them in every round."""
    folder, sites = prepared(tmp_path, sites_per_round=2)
    with pytest.raises(RunError, match="killed"):
        run(folder, LateGrid(sites, from_round=0, killed_in=3), monkeypatch)
    run(folder, LateGrid(sites, from_round=0, gone=EARLY[:1]), monkeypatch)
    record = read_record(folder)
    assert not [line for each in record.rounds for line in each.sites if line.outcome == "refused"]
    assert record.sites == tuple(sorted(SITES))
