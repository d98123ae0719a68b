"""Flower engine: Flower's own simulation, several processes through Ray; the same two apps, unchanged.

in        the server app, the client app, the site files
out       the server app has run; an exception of its own comes through; no process of Ray's is left
relies on Ray's workers inheriting this process's environment, where the list of site files is named
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.app import SIMULATED_SITES_VARIABLE

SITES_FILE = "sites.txt"
_CHECKOUT = Path(__file__).resolve().parents[2]


def run_in_flower(server_app: ServerApp, client_app: ClientApp, *, sites: Sequence[Path], folder: Path) -> None:
    """Run a federation to its end in Flower's simulation on this machine, one site a core at a time.

    Raises:
        MotetError: whatever stopped the server app, as it was raised there; what a site does cannot.
        RuntimeError: Ray could not be started, or Flower's simulation failed by itself.
    """
    listed = folder / SITES_FILE
    listed.write_text("".join(f"{site.resolve()}\n" for site in sites), encoding="utf-8")
    added = {
        SIMULATED_SITES_VARIABLE: str(listed.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # the value that Ray announces for its next release; without it every run opens with a FutureWarning
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH", "")])),
    }
    with _environment(added), _errors_only("flwr"):
        import ray
        from flwr.simulation import run_simulation

        try:
            run_simulation(
                server_app,
                client_app,
                num_supernodes=len(sites),
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    "init_args": {"include_dashboard": False},
                },
            )
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """Variables for this process and those it starts; all as before afterwards, also what Flower adds to them."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """One logger without its notices: Flower prefers `flwr run` to this entry point (docs/decisions/0001)."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
