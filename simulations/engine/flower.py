"""Flower engine: Flower's own simulation, several processes through Ray; the same two apps, unchanged.

in        the server app, the client app, the site files; the address of a Ray cluster, if not on this machine alone
out       the server app has run; an exception of its own comes through; no process of the run's is left
relies on workers being told the list of site files: they inherit it here, and on other machines Ray sets it for them
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
_TOLD_IF_SET = ("OMP_NUM_THREADS", "MOTET_HOME")
"""of this process's own variables, those that workers on other machines are told; here they inherit all"""


def run_in_flower(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    sites: Sequence[Path],
    folder: Path,
    ray_address: str | None = None,
) -> None:
    """Run a federation to its end in Flower's simulation, one site a core at a time.

    Args:
        sites: the site files.
        folder: of the run.
        ray_address: of a cluster whose machines' cores are used; this machine's alone, if not given.

    Raises:
        MotetError: whatever stopped the server app, as it was raised there; what a site does cannot.
        RunError: the cluster cannot be joined, or a machine of it cannot work for this run; nothing was trained.
        RuntimeError: Ray could not be started, or Flower's simulation failed by itself.
    """
    listed = folder / SITES_FILE
    listed.write_text("".join(f"{site.resolve()}\n" for site in sites), encoding="utf-8")
    added = {
        SIMULATED_SITES_VARIABLE: str(listed.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # the value that Ray announces for its next release; without it every run opens with a FutureWarning
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH", "")])),
    }
    with _environment(added), _errors_only("flwr"):
        import ray
        from flwr.simulation import run_simulation

        from simulations.engine.actor_pool import mended_flower
        from simulations.engine.ray_cluster import CORES_PER_SITE, joined

        where: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if ray_address is not None:
            told = added | {name: os.environ[name] for name in _TOLD_IF_SET if name in os.environ}
            where = joined(ray_address, variables=told, sites=sites, folder=folder)
        try:
            with where, mended_flower():
                run_simulation(
                    server_app,
                    client_app,
                    num_supernodes=len(sites),
                    backend_config={
                        "client_resources": {"num_cpus": CORES_PER_SITE, "num_gpus": 0.0},
                        # "local": else Ray would join whatever cluster runs on this machine, or RAY_ADDRESS names
                        "init_args": {"include_dashboard": False, "address": "local"},
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
