"""Motet's command line: one door to the four packages.

in        what a person types
out       tables and progress on the terminal, folders on disk; exit code 1 with one clear error
relies on importing torch, and all that needs it, only in the commands that do
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="motet",
    help="Federated, differentially private training of multimodal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(
    help="Make data sets: generated ones, public sources as site folders, splits.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the scenario.")]
Parts = Annotated[
    list[Path] | None, typer.Option("--parts", help="A Python file of yours that registers encoders, fusions or heads.")
]


@app.command()
def simulate(
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; runs/NAME-TIME if not given.")] = None,
    engine: Annotated[
        str, typer.Option(help="local: in this process. flower: Flower's simulation through Ray.")
    ] = "local",
    seed: Annotated[int | None, typer.Option(help="Of weights and participation.")] = None,
    changes: Set = None,
    parts: Parts = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with, from its last checkpoint.")] = None,
) -> None:
    """Run a federation on this machine, from data folders to a report."""
    if (scenario is None) == (resume is None):
        raise typer.BadParameter("give a SCENARIO to start, or --resume RUN to go on; one of them")
    if engine not in {"local", "flower"}:
        raise typer.BadParameter(f"{engine!r}; allowed: local, flower", param_hint="--engine")
    from simulations.simulate import run_simulation

    folder = resume
    if folder is None:
        folder = _prepared(str(scenario), out=out, engine=engine, seed=seed, changes=changes or [], parts=parts or [])
    run_simulation(folder, engine=None if resume else "flower" if engine == "flower" else "local")
    typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def prepare(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    num_sites: Annotated[
        int | None, typer.Option(help="Sites to wait for; those of the data set if not given.")
    ] = None,
    changes: Set = None,
    parts: Parts = None,
) -> None:
    """Make the run folder of a real deployment, for `flwr run`; nothing is trained yet."""
    folder = _prepared(
        scenario, out=out, engine="deployment", seed=None, changes=changes or [], parts=parts or [], num_sites=num_sites
    )
    typer.echo(
        f"prepared: {folder}\nrun it with: flwr run . LINK --stream --run-config 'run-folder=\"{folder.resolve()}\"'"
    )


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A data folder, or a data set with sites/ and held-out/ in it.")],
) -> None:
    """Show what is in a data folder and every fault of it. What it prints stays on this screen."""
    from rich.console import Console

    from shared.card import find_card
    from shared.check import check_folder, data_folders, render_summary
    from shared.errors import ManifestError

    console, faulty = Console(), False
    for each in data_folders(folder):
        card = find_card(each)
        try:
            console.print(render_summary(check_folder(each, schema=card.content if card else None)))
        except ManifestError as error:
            faulty = True
            console.print(str(error), style="red", markup=False, highlight=False)
    if faulty:
        raise typer.Exit(1)


@app.command()
def compare(runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")]) -> None:
    """Put runs side by side: what they reached, what they spent, how their settings differ."""
    from rich.console import Console

    from server.compare import compare_runs

    Console().print(compare_runs(runs))


@app.command()
def scenarios() -> None:
    """List the scenarios that come with Motet."""
    from rich.console import Console
    from rich.table import Table

    from shared.config import read_toml
    from simulations.scenario import SCENARIOS, shipped_scenarios

    table = Table("scenario", "about")
    for name in shipped_scenarios():
        table.add_row(name, str(read_toml(SCENARIOS / f"{name}.toml").get("about", "")))
    Console().print(table)


def _prepared(
    scenario: str,
    *,
    out: Path | None,
    engine: str,
    seed: int | None,
    changes: list[str],
    parts: list[Path],
    num_sites: int | None = None,
) -> Path:
    from datetime import datetime

    from simulations.scenario import find_scenario, motet_home, read_scenario
    from simulations.simulate import prepare_run

    if seed is not None:
        changes = [*changes, f"run.seed={seed}"]
    settings, data_set = read_scenario(find_scenario(scenario), changes=changes, home=motet_home())
    folder = out or Path("runs") / f"{settings.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
    prepare_run(settings, data_set=data_set, folder=folder, engine=engine, extensions=parts, num_sites=num_sites)
    return folder


def main() -> None:
    """Entry point: errors of Motet's own are shown as what they are, without a traceback."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from shared.errors import MotetError

    try:
        app()
    except MotetError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
