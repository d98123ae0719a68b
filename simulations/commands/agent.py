"""Agent commands: the site agent, which alone reads the data.

in        what the owner types after motet agent
out       a process that answers on the site's socket until it is ended
relies on client/resident/serving.py
"""

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.options import log_to_terminal

app = typer.Typer(help="The site agent, which alone reads the data and holds the ledger.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """So that `start` is a command of its own, though it is the only one."""


@app.command()
def start(site: Annotated[Path, typer.Argument(metavar="SITE", help="The site's folder, or its site.toml.")]) -> None:
    """Run the site agent until it is ended; a round that is being trained then is finished first."""
    log_to_terminal()
    site_file = site / "site.toml" if site.is_dir() else site
    from client.resident.serving import run_agent

    run_agent(site_file)
