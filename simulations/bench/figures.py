"""Single figures: noise, ledger, report and start-up, each beside what it is measured against.

in        python -m simulations.bench.figures noise|ledger|report|startup
out       a line of times for each contender
relies on noise.py, ledger.py, report.py and startup.py beside this file for what they measure
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from shared.privacy.accountant import Accountant
from shared.privacy.noise import secret_source
from simulations.bench import ledger, noise, report, startup
from simulations.bench.alternate import Job, alternate, reason, tell_all
from simulations.bench.clock import tell

NUMBERS, ROWS, MECHANISMS, SITES, ROUNDS = 100_000_000, 10_000, 20, 1_000, 500
NOISE = ("torch.randn float32", "Motet float32", "torch.randn float64", "Motet float64")
OPACUS = {"Opacus RDP": "rdp", "Opacus PRV": "prv"}
ACCOUNTANTS: dict[str, Accountant] = {"Motet RDP": "rdp", "Motet PLD": "pld"}
QUESTIONS = {"after a new row": "after_a_new_row_ms", "no new row": "unchanged_ms"}
LEDGER = (*OPACUS, *(f"{name}, {question}" for name in ACCOUNTANTS for question in QUESTIONS))
START = {
    "Motet, before the first round": "before_round_1",
    "of it imports": "imports",
    "of it owners' files": "prepare",
    "of it preflight": "preflight",
    "Motet, after the last round": "after",
}
REPORT = ("Motet write, processor time", "Motet read and render, processor time", "Motet open in a browser")


def size(whole: int, *, quick: bool, part: int = 10) -> int:
    """How much work is done."""
    return whole // part if quick else whole


def noises(*, numbers: int, budget_s: float) -> None:
    """So many normal numbers from a cipher's stream, and from torch's generator, which can be guessed.

    A million at a time in memory that is there: what is compared is not how the system hands out gigabytes.
    """
    made = dict[str, Callable[[], Job]]()
    for kind, dtype in noise.KINDS.items():
        out = torch.empty(min(numbers, noise.PIECE), dtype=dtype)
        pieces = -(-numbers // noise.PIECE)
        made[f"torch.randn {kind}"] = partial(_pieces, partial(torch.randn, out.shape, out=out), pieces)
        made[f"Motet {kind}"] = partial(_pieces, partial(secret_source().normal_into, out, std=1.0, kind=kind), pieces)
    tell_all(alternate({name: made[name] for name in NOISE}, budget_s=budget_s, least=3))


def ledgers(*, rows: int) -> None:
    """The epsilon of so many rows by 20 mechanisms; Opacus' accountants are given them merged, which is fastest."""
    history = [(ledger.noise(run, mechanisms=MECHANISMS), ledger.SAMPLE_RATE) for run in range(MECHANISMS)]
    merged = [(sigma, rate, rows // MECHANISMS * ledger.STEPS) for sigma, rate in history]
    for name, kind in OPACUS.items():
        try:
            _tell_opacus(name, kind=kind, history=merged)
        except Exception as error:  # noqa: BLE001  # whatever Opacus raises is what there is to tell
            tell(contender=name, why_not=reason(error))
    for name, accountant in ACCOUNTANTS.items():
        found = ledger.measure(rows=rows, mechanisms=MECHANISMS, accountant=accountant)
        first = {"first_s": float(found["first_ms"]) / 1e3, "epsilon": float(found["epsilon"])}
        for question, key in QUESTIONS.items():
            tell(contender=f"{name}, {question}", wall_s=[float(found[key]) / 1e3], numbers=first)


def reports(*, sites: int, rounds: int) -> None:
    """Writing, reading and opening the report of a run of so many sites and rounds."""
    found = {key: value for key, value in report.measure(sites=sites, rounds=rounds).items() if value is not None}
    sizes = {key: float(found[key]) for key in found if key.endswith("_bytes")}
    write, read, opening = REPORT
    for name, seconds in ((write, found["write_report_s"]), (read, found["read_s"] + found["render_s"])):
        tell(contender=name, wall_s=[seconds], cpu_s=[seconds], numbers=sizes)
    opened = found.get("open_in_browser_s")
    if opened is None:
        tell(contender=opening, why_not="no browser on this machine")
    else:
        tell(contender=opening, wall_s=[max(opened, 0.0)])


def start_up() -> None:
    """What `motet simulate moods` does before its first round, whole and by its parts."""
    found = startup.measure(repeats=1)
    for name, phase in START.items():
        tell(contender=name, wall_s=[found[f"{phase}_wall_s"]], cpu_s=[found[f"{phase}_cpu_s"]])


def _pieces(run: Job, pieces: int) -> Job:
    def all_of_them() -> None:
        for _ in range(pieces):
            run()

    return all_of_them


def _tell_opacus(name: str, *, kind: str, history: list[tuple[float, float, int]]) -> None:
    from opacus.accountants import create_accountant

    accountant = create_accountant(kind)
    accountant.history = list(history)
    wall, processor = time.perf_counter(), time.process_time()
    epsilon = float(accountant.get_epsilon(delta=ledger.DELTA))
    times = {"wall_s": [time.perf_counter() - wall], "cpu_s": [time.process_time() - processor]}
    tell(contender=name, **times, numbers={"epsilon": epsilon})  # type: ignore[arg-type]  # two of the keywords


def main() -> None:
    """Measure one kind and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("noise", "ledger", "report", "startup"))
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work")
    options = parser.parse_args()
    if options.kind == "noise":
        noises(numbers=size(NUMBERS, quick=options.quick, part=100), budget_s=1.0 if options.quick else 30.0)
    elif options.kind == "ledger":
        ledgers(rows=ROWS)
    elif options.kind == "startup":
        start_up()
    else:
        reports(sites=size(SITES, quick=options.quick), rounds=size(ROUNDS, quick=options.quick))


if __name__ == "__main__":
    main()
