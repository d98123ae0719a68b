"""The disk of a site's agent is full: it answers with a code, tells its owner where, and goes on when there is room."""

from pathlib import Path

from tests.client.asking import rows_of, site_file
from tests.client.resident.agents import agent_process, asked, same, train_records
from tests.no_space import fill, small_disk


def test_an_agent_whose_disk_is_full_refuses_and_answers_again_when_there_is_room(tmp_path: Path) -> None:
    """A real process on a file system of its own, which holds ledger, answers and journal."""
    site = tmp_path / "site"
    site.mkdir()
    with small_disk(site):
        path = site_file(site)
        with agent_process(path) as process:
            first = asked(path, train_records())
            assert first.code is None
            fill(site)
            for number in (2, 3):
                assert asked(path, train_records(number=number)).code == "ledger-invalid"
            # what has left is said again, and nothing new is written
            assert same(first, asked(path, train_records()))
            assert [row.state for row in rows_of(site)] == ["released"]
            (site / "filler").unlink()
            assert asked(path, train_records(number=2)).code is None
            assert process.is_alive()
        assert [row.state for row in rows_of(site)] == ["released"] * 2
        # and an answer alone that does not fit is not sent, and paid for once
        with agent_process(path):
            fill(site, but=16 * 1024)
            assert asked(path, train_records(number=3)).code == "ledger-invalid"
            (site / "filler").unlink()
            assert asked(path, train_records(number=3)).code is None
        rows = rows_of(site)
        assert {row.round_number for row in rows if row.state == "released"} == {1, 2, 3}
