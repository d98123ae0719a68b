"""Set up the peers: one virtual environment for each, since they cannot live in one.

in        `python -m simulations.bench.peers.setup [DIR]`, by `make bench-peers`
out       DIR/pfl, DIR/blazefl, DIR/fluke, DIR/flower; those that are there already are left alone
relies on pip as this machine has set it up; torch has the version of our own constraints.txt in all of them
"""

import argparse
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
DEFAULT = Path(__file__).resolve().parents[3] / "build" / "peers"
_READY = ".ready"


@dataclass(frozen=True)
class Recipe:
    """What is installed, and then what without what it asks for."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


RECIPES = {
    "pfl": Recipe(
        (
            "numpy",
            "dp-accounting<0.6",
            "prv-accountant<0.3",
            "multiprocess<0.71",
            "packaging<26",
            "scipy",
        ),
        ("pfl==0.6.0",),
    ),
    # its metadata asks for Python 3.12; it runs on 3.11
    "blazefl": Recipe(("numpy", "tqdm"), ("--ignore-requires-python", "blazefl==2.0.2")),
    "fluke": Recipe(
        (
            *("pandas", "scikit-learn", "torchmetrics", "rich", "typer", "psutil", "matplotlib", "seaborn"),
            *("diskcache", "cerberus", "omegaconf", "hydra-core", "datasets", "tensorboard", "pyyaml"),
        ),
        ("fluke-fl==0.8.1", "opacus"),
    ),
    "flower": Recipe(("flwr[simulation]==1.41.0",)),
}


def python_of(peers: Path, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return peers / name / "bin" / "python"


def missing(peers: Path, name: str) -> str:
    """Why a peer cannot be run; empty where it can."""
    if (peers / name / _READY).is_file():
        return ""
    return "not installed; `make bench-peers` sets it up"


def make(name: str, *, peers: Path) -> None:
    """One environment, whole or not called ready."""
    recipe, folder = RECIPES[name], peers / name
    venv.create(folder, with_pip=True, clear=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{TORCH}\n", encoding="utf-8")
    pip = [str(python_of(peers, name)), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([*pip, TORCH, *recipe.packages], check=True)  # noqa: S603  # the recipes above
    if recipe.alone:
        subprocess.run([*pip, "--no-deps", *recipe.alone], check=True)  # noqa: S603
    (folder / _READY).touch()


def main() -> int:
    """Make what is missing; 1 if one of them could not be made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT)
    peers, failed = parser.parse_args().folder.resolve(), 0
    for name in RECIPES:
        if missing(peers, name):
            try:
                make(name, peers=peers)
            except (OSError, subprocess.CalledProcessError) as error:
                failed = 1
                print(f"{name}: not installed: {error}")
                continue
        print(f"{name}: ready in {peers / name}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
