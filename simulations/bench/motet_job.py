"""Motet at the common job: a whole run, as `motet simulate` makes it, timed from round to round.

in        a data set of write_data_set, the model, the engine: python -m simulations.bench.motet_job DATA --model mlp
out       a line of times, as clock.py writes it; a round is all that lies between two ends of rounds: requests,
          training, aggregation, checkpoint, records
relies on simulations/simulate.py; what differs from peers/job.py is named here: batches are Poisson samples of expected
          size 10, two steps of them a round, because a batch whose size is certain has another privacy
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast, get_args
from unittest import mock

import numpy as np

from server import app as server_app
from server.progress import ProgressLine
from server.records import RoundRecord
from shared.config import RunConfig
from shared.errors import RunError
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.schema import DataCard, DataSchema, ModalitySchema
from shared.settings import parse_settings
from simulations.bench.clock import Clock
from simulations.bench.peers import job
from simulations.datasets.writer import TEST, VALIDATION, File, NewRow, writing
from simulations.engine import EngineName
from simulations.scenario import OwnerSettings, Scenario, SourceSettings
from simulations.simulate import prepare_run, run_simulation

PARTS = Path(__file__).with_name("motet_parts.py")
DELTA = 1e-5
LABELS = tuple(f"class-{number}" for number in range(job.LABELS))
SCHEMA = DataSchema(
    task="single-label",
    labels=LABELS,
    modalities={"picture": ModalitySchema(kind="features", width=job.SIDE * job.SIDE)},
)
CARD = DataCard(
    title="The common job: synthetic pictures of ten classes",
    generated=True,
    licence="CC0-1.0",
    citation="none",
    source="simulations/bench/peers/job.py",
    content=SCHEMA,
)


def write_data_set(target: Path, *, sites: int) -> Path:
    """The job's records as a data set of so many sites; beyond the job's clients, their records come again and again.

    Rows of equal content share one file by hard links, so that ten thousand sites need the disk space of a hundred.
    """
    pictures, labels = job.data()
    with tempfile.TemporaryDirectory(dir=target.parent) as spare, writing(target, card=CARD) as writer:
        files = [[Path(spare) / f"{client}-{row}.npy" for row in range(job.RECORDS)] for client in range(job.CLIENTS)]
        for client, of_client in enumerate(files):
            for row, file in enumerate(of_client):
                np.save(file, pictures[client, row].flatten().numpy())
        parts = {f"site-{site:05d}": site % job.CLIENTS for site in range(sites)}
        for part, client in (*parts.items(), (VALIDATION, 0), (TEST, 0)):
            for row, file in enumerate(files[client]):
                picture, label = File(".npy", file, link=True), LABELS[int(labels[client, row])]
                writer.add(part, NewRow(f"{row:02d}", values={"picture": picture}, targets={"label": label}))
        writer.finish(how_it_was_made="`python -m simulations.bench` draws them from a seed.")
    return target


def run_config(model: str, *, rounds: int, private: bool, sites: int) -> RunConfig:
    """The job in Motet's words."""
    encoder = {"name": "linear"} if model == "mlp" else {"name": "job-cnn"}
    privacy: object = "none"
    if private:
        use = MechanismUse(job.NOISE_MULTIPLIER, 1.0, rounds)
        privacy = {
            "unit": "site",
            "trust": "server",
            # what the job's noise costs over all rounds, found the other way round
            "epsilon": spent_epsilon([use], delta=DELTA, accountant="rdp"),
            "delta": DELTA,
            "clip_norm": job.CLIP_NORM,
            "accountant": "rdp",
        }
    table = {
        "name": "common_job",
        "seed": 0,
        "data": SCHEMA.model_dump(exclude_none=True),
        "model": {
            "embedding_width": job.HIDDEN,
            "encoders": {"picture": encoder},
            "fusion": {"name": "sum"},
            "head": {"name": "linear", "options": {"activation": "relu"}},
        },
        "training": {
            "optimizer": "sgd",
            "learning_rate": job.LEARNING_RATE,
            "batch_size": job.BATCH,
            "local_epochs": 1.0,
        },
        "privacy": privacy,
        "federation": {"rounds": rounds, "min_sites": sites, "select": "last"},
        "evaluation": {"every_rounds": 100_000, "bootstrap_samples": 0, "modality_subsets": False},
    }
    return parse_settings(RunConfig, table, place="the common job")


def main(words: Sequence[str] | None = None) -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", choices=sorted(job.MODELS), default="mlp")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--engine", choices=get_args(EngineName), default="cohort")
    options = parser.parse_args(words)
    sites = len(list((options.data / "sites").iterdir()))
    run = run_config(options.model, rounds=options.rounds, private=options.private, sites=sites)
    scenario = Scenario(about="common job", source=SourceSettings(path=options.data), owners=OwnerSettings(), run=run)
    clock = Clock()
    marked = mock.patch.object(server_app, "ProgressLine", partial(_Marked, clock=clock))
    with tempfile.TemporaryDirectory() as temporary, marked:
        # caches of the run must not outlive it, nor be warm from another
        os.environ["MOTET_HOME"] = str(Path(temporary) / "home")
        folder = Path(temporary) / "run"
        engine = cast("EngineName", options.engine)
        prepare_run(scenario, data_set=options.data.resolve(), folder=folder, engine=engine, extensions=[PARTS])
        run_simulation(folder, engine=engine)
        clock.tell(sites=float(sites))


class _Marked(ProgressLine):
    """Marks where rounds begin and end."""

    def __init__(self, *, run: RunConfig, done: int, clock: Clock) -> None:
        super().__init__(run=run, done=done)
        self._clock = clock
        clock.mark()

    def tell(self, record: RoundRecord) -> None:
        """As ever.

        Raises:
            RunError: a site gave nothing, so that the round's time is not the job's.
        """
        self._clock.mark()
        codes = {f"{site.outcome}: {site.code}" for site in record.sites if site.outcome not in ("used", "withheld")}
        if codes:
            raise RunError(f"round {record.round}: not all sites were used ({', '.join(sorted(codes))})")
        super().tell(record)


if __name__ == "__main__":
    main()
