"""Privacy commands: what was spent, what is promised, whether the code keeps it, and what an attack sees.

in        what a person types after motet budget, report, audit or preflight
out       tables or JSON on the terminal; exit code 1 where a promise is not kept
relies on importing torch, and all that needs it, only in the commands that do
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simulations.commands.options import Parts, Set, Source, source_change

if TYPE_CHECKING:
    from shared.config import RunConfig


def budget(
    site: Annotated[Path | None, typer.Argument(help="The owner's site.toml.")] = None,
    run: Annotated[
        str | None, typer.Option(help="What this scenario's run would cost here: a shipped name, or a path.")
    ] = None,
    changes: Set = None,
    ledger: Annotated[
        Path | None, typer.Option(help="In place of site.toml: a ledger file, all its data sets.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="With --ledger: the delta at which to say epsilon.")] = None,
    accountant: Annotated[Literal["pld", "prv", "rdp"], typer.Option(help="pld is the tightest.")] = "pld",
    json: Annotated[
        bool, typer.Option("--json", help='JSON; an epsilon without bound is the word "infinite".')
    ] = False,
) -> None:
    """Show what a data set has spent of its privacy budget, and what a run would cost. Nothing is charged."""
    if (site is None) == (ledger is None):
        raise typer.BadParameter("give the owner's SITE.toml, or --ledger FILE with --delta; one of them")
    if (ledger is None) != (delta is None):
        raise typer.BadParameter("--ledger and --delta belong together; site.toml has a delta of its own")
    if (changes and run is None) or (run is not None and site is None):
        raise typer.BadParameter("--run belongs to a SITE.toml, and --set to a --run")
    from client.ledger import budget_of, list_ledger
    from client.ledger_table import render_budget, render_listing

    if site is None:
        listing = list_ledger(ledger or Path(), delta=delta or 0.0, accountant=accountant)
        shown, text = render_listing(listing), listing.model_dump_json(indent=2)
    else:
        plan = _asked_run(run, changes=changes or [], site=site) if run is not None else None
        found = budget_of(site, plan=plan, accountant=accountant)
        shown, text = render_budget(found), found.model_dump_json(indent=2)
    if json:
        typer.echo(text)
        return
    from rich.console import Console

    Console().print(shown)


def _asked_run(scenario: str, *, changes: list[str], site: Path) -> "RunConfig":
    from client.site import read_site
    from shared.card import find_card
    from simulations.scenario import find_scenario, read_run

    card = find_card(read_site(site).data)
    return read_run(find_scenario(scenario), changes=changes, data=card.content if card else None)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run that has ended.")],
    privacy: Annotated[
        bool, typer.Option("--privacy", help="Write privacy.html, privacy.json and privacy.md.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for them; the run folder if not given.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compute every privacy number again.")] = False,
    ledger: Annotated[
        list[str] | None, typer.Option(metavar="[SITE=]FILE", help="With --verify: a copy of a site's ledger.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="With --verify: a row for every number.")] = False,
) -> None:
    """Write a run's report again; with --privacy the privacy report; with --verify check every privacy number."""
    if verify and (privacy or out is not None):
        raise typer.BadParameter("--verify writes nothing; leave --privacy and --out away")
    if (ledger or every) and not verify:
        raise typer.BadParameter("--ledger and --all belong to --verify")
    from rich.console import Console

    from server.report.again import named_ledger, write_again
    from server.report.verify import verify as verify_run
    from server.report.verify_table import verification_table

    if not verify:
        for path in write_again(run, privacy=privacy, out=out):
            typer.echo(str(path))
        return
    console = Console()
    with console.status("computing again") as status:
        named = [named_ledger(text) for text in ledger or []]
        result = verify_run(run, ledgers=named, tell=lambda name: status.update(f"computing again: {name}"))
    console.print(verification_table(result, every=every))
    if not result.is_sound:
        raise typer.Exit(1)


def audit(
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A simulation's folder: audit its settings, put audit.json into it.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Which site to attack; the first by name if not given.")] = None,
    canaries: Annotated[int, typer.Option(min=10, help="More see more and take longer.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of coins, noise and batches.")] = 0,
    plant: Annotated[
        str | None, typer.Option(metavar="FAULT", help="Break the training code on purpose, to see what that shows.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder or file for audit.json.")] = None,
    json: Annotated[bool, typer.Option("--json", help="audit.json on the terminal instead of a table.")] = False,
    changes: Set = None,
    parts: Parts = None,
) -> None:
    """Attack one site's training and hold what that proves against what is claimed; exit code 1 when it is more."""
    if (scenario is None) == (run is None):
        raise typer.BadParameter("give a SCENARIO, or --run RUN; one of them")
    if run is not None and (changes or parts):
        raise typer.BadParameter("--run audits the run's own settings; leave --set and --parts away")
    if run is not None and plant is not None and out is None:
        raise typer.BadParameter("--plant breaks the code, which says nothing about the run; name another --out")
    from rich.console import Console

    from simulations.audit.run import AuditPlan, audit_folder, audit_scenario, is_alarm, write_audit
    from simulations.audit.show import render_audit
    from simulations.scenario import find_scenario, motet_home, read_scenario

    how = AuditPlan(num_canaries=canaries, seed=seed)
    if run is not None:
        found = audit_folder(run, site=site, how=how, fault=plant)
    else:
        settings, data_set = read_scenario(find_scenario(str(scenario)), changes=changes or [], home=motet_home())
        found = audit_scenario(settings, data_set=data_set, extensions=parts or [], site=site, how=how, fault=plant)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(render_audit(found))
    if (to := out or run) is not None:
        typer.echo(f"written: {write_audit(found, to=to)}", err=json)
    if is_alarm(found):
        raise typer.Exit(1)


def preflight(
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    source: Source = None,
    plant: Annotated[
        str | None, typer.Option(metavar="FAULT", help="Break the training code on purpose, to see it caught.")
    ] = None,
    list_faults: Annotated[bool, typer.Option("--list-faults", help="What --plant can do, and who notices.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The checks as JSON instead of a table.")] = False,
    changes: Set = None,
    parts: Parts = None,
) -> None:
    """Try a scenario's training code out on made-up rows; exit code 1 when a promise of privacy would be broken."""
    if (scenario is None) != list_faults:
        raise typer.BadParameter("give a SCENARIO, or --list-faults; one of them")
    from rich.console import Console

    from simulations.preflight import preflight_scenario, render_preflight

    if list_faults:
        from simulations.planted_faults import faults_table

        Console().print(faults_table())
        return
    changes = [*(changes or []), *source_change(source)]
    found = preflight_scenario(str(scenario), changes=changes, extensions=parts or [], fault=plant)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(render_preflight(found))
    if not found.passed:
        raise typer.Exit(1)
