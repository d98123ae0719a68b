"""Motet's command line: one door to the four packages.

in        what a person types
out       tables and progress on the terminal, folders on disk; exit code 1 with one clear error
relies on importing torch, and all that needs it, only in the commands that do
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from shared.config import RunConfig

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


Out = Annotated[Path, typer.Option("--out", help="Folder to make; must not be there yet, or be empty.")]
From = Annotated[Path, typer.Option("--from", help="Where the public source lies on this machine.")]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal data sets.")]


@app.command()
def simulate(
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; runs/NAME-TIME if not given.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="local (in this process, the default) or flower (Flower's simulation by Ray).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and participation.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Where a public source lies, for scenarios that need one.")
    ] = None,
    changes: Set = None,
    parts: Parts = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with, from its last checkpoint.")] = None,
) -> None:
    """Run a federation on this machine, from data folders to a report."""
    if (scenario is None) == (resume is None):
        raise typer.BadParameter("give a SCENARIO to start, or --resume RUN to go on; one of them")
    if engine not in {None, "local", "flower"}:
        raise typer.BadParameter(f"{engine!r}; allowed: local, flower", param_hint="--engine")
    from simulations.simulate import run_simulation

    folder = resume
    if folder is None:
        changes = [*(changes or []), *_source_change(source)]
        folder = _prepared(
            str(scenario), out=out, engine=engine or "local", seed=seed, changes=changes, parts=parts or []
        )
    elif any(option is not None for option in (out, engine, seed, source, changes, parts)):
        raise typer.BadParameter("--resume goes on with the run's own settings; leave the other options away")
    elif (folder / "report.html").is_file():
        typer.echo(f"{folder} has ended; its report: {folder / 'report.html'}")
        return
    try:
        run_simulation(folder, engine=None if resume else "flower" if engine == "flower" else "local")
    except KeyboardInterrupt:
        typer.echo(f"stopped; go on with: motet simulate --resume {folder}")
        raise typer.Exit(130) from None


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
    """Make the run folder of a real deployment, for `flwr run`; nothing is trained yet."""
    folder = _prepared(
        scenario,
        out=out,
        engine="deployment",
        seed=None,
        changes=changes or [],
        parts=parts or [],
        num_sites=num_sites,
        site_cap_epsilon=site_cap_epsilon,
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

    console, faulty, folders = Console(), 0, data_folders(folder)
    for each in folders:
        card = find_card(each)
        try:
            console.print(render_summary(check_folder(each, schema=card.content if card else None)))
        except ManifestError as error:
            faulty += 1
            console.print(str(error), style="red", markup=False, highlight=False)
    if faulty:
        console.print(f"faults in {faulty} of {len(folders)} folders", style="red")
        raise typer.Exit(1)
    console.print(f"no faults in {len(folders)} folder{'' if len(folders) == 1 else 's'}", style="green")


@app.command()
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
) -> None:
    """Write a run's report again; with --privacy the privacy report; with --verify check every privacy number."""
    if verify and (privacy or out is not None):
        raise typer.BadParameter("--verify writes nothing; leave --privacy and --out away")
    if ledger and not verify:
        raise typer.BadParameter("--ledger belongs to --verify")
    from rich.console import Console

    from server.report.again import named_ledger, write_again
    from server.report.verify import verification_table
    from server.report.verify import verify as verify_run

    if not verify:
        for path in write_again(run, privacy=privacy, out=out):
            typer.echo(str(path))
        return
    console = Console()
    with console.status("computing again") as status:
        named = [named_ledger(text) for text in ledger or []]
        result = verify_run(run, ledgers=named, tell=lambda name: status.update(f"computing again: {name}"))
    console.print(verification_table(result))
    if not result.is_sound:
        raise typer.Exit(1)


@app.command()
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


@app.command()
def preflight(
    scenario: Annotated[
        str | None, typer.Argument(help="A shipped scenario's name, or the path of one of yours.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Where a public source lies, for scenarios that need one.")
    ] = None,
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
    changes = [*(changes or []), *_source_change(source)]
    found = preflight_scenario(str(scenario), changes=changes, extensions=parts or [], fault=plant)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(render_preflight(found))
    if not found.passed:
        raise typer.Exit(1)


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


@data_app.command()
def moods(
    out: Out,
    seed: Seed = 0,
    sites: Annotated[int, typer.Option(help="Number of sites.")] = 8,
    rows: Annotated[int, typer.Option(help="Average rows of a site.")] = 400,
) -> None:
    """Generated: drawn faces, sentences and voice-like sounds of made-up people, labelled with a mood."""
    _built("moods", out=out, seed=seed, options={"sites": sites, "rows_per_site": rows})


@data_app.command()
def tuxpaint(
    out: Out,
    source: Annotated[Path | None, typer.Option("--from", help="A .deb or an unpacked folder.")] = None,
    seed: Seed = 0,
) -> None:
    """Tux Paint's stamps: drawing, written name and spoken name; one site a language."""
    _built("tuxpaint", out=out, seed=seed, options={"from": str(source)} if source else {})


@data_app.command()
def har(
    out: Out,
    source: From,
    seed: Seed = 0,
    alpha: Annotated[float, typer.Option(help="Of the Dirichlet label skew; small is skewed.")] = 5.0,
) -> None:
    """UCI-HAR: acceleration and gyroscope as two modalities; 21 training subjects x 5 sites."""
    _built("har", out=out, seed=seed, options={"from": str(source), "alpha": alpha})


@data_app.command()
def mosi(out: Out, source: From, seed: Seed = 0) -> None:
    """CMU-MOSI: sentiment of spoken opinions; one site a video."""
    _built("mosi", out=out, seed=seed, options={"from": str(source)})


@data_app.command()
def emodb(out: Out, source: From, seed: Seed = 0) -> None:
    """EmoDB: acted emotions in German speech; one site a speaker."""
    _built("emodb", out=out, seed=seed, options={"from": str(source)})


@data_app.command()
def split(
    folder: Annotated[Path, typer.Argument(help="One data folder with a manifest.")],
    out: Out,
    how: Annotated[str, typer.Option(help="even, dirichlet or column.")] = "even",
    sites: Annotated[
        int | None, typer.Option(help="Number of sites; with column, all of its values if not given.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="With dirichlet: small is skewed.")] = None,
    column: Annotated[str | None, typer.Option(help="With column: rows that share its value stay together.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY=SHARE", help="Take a modality from a share.")
    ] = None,
    remove_from: Annotated[str, typer.Option(help="rows or sites: what the share is of.")] = "rows",
    held_out_share: Annotated[float, typer.Option(help="Share of subjects kept by the server.")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Partition any data folder over sites, and keep a part for the server."""
    if how not in {"even", "dirichlet", "column"}:
        raise typer.BadParameter(f"{how!r}; allowed: even, dirichlet, column", param_hint="--how")
    if remove_from not in {"rows", "sites"}:
        raise typer.BadParameter(f"{remove_from!r}; allowed: rows, sites", param_hint="--remove-from")
    if (folder / "sites").is_dir():
        raise typer.BadParameter(f"{folder} is split over sites already; give one folder with a manifest")
    from simulations.datasets.split import split_folder

    built = split_folder(
        folder,
        out,
        how="even" if how == "even" else "dirichlet" if how == "dirichlet" else "column",
        sites=sites,
        alpha=alpha,
        column=column,
        remove=_shares(remove or []),
        remove_from="rows" if remove_from == "rows" else "sites",
        held_out_share=held_out_share,
        seed=seed,
    )
    typer.echo(str(built))


def _shares(changes: list[str]) -> dict[str, float]:
    shares = {}
    for change in changes:
        name, equals, share = change.partition("=")
        if not equals or not share.replace(".", "", 1).isdigit():
            raise typer.BadParameter(
                f"{change!r}; allowed: MODALITY=SHARE, for example audio=0.3", param_hint="--remove"
            )
        shares[name] = float(share)
    return shares


def _built(
    name: str, *, out: Path, seed: int, options: dict[str, bool | int | float | str | tuple[float, ...]]
) -> None:
    from simulations.datasets.registry import build

    typer.echo(str(build(name, out, seed=seed, options=options)))
    typer.echo(f"look at it with: motet check {out}")


def _source_change(source: Path | None) -> list[str]:
    return [f"source.options.from={source.expanduser().resolve()}"] if source else []


def _prepared(
    scenario: str,
    *,
    out: Path | None,
    engine: str,
    seed: int | None,
    changes: list[str],
    parts: list[Path],
    num_sites: int | None = None,
    site_cap_epsilon: float | None = None,
) -> Path:
    from datetime import datetime

    from simulations.scenario import find_scenario, motet_home, read_scenario
    from simulations.simulate import prepare_run

    if seed is not None:
        changes = [*changes, f"run.seed={seed}"]
    settings, data_set = read_scenario(find_scenario(scenario), changes=changes, home=motet_home())
    folder = out or Path("runs") / f"{settings.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
    prepare_run(
        settings,
        data_set=data_set,
        folder=folder,
        engine=engine,
        extensions=parts,
        num_sites=num_sites,
        site_cap_epsilon=site_cap_epsilon,
    )
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
