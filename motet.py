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

from simulations.commands import agent, data, deploy, model, node, pretrain, privacy, recommend, server, site
from simulations.commands.options import (
    Device,
    Engine,
    Memory,
    Parts,
    Precision,
    RayAddress,
    Set,
    Source,
    checked_cluster,
    checked_engine,
    memory_bytes,
    source_change,
)
from simulations.commands.prepared import prepared

app = typer.Typer(
    name="motet",
    help="Federated, differentially private training of multimodal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
def simulate(
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; runs/NAME-TIME if not given.")] = None,
    engine: Engine = None,
    memory: Memory = None,
    device: Device = None,
    precision: Precision = None,
    ray_address: RayAddress = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and participation.")] = None,
    source: Source = None,
    changes: Set = None,
    parts: Parts = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with, from its last checkpoint.")] = None,
) -> None:
    """Run a federation on this machine, from data folders to a report."""
    if (scenario is None) == (resume is None):
        raise typer.BadParameter("give a SCENARIO to start, or --resume RUN to go on; one of them")
    cohort_only = {"--memory": memory, "--device": device, "--precision": precision}
    kind, most_memory = checked_engine(engine, cohort_only=cohort_only), memory_bytes(memory)
    checked_cluster(ray_address, engine=engine, goes_on=resume is not None)
    from simulations.engine.held_memory import without_search

    with without_search():
        from client.arithmetic import Arithmetic
        from simulations.simulate import run_simulation

    arithmetic = Arithmetic(device=device or "cpu", precision=precision or "float32")
    folder = resume
    if ray_address is not None:
        from simulations.engine.ray_cluster import check_cluster

        check_cluster(ray_address)  # before a run folder is made that would stand in the way of the next try
    if folder is None:
        changes = [*(changes or []), *source_change(source)]
        folder = prepared(str(scenario), out=out, engine=kind, seed=seed, changes=changes, parts=parts or [])
    elif any(option is not None for option in (out, engine, seed, source, changes, parts)):
        raise typer.BadParameter("--resume goes on with the run's own settings; leave the other options away")
    elif (folder / "report.html").is_file():
        typer.echo(f"{folder} has ended; its report: {folder / 'report.html'}")
        return
    try:
        run_simulation(
            folder,
            engine=None if resume else kind,
            memory_bytes=most_memory,
            arithmetic=arithmetic,
            ray_address=ray_address,
        )
    except KeyboardInterrupt:
        typer.echo(f"stopped; go on with: motet simulate --resume {folder}")
        raise typer.Exit(130) from None
    from server.fruitless import nobody_took_part

    if warning := nobody_took_part(folder, reasons=_reasons(folder)):
        typer.echo(warning, err=True)
        raise typer.Exit(1)


@app.command()
def prepare(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    num_sites: Annotated[
        int | None, typer.Option(help="Sites to wait for; those of the data set if not given.")
    ] = None,
    site_cap_epsilon: Annotated[
        float | None,
        typer.Option(help='Unit "site": the most that all runs over these sites may spend; this run\'s if not given.'),
    ] = None,
    changes: Set = None,
    parts: Parts = None,
) -> None:
    """Make the run folder of a real deployment without starting it; nothing is trained yet."""
    folder = prepared(
        scenario,
        out=out,
        engine="deployment",
        seed=None,
        changes=changes or [],
        parts=parts or [],
        num_sites=num_sites,
        site_cap_epsilon=site_cap_epsilon,
    )
    typer.echo(f"prepared: {folder}\nrun it with: motet run --resume {folder} --on DEPLOYMENT")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A data folder, or a data set with sites/ and held-out/ in it.")],
) -> None:
    """Show what is in a data folder and every fault of it. What it prints stays on this screen."""
    from rich.console import Console

    from shared.card import find_card
    from shared.check import check_folder, data_folders, fault_text, render_summary
    from shared.check_together import leaks
    from shared.errors import ManifestError

    console, faulty, folders, sound = Console(), 0, data_folders(folder), []
    for each in folders:
        card = find_card(each)
        try:
            sound.append(check_folder(each, schema=card.content if card else None))
            console.print(render_summary(sound[-1], root=folder))
        except ManifestError as error:
            faulty += 1
            console.print(fault_text(error, folder=each, root=folder), style="red", markup=False, highlight=False)
    for warning in leaks(sound, root=folder):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    if faulty:
        console.print(f"faults in {faulty} of {len(folders)} folders", style="red")
        raise typer.Exit(1)
    console.print(f"no faults in {len(folders)} folder{'' if len(folders) == 1 else 's'}", style="green")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")],
    json: Annotated[bool, typer.Option("--json", help="A line of JSON a run instead of a table.")] = False,
) -> None:
    """Put runs side by side: what they reached, what they spent, how their settings differ."""
    from server.compare import compare_runs, result_lines

    if json:
        typer.echo("\n".join(result_lines(runs)))
        return
    from rich.console import Console

    Console().print(compare_runs(runs))


@app.command()
def scenarios() -> None:
    """List the scenarios that come with Motet."""
    from rich.console import Console
    from rich.table import Table

    from shared.settings import read_toml
    from simulations.scenario import SCENARIOS, shipped_scenarios

    table = Table("scenario", "about")
    for name in shipped_scenarios():
        table.add_row(name, str(read_toml(SCENARIOS / f"{name}.toml").get("about", "")))
    Console().print(table)


for name, group in {"data": data, "server": server, "site": site, "agent": agent, "node": node}.items():
    app.add_typer(group.app, name=name)
app.command()(deploy.run)
app.command()(deploy.status)
app.command()(pretrain.pretrain)
app.command()(model.predict)
app.command()(model.export)
app.command()(model.serve)
app.command()(recommend.recommend)
app.command()(recommend.classify)
for command in (privacy.budget, privacy.preflight, privacy.audit, privacy.report):
    app.command()(command)


def _reasons(folder: Path) -> str:
    return f"Why a site refused stands above; what is left, in: motet budget {folder}/sites/SITE.toml"


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
