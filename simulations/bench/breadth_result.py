"""Breadth's results: what is known of every part, as a file.

in        what breadth.py found out
out       results/breadth.json, read by breadth_page.py
relies on each part's docstring for what it is and where it comes from
"""

import re
from pathlib import Path

from pydantic import Field

from shared.settings import Settings, parse_settings_json
from simulations.bench.results import RESULTS, Machine, Spread


class PartResult(Settings):
    """One part, in one mode."""

    kind: str
    name: str
    mode: str = ""
    takes: str = ""
    """encoders: the kind of modality"""
    about: str
    """first line of its docstring"""
    source: str = ""
    inputs: tuple[int, ...] = ()
    """shape of what goes in, of one sample"""
    outputs: tuple[int, ...] = ()
    gives: str = ""
    """what comes out, where it is no embedding or answer"""
    tried_on: str = ""
    """the network in it, where no package has a public one"""
    parameters: int = Field(default=0, ge=0)
    trained: int = Field(default=0, ge=0)
    """of the parameters"""
    batch: int = 0
    """rows of a step"""
    is_behind_network: bool = False
    """whether its values went once through a public network that nobody trains"""
    engine: str = ""
    plain_cpu_s: Spread | None = None
    """a step of plain torch with a model of the part and one linear layer"""
    private_cpu_s: Spread | None = None
    """a step with clipping and noise of the same model, by the code that sites run"""
    why_not: str = ""
    """why something of this could not be found out; empty where nothing is missing"""

    @property
    def trains(self) -> str:
        """What of the part trains under privacy."""
        if not self.trained:
            return "nothing to train"
        if self.is_behind_network:
            return "a layer behind a frozen network"
        return "all" if self.trained == self.parameters else f"{self.trained:,} of {self.parameters:,}"

    @property
    def ratio(self) -> float | None:
        """Times the plain step."""
        if self.plain_cpu_s is None or self.private_cpu_s is None or not self.plain_cpu_s.median:
            return None
        return self.private_cpu_s.median / self.plain_cpu_s.median


class Recurrence(Settings):
    """Steps of one recurrent model, by contender."""

    model: str
    batch: int
    cpu_s: dict[str, Spread]


class Breadth(Settings):
    """All parts, once measured."""

    started: str
    machine: Machine
    versions: dict[str, str]
    commit: str
    tree_is_clean: bool
    parts: tuple[PartResult, ...]
    recurrence: tuple[Recurrence, ...]
    later: tuple[str, ...] = ()
    """parts that were measured after the others, and with other code"""

    @classmethod
    def read(cls) -> "Breadth":
        """What is stored.

        Raises:
            OSError: nothing is.
        """
        path = breadth_path()
        return parse_settings_json(cls, path.read_text(encoding="utf-8"), place=str(path))

    def of(self, kind: str, name: str, mode: str) -> PartResult | None:
        """What is known of a part."""
        return next((each for each in self.parts if (each.kind, each.name, each.mode) == (kind, name, mode)), None)


def breadth_path() -> Path:
    """Where it is stored."""
    return RESULTS / "breadth.json"


def source_in(*docstrings: str) -> str:
    """What the first docstring with a line `Source: ...` says there, up to where ours differs; empty if none has it."""
    for text in docstrings:
        found = re.search(r"Source: (.*?)(?:\n\s*\n|\Z)", text, flags=re.DOTALL)
        if found:
            return re.split(r"\.? Ours differs", " ".join(found[1].split()))[0].rstrip(".")
    return ""
