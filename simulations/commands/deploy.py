"""Deploy commands: a scenario run on a deployment, and how the deployment fares.

in        what the server's operator types after motet run and motet status
out       a run followed to its report; a table or JSON
relies on server/deployment/, and on the scenario's own data for the held-out part alone
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.commands.options import Parts, Set
from simulations.commands.prepared import prepared

if TYPE_CHECKING:
    from server.deployment.settings import Deployment

_REASONS = "Why a site refused stands at its agent, in agent/journal.jsonl; `motet budget` there says what is left"


def run(
    on: Annotated[
        Path, typer.Option("--on", metavar="DEPLOYMENT", envvar="MOTET_DEPLOYMENT", help="The server's folder.")
    ],
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; in DEPLOYMENT/runs if not given.")] = None,
    num_sites: Annotated[
        int | None, typer.Option(min=1, help="Sites to wait for; all that are enrolled, if not given.")
    ] = None,
    site_cap_epsilon: Annotated[
        float | None,
        typer.Option(help='Unit "site": the most that all runs over these sites may spend; this run\'s if not given.'),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with, from its last checkpoint.")] = None,
    follow: Annotated[Path | None, typer.Option(help="A run that goes on already, to watch.")] = None,
    stop: Annotated[Path | None, typer.Option(help="A run that goes on, to end; it can be resumed.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; follow it later.")] = False,
    changes: Set = None,
    parts: Parts = None,
) -> None:
    """Run a scenario on the sites of a deployment, from their introductions to a report."""
    if sum(each is not None for each in (scenario, resume, follow, stop)) != 1:
        raise typer.BadParameter("give a SCENARIO to start, --resume RUN, --follow RUN or --stop RUN; one of them")
    if scenario is None and (out, num_sites, site_cap_epsilon, changes, parts) != (None,) * 5:
        raise typer.BadParameter("a run that was prepared keeps its own settings; leave the other options away")
    from server.deployment.runs import start_run, stop_run
    from server.deployment.settings import open_deployment

    deployment = open_deployment(on)
    if stop is not None:
        stop_run(stop, deployment=deployment)
        typer.echo(f"ended; go on with: motet run --resume {stop} --on {on}")
        return
    folder = follow or resume
    if folder is None:
        sites = num_sites or _num_enrolled(deployment)
        folder = prepared(
            str(scenario), out=out, engine="deployment", seed=None, changes=changes or [], parts=parts or [],
            num_sites=sites, site_cap_epsilon=site_cap_epsilon, runs=deployment.runs,
        )  # fmt: skip
        typer.echo(f"run folder: {folder} (should it be interrupted: motet run --resume {folder} --on {on})")
    if follow is None:
        start_run(folder, deployment=deployment)
    if detach:
        typer.echo(f"started; follow it with: motet run --follow {folder} --on {on}")
        return
    _follow(folder, deployment=deployment)


def status(
    deployment: Annotated[
        Path, typer.Argument(metavar="DEPLOYMENT", envvar="MOTET_DEPLOYMENT", help="Server's folder.")
    ],
    json: Annotated[bool, typer.Option("--json", help="As JSON instead of a table.")] = False,
) -> None:
    """Show which sites are on line, since when, of which version, and who took no part in the last round and why."""
    from server.deployment.settings import open_deployment
    from server.deployment.status import render_status, status_of

    found = status_of(open_deployment(deployment))
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from rich.console import Console

    Console().print(render_status(found))


def _follow(folder: Path, *, deployment: "Deployment") -> None:
    from server.deployment.runs import follow_run
    from server.fruitless import nobody_took_part

    try:
        report = follow_run(folder, deployment=deployment)
    except KeyboardInterrupt:
        typer.echo(
            f"the run goes on; watch it with: motet run --follow {folder} --on {deployment.folder}\n"
            f"end it with: motet run --stop {folder} --on {deployment.folder}"
        )
        raise typer.Exit(130) from None
    typer.echo(f"report: {report}")
    if warning := nobody_took_part(folder, reasons=_REASONS):
        typer.echo(warning, err=True)
        raise typer.Exit(1)


def _num_enrolled(deployment: "Deployment") -> int:
    from server.enrolment import enrolments
    from shared.errors import ConfigError

    found = len(enrolments(deployment.enrolled))
    if not found:
        raise ConfigError(f"no site is enrolled; let one in: motet server enrol NAME.pub --on {deployment.folder}")
    return found
