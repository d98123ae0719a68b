"""Benchmark of records and reports: what a run of many sites and rounds costs to write down, to read and to look at.

in        `python -m simulations.bench.report [--sites N] [--rounds N] [--verify]`
out       a line of JSON: bytes of each file, CPU seconds of each step, seconds until a browser has laid out the page
relies on made-up rounds of the shape that a run writes; a browser is used where one is found, or left out
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from server.history import LastReplies, metrics_line
from server.records import Estimate, Evaluation, RoundRecord, RunRecord, Scores, SitePrivacy, SiteRound
from server.report.html import read_report, render, write_report
from server.report.verify import verify
from server.settings import ServerSettings, write_settings
from shared.config import RunConfig
from shared.messages import PrivacyStatement, ReplyHeader

Result = TypeVar("Result")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
DELTA, MECHANISMS, EVERY_ABSENT = 1e-5, 20, 50
FIELDS = tuple(f"update.encoders.image.layers.{number}.weight" for number in range(12))


def made_run(*, sites: int, rounds: int) -> RunRecord:
    """A run of so many sites and rounds; epsilons differ in every site and round, one reply in fifty is missing."""
    run, names = _run(rounds), tuple(f"site-{number:05d}" for number in range(sites))
    scores = Scores(num_samples=600, metrics={"macro_f1": Estimate(value=0.8, low=0.77, high=0.83)})
    return RunRecord(
        run=run,
        card=None,
        engine="local",
        reproducible_noise=False,
        started="2026-03-01T09:30:00+00:00",
        seconds=600.0,
        peak_memory_bytes=1_000_000_000,
        versions={"motet": "bench"},
        stopped="completed",
        chosen_round=rounds,
        rounds=tuple(_rounds(names, rounds=rounds)),
        privacy=tuple(_plan(site, index=index, rounds=rounds) for index, site in enumerate(names)),
        test=Evaluation(part="test", overall=scores),
        validation=Evaluation(part="validation", overall=scores),
        num_parameters=48_210,
        sites=names,
    )


def measure(*, sites: int = 1_000, rounds: int = 500, with_verify: bool = False) -> dict[str, float | int | None]:
    """Bytes and seconds for a run of so many sites and rounds; times are CPU seconds, the browser's wall seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = made_run(sites=sites, rounds=rounds)
        line_s, _ = _timed(lambda: metrics_line(record.rounds[-1]))
        journal_s, _ = _timed(lambda: _write_lines(record, folder))
        found: dict[str, float | int | None] = {"sites": sites, "rounds": rounds, "round_line_s": line_s}
        found |= {"all_lines_s": journal_s, "write_report_s": _timed(lambda: write_report(record, folder))[0]}
        del record
        read_s, report = _timed(lambda: read_report(folder))
        found |= {"read_s": read_s, "render_s": _timed(lambda: render(report.record))[0]}
        if with_verify:
            _settle(report.record, folder)
            found["verify_s"] = _timed(lambda: verify(folder))[0]
        for file in ("metrics.jsonl", "report.json", "report.html"):
            found[f"{file}_bytes"] = (folder / file).stat().st_size
        found["open_in_browser_s"] = opening_seconds(folder / "report.html")
        return found


def opening_seconds(page: Path) -> float | None:
    """Wall seconds in which a browser starts, lays the page out and ends, less those of an empty page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return None
    empty = page.with_name("empty.html")
    empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")
    begun, ended = [_opened(browser, each) for each in (empty, page)]
    return round(ended - begun, 2)


def _opened(browser: str, page: Path) -> float:
    with tempfile.TemporaryDirectory() as profile:
        began = time.perf_counter()
        subprocess.run(  # noqa: S603  the browser and a page that was written here
            [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=True,
            env={**os.environ, "HOME": profile},
        )
        return time.perf_counter() - began


def _rounds(names: tuple[str, ...], *, rounds: int) -> Iterator[RoundRecord]:
    said = LastReplies()
    for number in range(1, rounds + 1):
        entries = tuple(_entry(site, index=index, number=number) for index, site in enumerate(names))
        scores = Scores(num_samples=300, metrics={"macro_f1": Estimate(value=0.8 * (1 - math.exp(-number / 50)))})
        yield said.shortened(
            RoundRecord(round=number, seconds=1.2, sites=entries, validation=scores, update_norm=1 / number)
        )


def _entry(site: str, *, index: int, number: int) -> SiteRound:
    if (index + number) % EVERY_ABSENT == 0:
        return SiteRound(site=site, outcome="failed", code="internal")
    epsilon = _epsilon(index, number=number)
    return SiteRound(
        site=site,
        outcome="used",
        epsilon=epsilon,
        update_bytes=192_840,
        fields=FIELDS,
        header=_header(index, number=number, epsilon=epsilon),
    )


def _header(index: int, *, number: int, epsilon: float) -> ReplyHeader:
    statement = PrivacyStatement.model_construct(
        unit="record",
        epsilon=epsilon,
        delta=DELTA,
        clipping="flat",
        clip_norm=1.0,
        noise_multiplier=_noise(index),
        sample_rate=0.08,
        steps_per_round=2,
        accountant="rdp",
        noise="float64",
        reproducible_noise=False,
        cap_epsilon=10.0,
        epsilon_before=0.0,
    )
    return ReplyHeader.model_construct(
        protocol_version=2,
        run_id="bench",
        round_number=number,
        nominal_size=400,
        privacy=statement,
        unclipped_share=None,
        is_within_clip=None,
    )


def _noise(index: int) -> float:
    return 4.0 + index % MECHANISMS / 10


def _epsilon(index: int, *, number: int) -> float:
    return 0.01 * (1 + index / 1_000) * math.sqrt(number)


def _plan(site: str, *, index: int, rounds: int) -> SitePrivacy:
    epsilon = _epsilon(index, number=rounds)
    return SitePrivacy(
        site=site,
        unit="record",
        epsilon=epsilon,
        delta=DELTA,
        noise_multiplier=_noise(index),
        sample_rate=0.08,
        steps=rounds * 2,
        nominal_size=400,
        accountant="rdp",
        second_epsilon=epsilon * 0.93,
        run_epsilon=epsilon,
        epsilon_before=0.0,
        cap_epsilon=10.0,
    )


def _run(rounds: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "many_sites",
            "seed": 0,
            "data": {
                "task": "single-label",
                "labels": ("calm", "cheerful", "cross", "sad"),
                "modalities": {"image": {"kind": "features", "width": 8}},
                "groups": (),
            },
            "model": {"embedding_width": 8, "encoders": {"image": {"name": "linear"}}, "fusion": {"name": "mean"}},
            "training": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 32, "local_epochs": 1},
            "privacy": {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": DELTA, "clip_norm": 1.0},
            "federation": {"rounds": rounds},
        }
    )


def _write_lines(record: RunRecord, folder: Path) -> None:
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(metrics_line(each) + "\n" for each in record.rounds)


def _settle(record: RunRecord, folder: Path) -> None:
    """server.json, without which nothing can be verified; the sites' ledgers are not here and are found missing."""
    write_settings(
        ServerSettings(
            run=record.run,
            run_id="bench",
            held_out=folder,
            cache=folder,
            card=None,
            engine=record.engine,
            num_sites=len(record.sites),
            started=record.started,
        ),
        folder=folder,
    )


def _timed(what: Callable[[], Result]) -> tuple[float, Result]:
    began = time.process_time()
    result = what()
    return round(time.process_time() - began, 3), result


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--verify", action="store_true", help="also the time to verify, without the sites' ledgers")
    asked = parser.parse_args()
    found = measure(sites=asked.sites, rounds=asked.rounds, with_verify=asked.verify)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
