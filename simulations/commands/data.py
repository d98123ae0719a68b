"""Data commands: generated data sets, public sources as site folders, splits of a folder.

in        what a person types after motet data
out       folders on disk
relies on importing what builds a data set only in the command that does
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make data sets: generated ones, public sources as site folders, splits.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Folder to make; must not be there yet, or be empty.")]
From = Annotated[Path, typer.Option("--from", help="Where the public source lies on this machine.")]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal data sets.")]


@app.command()
def moods(
    out: Out,
    seed: Seed = 0,
    sites: Annotated[int, typer.Option(help="Number of sites.")] = 8,
    rows: Annotated[int, typer.Option(help="Average rows of a site.")] = 400,
) -> None:
    """Generated: drawn faces, sentences and voice-like sounds of made-up people, labelled with a mood."""
    _built("moods", out=out, seed=seed, options={"sites": sites, "rows_per_site": rows})


@app.command()
def tuxpaint(
    out: Out,
    source: Annotated[Path | None, typer.Option("--from", help="A .deb or an unpacked folder.")] = None,
    seed: Seed = 0,
) -> None:
    """Tux Paint's stamps: drawing, written name and spoken name; one site a language."""
    _built("tuxpaint", out=out, seed=seed, options={"from": str(source)} if source else {})


@app.command()
def tuxpaint_matching(
    out: Out,
    source: Annotated[Path | None, typer.Option("--from", help="A .deb or an unpacked folder.")] = None,
    seed: Seed = 0,
    name: Annotated[
        str, typer.Option(help="What drawings are matched with: english, or text, the name in the site's language.")
    ] = "english",
) -> None:
    """Tux Paint's stamps for matching drawings with their names; some drawings are public."""
    chosen = {"from": str(source)} if source else {}
    _built("tuxpaint-matching", out=out, seed=seed, options={**chosen, "name": name})


@app.command()
def har(
    out: Out,
    source: From,
    seed: Seed = 0,
    alpha: Annotated[float, typer.Option(help="Of the Dirichlet label skew; small is skewed.")] = 5.0,
) -> None:
    """UCI-HAR: acceleration and gyroscope as two modalities; 21 training subjects x 5 sites."""
    _built("har", out=out, seed=seed, options={"from": str(source), "alpha": alpha})


@app.command()
def mosi(out: Out, source: From, seed: Seed = 0) -> None:
    """CMU-MOSI: sentiment of spoken opinions; one site a video."""
    _built("mosi", out=out, seed=seed, options={"from": str(source)})


@app.command()
def emodb(out: Out, source: From, seed: Seed = 0) -> None:
    """EmoDB: acted emotions in German speech; one site a speaker."""
    _built("emodb", out=out, seed=seed, options={"from": str(source)})


@app.command()
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
