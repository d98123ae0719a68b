"""What a server app says during a deployment's run stands in the run's folder, and is read on by whoever follows."""

import logging
import re
from pathlib import Path

import pytest

from server.failure import noted_failure, read_failure
from server.run_log import FILE_NAME, LogReader, run_log
from shared.errors import RunError


def test_warnings_and_told_lines_stand_in_the_file_with_their_time(tmp_path: Path) -> None:
    with run_log(tmp_path) as say:
        say("paused before round 2: 50% are there")
        logging.getLogger("motet.server").warning("%s gave\nno counts", "north")
    logging.getLogger("motet.server").warning("afterwards")

    lines = (tmp_path / FILE_NAME).read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", "", line) for line in lines] == [
        "WARNING paused before round 2: 50% are there",
        "WARNING north gave no counts",
    ]


def test_a_reader_reads_on_and_repeats_nothing(tmp_path: Path) -> None:
    early = LogReader(tmp_path)
    assert early.new_lines() == []
    with run_log(tmp_path) as say:
        say("one")
        late = LogReader(tmp_path)
        say("two")
        assert (early.new_lines(), late.new_lines()) == (["one", "two"], ["two"])
        say("three")
        assert (early.new_lines(), late.new_lines()) == (["three"], ["three"])
    assert early.new_lines() == []


def test_half_a_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    reader, path = LogReader(tmp_path), tmp_path / FILE_NAME
    path.write_text("t WARNING on", encoding="utf-8")
    assert reader.new_lines() == []
    path.write_text("t WARNING one\nt WARN", encoding="utf-8")
    assert reader.new_lines() == ["one"]


def test_an_error_that_nobody_thought_of_is_written_down_with_the_line_that_raised_it(tmp_path: Path) -> None:
    with run_log(tmp_path), pytest.raises(ZeroDivisionError), noted_failure(tmp_path):
        1 / 0  # noqa: B018
    (line,) = (tmp_path / FILE_NAME).read_text(encoding="utf-8").splitlines()
    assert re.search(
        r"ERROR the run ended \| Traceback .*test_run_log.py.* \| ZeroDivisionError: division by zero$", line
    )
    assert "ZeroDivisionError: division by zero; see the server's log" in (read_failure(tmp_path) or "")


def test_an_error_of_our_own_says_all_without_one(tmp_path: Path) -> None:
    with run_log(tmp_path), pytest.raises(RunError), noted_failure(tmp_path):
        raise RunError("too few sites")
    assert (tmp_path / FILE_NAME).read_text(encoding="utf-8") == ""
    assert read_failure(tmp_path) == "too few sites"
