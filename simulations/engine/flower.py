"""Flower engine: Flower's own simulation, several processes through Ray; the same two apps, unchanged.

in        the server app, the client app, the site files
out       the server app has run; an exception of its own comes through
relies on Ray's workers inheriting this process's environment, where the list of site files is named
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.app import SIMULATED_SITES_VARIABLE


def run_in_flower(server_app: ServerApp, client_app: ClientApp, *, sites: Sequence[Path], folder: Path) -> None:
    """Run a federation to its end in Flower's simulation, one actor a core."""
    listed = folder / "sites.txt"
    listed.write_text("".join(f"{site}\n" for site in sites), encoding="utf-8")
    os.environ[SIMULATED_SITES_VARIABLE] = str(listed)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Flower prefers `flwr run` to this entry point, but that starts a SuperLink which outlives the run
    logging.getLogger("flwr").setLevel(logging.ERROR)
    from flwr.simulation import run_simulation

    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]))
    os.environ["PYTHONPATH"] = path
    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(sites),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False},
        },
    )
