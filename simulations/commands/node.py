"""Node commands: the SuperNode, which connects a site to its server.

in        what is typed after motet node, by a user who need not be able to read the data
out       a process that keeps the SuperNode running until it is ended
relies on client/node/serving.py
"""

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.options import log_to_terminal

app = typer.Typer(help="The SuperNode, which connects a site to its server.", no_args_is_help=True)


# the node's user passes through the folder, and can look at nothing in it but what is its own
Site = Annotated[Path, typer.Argument(metavar="SITE", readable=False, help="The site's folder.")]


@app.callback()
def _group() -> None:
    """So that `start` is a command of its own, though it is the only one."""


@app.command()
def start(site: Site) -> None:
    """Keep the SuperNode running until it is ended; best as a user who can read neither data nor ledger."""
    log_to_terminal()
    from client.node.serving import run_node

    run_node(site)
