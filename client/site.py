"""Site settings: what the owner of the data permits, on the owner's disk and in nobody else's hands.

in        site.toml, written by the owner
out       SiteConfig, read by permission.py, charge.py and agent.py
relies on nothing that arrives over the network
"""

import os
from collections.abc import Hashable
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from client.limits import OwnerLimits
from client.unchanged import Unchanged
from shared.config import NoiseKind, Unit
from shared.errors import ConfigError
from shared.forms import SITE_NAME
from shared.settings import MOST_PATTERNS, Name, NamePattern, Settings, parse_settings, read_toml

ShortBudget = Literal["refuse", "fewer-rounds", "more-noise"]


class OwnerPrivacy(Settings):
    """The owner's budget for one data set over all runs, and what may be told about it."""

    epsilon: float = Field(gt=0, description="largest total ever, all runs together")
    delta: float = Field(gt=0, lt=1)
    unit: Literal["record", "subject"] = Field(default="record", description="what the budget is about")
    on_short_budget: ShortBudget = Field(
        default="refuse",
        description="a run that asks for more than is left: take no part, as many rounds as fit, or with more noise",
    )
    least_noise_multiplier: float = Field(default=0.3, ge=0, description="no round has less noise, whatever it costs")
    noise: NoiseKind = Field(default="float64", description="float32 is faster, discrete leaves no rounding to attack")
    allow_non_private: bool = False
    trust_server: bool = Field(
        default=False, description="unit site: the update leaves clipped but without noise, which the server adds"
    )
    tell_budget: bool = Field(
        default=True, description="whether reports may show the cap and what was spent before; the total is always told"
    )
    reproducible_noise: bool = Field(
        default=False, description="simulations only: noise that a seed gives back protects nobody"
    )


class AgentSettings(Settings):
    """How the site agent is reached on the owner's machine, and by whom."""

    socket: Path = Field(default=Path("agent/socket"), description="in a folder that only the agent's user writes to")
    allowed_users: tuple[str, ...] = Field(
        default=(), max_length=16, description="users who may ask beside the agent's own: the one of the SuperNode"
    )
    answers: Path = Field(
        default=Path("agent/answers"), description="folder of what was let out, so that a repeated request costs once"
    )
    kept_runs: int = Field(default=4, ge=1, le=1000, description="runs whose last answers are kept")
    kept_rounds: int = Field(default=2, ge=1, le=1000, description="last rounds of a run whose answers are kept")
    journal: Path = Field(
        default=Path("agent/journal.jsonl"), description="what was asked and answered; no personal data stands in it"
    )
    journal_bytes: int = Field(default=5_000_000, ge=10_000, description="of one file of it; five older ones are kept")
    metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="on 127.0.0.1: /metrics for Prometheus and /health; none if not set"
    )
    key: Path | None = Field(
        default=None, description="the site's private key, by which a server knows it; simulated sites have none"
    )


class SiteConfig(Settings):
    """What an owner permits. Paths are relative to the file they stand in."""

    name: str = Field(pattern=SITE_NAME, description="public: the report shows it")
    data: Path
    data_set: str = Field(
        min_length=1, max_length=200, description="the ledger's key: never rename it to refill a budget"
    )
    nominal_size: int = Field(
        ge=1, description="public; sampling rate and denominator follow from it, not from counting rows"
    )
    nominal_subjects: int | None = Field(
        default=None, ge=1, description="public; takes the place of nominal_size where subjects are protected"
    )
    modalities: tuple[Name, ...] = Field(min_length=1, description="public: which modalities rows here may have")
    nominal_modality_sizes: dict[Name, int] = Field(
        default={}, description="public: about how many rows have each modality; nominal_size where it is not named"
    )
    tasks: tuple[Name, ...] | None = Field(
        default=None, description="public: of several tasks, those that rows here answer; all, if not set"
    )
    frozen: tuple[NamePattern, ...] = Field(
        default=(),
        max_length=MOST_PATTERNS,
        description="public: patterns of the names of parameters that are used here and not trained",
    )
    ledger: Path
    cache: Path
    max_parameters: int = Field(default=50_000_000, ge=1, description="largest model that a run may ask to train")
    checkpoints: tuple[Path, ...] = Field(default=(), description="folders of frozen networks that a run may name")
    parts: tuple[Path, ...] = Field(
        default=(), description="the owner's Python files that register encoders and the like"
    )
    agent: AgentSettings = AgentSettings()
    limits: OwnerLimits = OwnerLimits()
    privacy: OwnerPrivacy

    @model_validator(mode="after")
    def _delta_is_small(self) -> "SiteConfig":
        if self.privacy.unit == "subject" and self.nominal_subjects is None:
            raise ValueError('nominal_subjects: needed with privacy.unit = "subject"; the public number of subjects')
        units = self.nominal_units(self.privacy.unit)
        if self.privacy.delta * units > 1:
            raise ValueError(
                f"privacy.delta is {self.privacy.delta}; allowed: at most 1/{units} = "
                f"{1 / units:.1e}, above which publishing one whole {self.privacy.unit} would keep the promise"
            )
        return self

    @model_validator(mode="after")
    def _modalities_are_of_the_site(self) -> "SiteConfig":
        unknown = sorted(set(self.nominal_modality_sizes) - set(self.modalities))
        if unknown:
            raise ValueError(f"nominal_modality_sizes: {unknown} not in modalities; allowed: {list(self.modalities)}")
        wrong = sorted(name for name, size in self.nominal_modality_sizes.items() if not 1 <= size <= self.nominal_size)
        if wrong:
            raise ValueError(f"nominal_modality_sizes: of {wrong}; allowed: 1 to nominal_size, {self.nominal_size}")
        return self

    @property
    def terms(self) -> tuple[Hashable, ...]:
        """All that decides, beside its folder's card, what runs are permitted; equal for owners who permit the same."""
        terms: tuple[Hashable, ...] = _terms(vars(self))
        return terms

    def nominal_units(self, unit: Unit) -> int:
        """The public number of what a mechanism samples and protects here."""
        return self.nominal_subjects if unit == "subject" and self.nominal_subjects is not None else self.nominal_size


def read_site(path: Path) -> SiteConfig:
    """The owner's settings, with paths resolved against the folder of the file; the same object while it is the same.

    Raises:
        ConfigError: the file is missing, unreadable or not allowed; every fault is named.
    """
    site = _read_unless_known(path)
    if not os.path.isdir(site.data):  # noqa: PTH112  a third of the time, ten thousand times a round
        raise ConfigError(f"{path}: data is {site.data}, which is no folder; allowed: the folder with the manifest")
    return site


def _read(path: Path) -> SiteConfig:
    site = parse_settings(SiteConfig, read_toml(path), place=str(path))
    folder = path.resolve().parent
    one = {field: (folder / getattr(site, field)).resolve() for field in ("data", "ledger", "cache")}
    many = {
        field: tuple((folder / path).resolve() for path in getattr(site, field)) for field in ("checkpoints", "parts")
    }
    key = site.agent.key and (folder / site.agent.key).absolute()
    own = {field: (folder / getattr(site.agent, field)).absolute() for field in ("socket", "answers", "journal")}
    agent = site.agent.model_copy(update={**own, "key": key})
    values: dict[str, Hashable] = {**dict(site), **one, **many, "agent": agent}
    # Of ten thousand simulated owners most permit the same and share a ledger: one object each of what is equal.
    values |= {field: _one_object(value) for field, value in values.items() if field not in _OWN}
    return SiteConfig.model_construct(_FIELDS, **values)


@lru_cache(maxsize=1024)
def _one_object(value: Hashable) -> Hashable:
    return value


_OWN = ("name", "data", "data_set", "nominal_size", "nominal_subjects", "nominal_modality_sizes", "max_parameters")
"""numbers, and what hardly two sites have the same"""
_FIELDS = set(SiteConfig.model_fields)
_SAYS_NOTHING = {
    "name", "data", "data_set", "nominal_size", "nominal_subjects", "nominal_modality_sizes", "ledger", "cache",
    "agent",
}  # fmt: skip
_terms = itemgetter(*sorted(_FIELDS - _SAYS_NOTHING))
_read_unless_known = Unchanged(_read)
