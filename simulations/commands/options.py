"""Options: those that several commands share, spelled and explained alike.

in        nothing
out       annotations that typer reads, for motet.py and the modules beside this one
relies on nothing
"""

from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the scenario.")]
Parts = Annotated[
    list[Path] | None, typer.Option("--parts", help="A Python file of yours that registers encoders, fusions or heads.")
]
Source = Annotated[Path | None, typer.Option("--from", help="Where a public source lies, for scenarios that need one.")]


def source_change(source: Path | None) -> list[str]:
    """The setting that --from stands for."""
    return [f"source.options.from={source.expanduser().resolve()}"] if source else []
