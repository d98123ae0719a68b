"""Benchmark of the ledger: how long the epsilon of ten thousand rows takes, by few mechanisms and by many.

in        `python -m simulations.bench.ledger [--rows N] [--mechanisms M ...] [--accountants A ...]`
out       a line of JSON for each number of mechanisms and accountant, times in milliseconds
relies on a file system that syncs; a mechanism is a pair of noise multiplier and sampling rate, so usually a run
"""

import argparse
import importlib.metadata
import json
import math
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

from shared.privacy.accountant import Accountant, MechanismUse
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_file import LedgerFile

Result = TypeVar("Result")
DELTA, REPEATS, STEPS, SAMPLE_RATE = 1e-5, 15, 4, 0.1
DATA_SET, WHEN = "photos", "2026-11-22T00:00:00+00:00"


def fill(path: Path, *, rows: int, mechanisms: int) -> None:
    """Rows as so many runs leave them, each with a noise multiplier of its own, all of them released."""
    with LedgerFile(path, create=True).transaction() as connection:
        for row in range(rows):
            run, number = row % mechanisms, row // mechanisms
            values = (DATA_SET, noise(run, mechanisms=mechanisms), SAMPLE_RATE, STEPS, f"run-{run}", number, WHEN)
            connection.execute(
                "INSERT INTO reservations (data_set, unit, mechanism, noise_multiplier, sample_rate, steps, run_id, "
                "round, attempt, created_utc) VALUES (?, 'record', 'gaussian', ?, ?, ?, ?, ?, 0, ?)",
                values,
            )
            connection.execute("INSERT INTO endings VALUES (?, 'released', ?)", (row + 1, WHEN))


def noise(run: int, *, mechanisms: int) -> float:
    """Noise multipliers from 10 to 20: ten thousand rows of 4 steps then cost a total below 100."""
    return 10 * 2 ** (run / mechanisms)


def measure(*, rows: int, mechanisms: int, accountant: Accountant) -> dict[str, float | int | str]:
    """Times of one ledger; each time after the first, a row has been reserved since."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        fill(path, rows=rows, mechanisms=mechanisms)
        opening, ledger = _timed(lambda: Ledger(path))

        def ask() -> float:
            return ledger.spent(DATA_SET, unit="record", delta=DELTA, accountant=accountant)

        first, epsilon = _timed(ask)
        reserving, after_row, unchanged = [], [], []
        repeats = REPEATS if first < 5_000 else 3
        for repeat in range(repeats):
            run = repeat % mechanisms
            with LedgerFile(path, create=False).transaction() as connection:
                connection.execute(
                    "INSERT INTO reservations (data_set, unit, mechanism, noise_multiplier, sample_rate, steps, "
                    "run_id, round, attempt, created_utc) VALUES (?, 'record', 'gaussian', ?, ?, ?, ?, ?, 0, ?)",
                    (DATA_SET, noise(run, mechanisms=mechanisms), SAMPLE_RATE, STEPS, "new", repeat, WHEN),
                )
            after_row.append(_timed(ask)[0])
            unchanged.append(_timed(ask)[0])
            use = MechanismUse(noise(run, mechanisms=mechanisms), SAMPLE_RATE, STEPS)
            reserving.append(_reserved(ledger, use=use, number=repeat, accountant=accountant))
    return {
        "rows": rows,
        "mechanisms": mechanisms,
        "accountant": accountant,
        "epsilon": round(epsilon, 3),
        "open_ms": opening,
        "first_ms": first,
        "after_a_new_row_ms": round(statistics.median(after_row), 2),
        "unchanged_ms": round(statistics.median(unchanged), 2),
        "reserve_ms": round(statistics.median(reserving), 2),
        "repeats": repeats,
    }


def _timed(what: Callable[[], Result]) -> tuple[float, Result]:
    begin = time.perf_counter()
    result = what()
    return round((time.perf_counter() - begin) * 1e3, 2), result


def _reserved(ledger: Ledger, *, use: MechanismUse, number: int, accountant: Accountant) -> float:
    """Milliseconds of one charge: totals, check, row and sync."""
    spent_ms, _ = _timed(
        lambda: ledger.reserve(
            data_set=DATA_SET,
            unit="record",
            use=use,
            run_id="reserved",
            round_number=number,
            cap_epsilon=math.inf,
            delta=DELTA,
            accountant=accountant,
        )
    )
    return spent_ms


def main() -> None:
    """Prints a line for each combination."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--mechanisms", type=int, nargs="+", default=[20])
    parser.add_argument("--accountants", nargs="+", choices=get_args(Accountant), default=["rdp", "pld"])
    asked = parser.parse_args()
    packages = {name: importlib.metadata.version(name) for name in ("opacus", "dp-accounting", "numpy")}
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **packages}
    for mechanisms in asked.mechanisms:
        for accountant in asked.accountants:
            line = measure(rows=asked.rows, mechanisms=mechanisms, accountant=accountant)
            sys.stdout.write(json.dumps({**line, "machine": platform.machine(), "versions": versions}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
