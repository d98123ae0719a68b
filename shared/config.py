"""Settings of a run: what its starter asks of every site, checked before anything is done with it.

in        a table from a scenario file, or JSON from a train message
out       RunConfig and its parts, frozen; what the data must look like (DataSchema) is one of them
relies on nothing of Motet but errors.py; what an owner permits is client/site.py
"""

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from shared.errors import ConfigError

Option = bool | int | float | str | tuple[float, ...]
Kind = Literal["image", "text", "audio", "signal", "features"]
Unit = Literal["record", "subject", "site"]
Clipping = Literal["flat", "per-layer", "adaptive"]
NoiseKind = Literal["float64", "float32", "discrete"]
RESERVED_COLUMNS = ("label", "rating", "subject_id", "file_name")


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(f"{name!r} is not a name; allowed: a small letter, then up to 31 of a-z, 0-9 and _")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


class Settings(BaseModel):
    """A frozen table that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModalitySchema(Settings):
    """What one modality's values look like in a data folder.

    An image, audio, signal or features value is a file named in the column `<modality>_file_name`; a text stands in
    the column `<modality>` itself.
    """

    kind: Kind
    channels: int | None = Field(default=None, ge=1, le=4096, description="signal only: values per time step")
    width: int | None = Field(default=None, ge=1, le=65536, description="features only: length of the vector")

    @model_validator(mode="after")
    def _fits_kind(self) -> "ModalitySchema":
        for field, kind in (("channels", "signal"), ("width", "features")):
            if (getattr(self, field) is not None) != (self.kind == kind):
                need = "needs" if self.kind == kind else "does not take"
                raise ValueError(f"a modality of kind {self.kind} {need} {field}")
        return self


class DataSchema(Settings):
    """What every data folder of a run must look like: its task, its modalities in order, its group columns."""

    task: Literal["single-label", "rating"]
    labels: tuple[str, ...] = Field(default=(), description="single-label: all classes, in the order of their index")
    rating_range: tuple[float, float] | None = Field(default=None, description="rating: lowest and highest value")
    modalities: dict[Name, ModalitySchema] = Field(min_length=1)
    groups: tuple[str, ...] = Field(default=(), description="columns by which the evaluation is broken down")
    ignored: tuple[str, ...] = Field(default=(), description="columns that may be there and are not read")

    @model_validator(mode="after")
    def _task_is_complete(self) -> "DataSchema":
        if (self.task == "single-label") != bool(self.labels):
            raise ValueError("labels: needed for a single-label task, and for no other")
        if self.labels and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels: {list(self.labels)}; allowed: two or more, all different")
        if (self.task == "rating") != (self.rating_range is not None):
            raise ValueError("rating_range: needed for a rating task, and for no other")
        if self.rating_range is not None and not self.rating_range[0] < self.rating_range[1]:
            raise ValueError(f"rating_range: {self.rating_range}; allowed: lowest, then a higher highest")
        return self

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> "DataSchema":
        columns = [*RESERVED_COLUMNS, *self.groups, *self.ignored, *(self.column(name) for name in self.modalities)]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"columns {twice} have more than one meaning; allowed: one each")
        return self

    def column(self, modality: str) -> str:
        """Name of the manifest column that holds a modality: the text itself, or the name of its file."""
        return modality if self.modalities[modality].kind == "text" else f"{modality}_file_name"


class DataCard(Settings):
    """Where a data set comes from and what may be done with it; `dataset.toml` beside its folders."""

    title: str
    generated: bool = Field(description="made by a program from a seed; called so wherever it is reported")
    licence: str
    citation: str
    source: str
    content: DataSchema


class PartSettings(Settings):
    """A named part from a registry, with its options."""

    name: str = Field(min_length=1)
    options: dict[str, Option] = {}


class EncoderSettings(PartSettings):
    """How one modality becomes an embedding."""

    preprocess: dict[str, Option] = Field(default={}, description="options of the modality's preprocessing")


class ModelSettings(Settings):
    """One encoder a modality, a fusion and a head, all by name."""

    embedding_width: int = Field(ge=1, le=4096)
    encoders: dict[Name, EncoderSettings] = Field(min_length=1)
    fusion: PartSettings
    head: PartSettings = PartSettings(name="linear")
    modality_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="chance that training hides a present modality"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="chance that training drops a number of an embedding")


class TrainingSettings(Settings):
    """What a site does in one round. Steps and batch sizes follow from its public nominal size, never from its rows."""

    optimizer: Literal["sgd", "momentum", "adam"]
    learning_rate: float = Field(gt=0, le=1e6)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum optimizer only")
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int | None = Field(default=None, ge=1, description="expected size of a Poisson batch")
    sample_rate: float | None = Field(default=None, ge=1e-9, le=1, description="chance that a unit enters a batch")
    local_steps: int | None = Field(default=None, ge=1, le=100_000)
    local_epochs: float | None = Field(
        default=None, gt=0, le=10_000, description="expected passes over the nominal size"
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: int = Field(default=0, ge=0)
    proximal_mu: float = Field(default=0.0, ge=0, description="FedProx: pull towards the round's first weights")
    gradient_engine: Literal["auto", "reference", "hooks", "functional", "bookkeeping"] = "auto"
    microbatch_size: int = Field(default=64, ge=1, le=1024)
    records_per_subject: int = Field(
        default=1, ge=1, le=1024, description="unit subject: records drawn of each sampled subject, averaged"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> "TrainingSettings":
        for first, second in (("batch_size", "sample_rate"), ("local_steps", "local_epochs")):
            if (getattr(self, first) is None) == (getattr(self, second) is None):
                raise ValueError(f"{first} and {second}: exactly one of them must be set")
        return self

    def sampling(self, nominal_size: int) -> float:
        """Poisson sampling rate at a site of a given nominal size, in (0, 1]."""
        return self.sample_rate if self.sample_rate is not None else min(1.0, (self.batch_size or 1) / nominal_size)

    def steps(self, nominal_size: int) -> int:
        """Local steps in one round at a site of a given nominal size."""
        if self.local_steps is not None:
            return self.local_steps
        return max(1, math.ceil((self.local_epochs or 0.0) / self.sampling(nominal_size) - 1e-9))


class PrivacySettings(Settings):
    """What a whole run may reveal about one unit, and who adds the noise that hides it."""

    unit: Unit
    trust: Literal["nobody", "aggregate", "server"]
    epsilon: float = Field(gt=0, description="total over all rounds of the run, at `delta`")
    delta: float = Field(gt=0, lt=1)
    clip_norm: float = Field(
        ge=1e-6, le=1e6, description="largest L2 norm of one unit's gradient or update; adaptive clipping begins there"
    )
    clipping: Clipping = "flat"
    target_quantile: float = Field(
        default=0.5, gt=0, lt=1, description="adaptive: share of contributions that shall not be clipped"
    )
    quantile_rate: float = Field(default=0.2, gt=0, le=1, description="adaptive: how fast the clip norm follows")
    accountant: Literal["rdp", "prv", "pld"] = "pld"

    @model_validator(mode="after")
    def _is_offered(self) -> "PrivacySettings":
        if self.trust == "aggregate":
            raise ValueError(
                'trust "aggregate" needs secure aggregation, which is not offered yet; allowed: "nobody" with unit '
                '"record" or "subject", "server" with unit "site"'
            )
        if (self.unit == "site") != (self.trust == "server"):
            raise ValueError(
                f'unit {self.unit!r} with trust {self.trust!r}; allowed: "record" or "subject" with "nobody", where '
                'every site adds its own noise, and "site" with "server", where the server adds it to the sum'
            )
        return self


class StatisticsSettings(Settings):
    """Noisy counts that every site is asked for once, before the first round; they cost budget like a round."""

    noise_multiplier: float = Field(
        ge=0.3, le=1e6, description="noise standard deviation of each count; one unit moves the counts by at most 1"
    )


class ServerOptimizerSettings(Settings):
    """How the server applies the average update: Reddi et al. 2021, arXiv:2003.00295, algorithm 2."""

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]
    learning_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="beta_1; unused by fedavg")
    second_momentum: float = Field(default=0.99, ge=0, lt=1, description="beta_2 of fedadam and fedyogi")
    adaptivity: float = Field(default=1e-3, gt=0, description="tau: the smaller, the more adaptive")


class FederationSettings(Settings):
    """Rounds, who takes part, and how updates become the next model."""

    rounds: int = Field(ge=1, le=100_000)
    sites_per_round: int | None = Field(default=None, ge=1, description="all, if not set; the schedule is public")
    site_sample_rate: float | None = Field(
        default=None, gt=0, lt=1, description="chance that a site is asked in a round, drawn in secret; unit site only"
    )
    min_sites: int = Field(default=1, ge=1, description="a round with fewer usable updates changes nothing")
    wait_for_sites_s: float = Field(default=60.0, gt=0)
    round_timeout_s: float = Field(default=3600.0, gt=0)
    aggregation: Literal["mean", "median", "trimmed-mean"] = "mean"
    trim_share: float = Field(default=0.1, ge=0, lt=0.5, description="trimmed-mean: share cut off at either end")
    weighting: Literal["uniform", "examples"] = "uniform"
    server_optimizer: ServerOptimizerSettings = ServerOptimizerSettings(name="fedavg")
    select: Literal["best", "last"] = Field(default="best", description="by the validation part")
    patience_rounds: int | None = Field(
        default=None, ge=1, description="stop after so many rounds without a better one"
    )


class EvaluationSettings(Settings):
    """What the server measures on its held-out data."""

    every_rounds: int = Field(default=1, ge=1)
    validation_share: float = Field(default=0.5, gt=0, lt=1, description="used when the held-out folder has no parts")
    bootstrap_samples: int = Field(default=1000, ge=0, le=100_000)
    modality_subsets: bool = True


class RunConfig(Settings):
    """All that the starter of a run asks. A promise (privacy) has no default."""

    name: Name
    seed: int = Field(ge=0, lt=2**63, description="weights, participation; never noise that protects anybody")
    data: DataSchema
    model: ModelSettings
    training: TrainingSettings
    privacy: PrivacySettings | Literal["none"]
    site_privacy: PrivacySettings | None = Field(
        default=None, description="unit site, beside a `privacy` of unit record or subject: both hold at once"
    )
    statistics: StatisticsSettings | None = None
    federation: FederationSettings
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _parts_fit(self) -> "RunConfig":
        unknown = sorted(set(self.model.encoders) - set(self.data.modalities))
        if unknown:
            raise ValueError(
                f"model.encoders: {unknown} not in data.modalities; allowed: {sorted(self.data.modalities)}"
            )
        if self.model.modality_dropout and len(self.model.encoders) == 1:
            raise ValueError("model.modality_dropout: a model of one modality has none to drop; allowed: 0")
        return self

    @model_validator(mode="after")
    def _privacy_fits(self) -> "RunConfig":
        if self.site_privacy is not None:
            if self.site_privacy.unit != "site":
                raise ValueError(f'site_privacy.unit is {self.site_privacy.unit!r}; allowed: "site"')
            if self.local_privacy is None:
                raise ValueError(
                    'site_privacy: stands beside a privacy of unit "record" or "subject"; alone, unit "site" belongs '
                    "into privacy itself"
                )
        if self.statistics is not None and self.local_privacy is None:
            raise ValueError('statistics: noisy counts need a privacy of unit "record" or "subject"')
        subjects = self.local_privacy is not None and self.local_privacy.unit == "subject"
        if self.training.records_per_subject > 1 and not subjects:
            raise ValueError('training.records_per_subject: above 1 only with privacy.unit = "subject"')
        federation = self.federation
        if self.central_privacy is None:
            if federation.site_sample_rate is not None:
                raise ValueError('federation.site_sample_rate: only with unit "site"; use sites_per_round')
            return self
        if federation.site_sample_rate is not None and federation.sites_per_round is not None:
            raise ValueError("federation: site_sample_rate (secret) or sites_per_round (public); allowed: one of them")
        if self.statistics is not None or (self.local_privacy and self.local_privacy.clipping == "adaptive"):
            raise ValueError('beside unit "site" not allowed, as they tell of single sites: statistics, local adaptive')
        if federation.aggregation != "mean" or federation.weighting != "uniform":
            raise ValueError(
                'unit "site" bounds what a site adds to a plain sum; allowed: aggregation = "mean" with weighting = '
                '"uniform"'
            )
        return self

    @property
    def local_privacy(self) -> PrivacySettings | None:
        """What each site adds noise for by itself: records or subjects."""
        return None if self.privacy == "none" or self.privacy.unit == "site" else self.privacy

    @property
    def central_privacy(self) -> PrivacySettings | None:
        """What the server adds noise for: whole sites."""
        return self.privacy if self.privacy != "none" and self.privacy.unit == "site" else self.site_privacy

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities the model uses, in the order of the data schema: the M of every [B, M] tensor."""
        return tuple(name for name in self.data.modalities if name in self.model.encoders)

    @property
    def digest(self) -> str:
        """SHA-256 of the settings; equal settings, equal digest."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


AnySettings = TypeVar("AnySettings", bound=Settings)


def parse_settings(kind: type[AnySettings], table: Mapping[str, object], *, place: str) -> AnySettings:
    """Settings from a table, or every fault in it at once.

    Raises:
        ConfigError: with the field, what came and what is allowed, for each fault.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_describe(error, kind=kind, place=place)) from None


def parse_settings_json(kind: type[AnySettings], text: str, *, place: str) -> AnySettings:
    """Settings from JSON, under the same checks as `parse_settings`."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(_describe(error, kind=kind, place=place)) from None


def read_toml(path: Path) -> dict[str, object]:
    """A TOML file as a table.

    Raises:
        ConfigError: the file is missing, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None


def _describe(error: ValidationError, *, kind: type[Settings], place: str) -> str:
    # a union reports a fault for each of its sides; `privacy = "none"` is not what a table was meant to be
    faults = [fault for fault in error.errors(include_url=False) if not _is_other_side(fault)]
    lines = [f"{place}: {len(faults)} fault{'' if len(faults) == 1 else 's'} in the settings"]
    for fault in itertools.islice(faults, 50):
        path = [str(part) for part in fault["loc"] if "[" not in str(part)]
        came = "" if isinstance(fault["input"], Mapping) else f" (came: {str(fault['input'])[:80]!r})"
        said = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            said = f"no such setting; allowed: {', '.join(_fields_at(kind, path[:-1]))}"
        # what is said of the whole table names its fields itself
        lines.append(f"  {'.'.join(path)}: {said}{came}" if path else f"  {said}{came}")
    return "\n".join(lines)


def _is_other_side(fault: ErrorDetails) -> bool:
    is_literal_side = any(str(part).startswith("literal[") for part in fault["loc"])
    return is_literal_side and isinstance(fault["input"], Mapping)


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the settings that the table at a path may hold."""
    for part in path:
        field = kind.model_fields.get(part)
        inner = field.annotation if field is not None else None
        sides = [side for side in (inner, *get_args(inner)) if isinstance(side, type) and issubclass(side, BaseModel)]
        kind = sides[0] if sides else kind
    return list(kind.model_fields)
