"""Site settings: what the owner of the data permits, on the owner's disk and in nobody else's hands.

in        site.toml, written by the owner
out       SiteConfig, read by agent.py, ledger.py and private_training.py
relies on nothing that arrives over the network
"""

from pathlib import Path

from pydantic import Field, model_validator

from shared.config import Name, Settings, parse_settings, read_toml
from shared.errors import ConfigError


class OwnerPrivacy(Settings):
    """The owner's budget for one data set over all runs, and what may be told about it."""

    epsilon: float = Field(gt=0, description="largest total ever, all runs together")
    delta: float = Field(gt=0, lt=1)
    least_noise_multiplier: float = Field(default=0.3, ge=0, description="no round has less noise, whatever it costs")
    allow_non_private: bool = False
    share_num_examples: bool = False
    reproducible_noise: bool = Field(
        default=False, description="simulations only: noise that a seed gives back protects nobody"
    )


class SiteConfig(Settings):
    """What an owner permits. Paths are relative to the file they stand in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="public: the report shows it")
    data: Path
    data_set: str = Field(
        min_length=1, max_length=200, description="the ledger's key: never rename it to refill a budget"
    )
    nominal_size: int = Field(
        ge=1, description="public; sampling rate and denominator follow from it, not from counting rows"
    )
    modalities: tuple[Name, ...] = Field(min_length=1, description="public: which modalities rows here may have")
    ledger: Path
    cache: Path
    max_parameters: int = Field(default=50_000_000, ge=1, description="largest model that a run may ask to train")
    checkpoints: tuple[Path, ...] = Field(default=(), description="folders of frozen networks that a run may name")
    parts: tuple[Path, ...] = Field(
        default=(), description="the owner's Python files that register encoders and the like"
    )
    privacy: OwnerPrivacy

    @model_validator(mode="after")
    def _delta_is_small(self) -> "SiteConfig":
        if self.privacy.delta * self.nominal_size > 1:
            raise ValueError(
                f"privacy.delta is {self.privacy.delta}; allowed: at most 1/nominal_size = "
                f"{1 / self.nominal_size:.1e}, above which publishing one whole record would keep the promise"
            )
        return self


def read_site(path: Path) -> SiteConfig:
    """The owner's settings, with paths resolved against the folder of the file.

    Raises:
        ConfigError: the file is missing, unreadable or not allowed; every fault is named.
    """
    site = parse_settings(SiteConfig, read_toml(path), place=str(path))
    folder = path.resolve().parent
    one = {field: (folder / getattr(site, field)).resolve() for field in ("data", "ledger", "cache")}
    many = {
        field: tuple((folder / path).resolve() for path in getattr(site, field)) for field in ("checkpoints", "parts")
    }
    resolved = site.model_copy(update={**one, **many})
    if not resolved.data.is_dir():
        raise ConfigError(f"{path}: data is {resolved.data}, which is no folder; allowed: the folder with the manifest")
    return resolved
