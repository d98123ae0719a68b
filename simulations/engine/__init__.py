"""Engines: what carries messages between the server app and the client app."""

from typing import Literal

EngineName = Literal["cohort", "local", "flower"]
DEFAULT_ENGINE: EngineName = "cohort"
