"""Site commands: an owner's side of a deployment set up, and its key changed.

in        what the owner types after motet site
out       a site's folder, and a public key to hand over
relies on client/node/setup.py; rows are counted on the owner's screen alone, and no number is written unconfirmed
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from client.node.setup import Counted

app = typer.Typer(help="A site of a deployment: set it up, change its key.", no_args_is_help=True)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="Folder to make.")],
    name: Annotated[str, typer.Option(help="Public: how the server and its reports call this site.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server is.")],
    data: Annotated[Path, typer.Option(help="The folder with metadata.jsonl.")],
    size: Annotated[
        int | None, typer.Option(min=1, help="Public: about how many records there are; asked if not given.")
    ] = None,
    subjects: Annotated[int | None, typer.Option(min=1, help="Public: about how many people they are of.")] = None,
    unit: Annotated[Literal["record", "subject"], typer.Option(help="What the budget is about.")] = "record",
    epsilon: Annotated[float, typer.Option(help="The most that all runs together may ever spend.")] = 8.0,
    delta: Annotated[float | None, typer.Option(help="At this delta; well below 1/size if not given.")] = None,
    node_user: Annotated[
        str | None,
        typer.Option(help="The user who will run the SuperNode; another one than the agent's guards the data."),
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="The server's ca.crt, if it is there already.")] = None,
) -> None:
    """Make a site's folder: its settings with comments, its key, and NAME.pub to hand over to the server's operator."""
    from client.node.setup import NewSite, make_site
    from shared.keys import certificate_fingerprint

    size, subjects = _public_numbers(data, size=size, subjects=subjects, needs_subjects=unit == "subject")
    new = NewSite(
        name=name, server=server, data=data, size=size, subjects=subjects, unit=unit, epsilon=epsilon, delta=delta,
        node_user=node_user, ca=ca,
    )  # fmt: skip
    public, mark = make_site(folder, new)
    _tell(public, mark=mark)
    if ca is not None:
        typer.echo(f"authority: {certificate_fingerprint(ca)} (compare it with the one that the operator reads to you)")
    steps = [
        f"read {folder}/site.toml, every line: it is your word, and nobody else can change it",
        *([] if ca else [f"put the server's ca.crt into {folder}/node/ca.crt; compare its fingerprint"]),
        f"motet check {data}",
        *([f"chmod -R go-rwx {data} (the node's user may not read it)"] if node_user else []),
        f"motet agent start {folder}",
        f"motet node start {folder}" + (f" (as the user {node_user})" if node_user else ""),
    ]
    if node_user is not None and os.geteuid() != 0:
        steps.insert(0, f"sudo chown -R {node_user} {folder}/node")
    if node_user is None:
        steps.insert(
            1, "for real data: make it again with --node-user, so that what the server delivers cannot read the data"
        )
    typer.echo("\n".join(["next:", *(f"  - {step}" for step in steps)]))


@app.command()
def key(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="The site's folder.")],
) -> None:
    """Make a new key in the place of the old one, which expires, was seen by somebody or was revoked."""
    from client.node.setup import SITE_FILE, new_site_key
    from client.site import read_site

    public, mark = new_site_key(folder, name=read_site(folder / SITE_FILE).name)
    _tell(public, mark=mark)
    typer.echo(
        f"next: start agent and node again, once the server's operator has enrolled it\n"
        f"  motet agent start {folder}\n  motet node start {folder}"
    )


def _tell(public: Path, *, mark: str) -> None:
    typer.echo(
        f"hand over: {public}\nfingerprint: {mark} (read it to the server's operator, who sees it when enrolling)"
    )


def _public_numbers(
    data: Path, *, size: int | None, subjects: int | None, needs_subjects: bool
) -> tuple[int, int | None]:
    """What the owner says is public; where it was not said, asked with the count and a round number beside it."""
    from client.node.setup import count_rows, rounded
    from shared.errors import ConfigError

    if size is not None and (subjects is not None or not needs_subjects):
        return size, subjects
    found = count_rows(data)
    if not sys.stdin.isatty():
        # PRIVACY: a count that nobody looked at is nobody's public word. test_no_count_is_written_unasked
        raise ConfigError(_counted(found, needs_subjects=needs_subjects))
    if size is None:
        size = typer.prompt(
            f"There are {found.rows} records (only you see this). Public number of records",
            rounded(found.rows),
            type=int,
        )
    if needs_subjects and subjects is None:
        subjects = typer.prompt(
            f"They are of {found.subjects} people (only you see this). Public number of people",
            rounded(found.subjects),
            type=int,
        )
    return size, subjects


def _counted(found: "Counted", *, needs_subjects: bool) -> str:
    from client.node.setup import rounded

    people = f" of {found.subjects} people" if needs_subjects else ""
    options = f"--size {rounded(found.rows)}" + (f" --subjects {rounded(found.subjects)}" if needs_subjects else "")
    return (
        f"there are {found.rows} records{people} (only you see this); say a public number, round and best a little too "
        f"small, such as: {options}"
    )
