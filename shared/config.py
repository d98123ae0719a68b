"""Settings of a run: what its starter asks of every site, checked before anything is done with it.

in        a table from a scenario file, or JSON from a train message
out       RunConfig and its parts, frozen
relies on settings.py, and on schema.py for what the data must look like; what an owner permits is client/site.py
"""

import hashlib
import math
from typing import Literal

from pydantic import Field, model_validator

from shared.aggregation_settings import AggregationSettings
from shared.schema import DataSchema
from shared.settings import MOST_PATTERNS, Name, NamePattern, Option, Settings

Unit = Literal["record", "subject", "site"]
Clipping = Literal["flat", "per-layer", "adaptive"]
NoiseKind = Literal["float64", "float32", "discrete"]
EncoderMode = Literal["train", "frozen", "lora"]


class PartSettings(Settings):
    """A named part from a registry, with its options."""

    name: str = Field(min_length=1)
    options: dict[str, Option] = Field(default={})


class LoraSettings(Settings):
    """How an encoder with public weights is adapted: Hu et al. 2021, arXiv:2106.09685, section 4.1."""

    rank: int = Field(default=4, ge=1, le=256)
    alpha: float = Field(default=8.0, gt=0, le=1e4, description="what is added is scaled by alpha / rank")
    layers: tuple[NamePattern, ...] = Field(
        default=(),
        max_length=MOST_PATTERNS,
        description="endings of the names of the linear layers; the encoder's own choice if not set",
    )


class EncoderSettings(PartSettings):
    """How one modality becomes an embedding."""

    mode: EncoderMode | None = Field(
        default=None,
        description="what of the encoder trains: all of it, its last layer, or that and low-rank additions; not set: "
        'the last layer of one with public weights ("frozen"), all of any other ("train")',
    )
    lora: LoraSettings = LoraSettings()
    preprocess: dict[str, Option] = Field(default={}, description="options of the modality's preprocessing")
    augment: dict[str, Option] = Field(default={}, description="how training changes a value, each sample by itself")

    @model_validator(mode="after")
    def _lora_is_used(self) -> "EncoderSettings":
        if self.lora != LoraSettings() and self.mode != "lora":
            raise ValueError(
                f'lora: settings of mode = "lora", and mode is {self.mode!r}; allowed: one of them changed'
            )
        return self


class LossSettings(Settings):
    """What a wrong answer costs; all of it public and fixed before the run."""

    rating: Literal["squared", "huber"] = "squared"
    huber_delta: float = Field(
        default=0.5, gt=0, le=10, description="huber: where the loss turns linear, in halves of the rating's range"
    )
    class_weights: dict[str, float] = Field(
        default={}, description="label, or task.label with several tasks -> weight; 1 if not named"
    )
    task_weights: dict[Name, float] = Field(default={}, description="several tasks: task -> weight; 1 if not named")


class MatchingSettings(Settings):
    """How pairs are told from other pairs."""

    width: int = Field(default=0, ge=0, le=4096, description="of the joint space; 0: model.embedding_width")
    loss: Literal["info-nce", "sigmoid", "binary"] = "info-nce"
    score: Literal["cosine", "euclidean"] = "cosine"
    temperature: float = Field(default=0.1, gt=0, le=100)
    negatives: Literal["public", "in-batch"] = Field(
        default="public", description="in-batch only where whole sites are protected, or nobody is"
    )
    num_negatives: int = Field(default=256, ge=1, le=65_536, description="public: how many values a modality")


class AdversarySettings(Settings):
    """A small network that guesses an embedding's modality, which the encoders learn to keep it from."""

    weight: float = Field(
        default=0.05, gt=0, le=100, description="how hard the encoders work against it; too hard, and neither settles"
    )
    hidden: int = Field(default=16, ge=1, le=1024, description="width of its hidden layer")


class StartSettings(Settings):
    """Weights of an earlier run that this one begins with."""

    path: str = Field(min_length=1, description="a model.safetensors of the server's machine")
    parts: tuple[NamePattern, ...] = Field(
        default=("*",), max_length=MOST_PATTERNS, description="patterns of the names of parameters that are taken"
    )


class AlignSettings(Settings):
    """One clock for the recordings, clips and signals of a row: the model sees the same seconds of each.

    The window begins at the row's start_s; failing that, where the first of its values begins, or with "intersection"
    the last of them.
    """

    window_s: float = Field(gt=0, le=60, description="how much the model sees of each")
    rate_hz: float = Field(gt=0, le=10_000, description="signals: time steps a second that they are interpolated to")
    how: Literal["window", "intersection"] = Field(
        default="window", description="intersection: of the window only the time that all values of the row cover"
    )
    outside: Literal["zero", "hold"] = Field(
        default="zero", description="what is not covered: 0 and black, or the nearest value; sound is silent there"
    )


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
    loss: LossSettings = LossSettings()
    matching: MatchingSettings = MatchingSettings()
    adversary: AdversarySettings | None = None
    start: StartSettings | None = None
    align: AlignSettings | None = None
    freeze: tuple[NamePattern, ...] = Field(
        default=(), max_length=MOST_PATTERNS, description="patterns of the names of parameters that do not train"
    )
    personal: tuple[NamePattern, ...] = Field(
        default=(),
        max_length=MOST_PATTERNS,
        description="patterns of the names of parameters that each site keeps to itself",
    )


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
    augment_multiplicity: int = Field(
        default=1, ge=1, le=64, description="changed copies of a record whose gradients are averaged before clipping"
    )
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


class FederationSettings(AggregationSettings):
    """Rounds, who takes part, and how updates become the next model."""

    rounds: int = Field(ge=1, le=100_000)
    site_sample_rate: float | None = Field(
        default=None, gt=0, lt=1, description="chance that a site is asked in a round, drawn in secret; unit site only"
    )
    wait_for_sites_s: float = Field(default=60.0, gt=0)
    round_timeout_s: float = Field(default=3600.0, gt=0)
    pause_s: float = Field(
        default=86_400.0, ge=0, description="longest wait before a round for `min_sites` to be on line again"
    )
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
        model = self.model
        is_changed = model.dropout or model.modality_dropout or any(each.augment for each in model.encoders.values())
        if self.training.augment_multiplicity > 1 and not is_changed:
            raise ValueError(
                "training.augment_multiplicity: copies of a record that are all the same; allowed: 1, or augment of an "
                "encoder, model.dropout or model.modality_dropout"
            )
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
        in_batch = self.data.task == "matching" and self.model.matching.negatives == "in-batch"
        if in_batch and self.local_privacy is not None:
            # PRIVACY: the clip norm would bound nobody's share of the sum.
            # test_in_batch_negatives_are_refused_where_records_or_subjects_are_protected
            raise ValueError(
                f'model.matching.negatives: "in-batch" with privacy.unit = "{self.local_privacy.unit}": each pair is '
                "in the loss of all others, so that one pair more moves the clipped sum by several clip norms and "
                'epsilon would be wrong; allowed: "public", or unit "site" alone'
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
            # PRIVACY: by any other rule one site decides how much of another's update is in the result, and no noise is
            # calibrated to that. test_robust_rules_are_refused_where_whole_sites_are_protected
            raise ValueError(
                f"aggregation is {federation.aggregation!r} with weighting = {federation.weighting!r}, and the noise "
                'for unit "site" is calibrated to what one site adds to a plain sum; allowed: aggregation = "mean" '
                'with weighting = "uniform". Each update is clipped to clip_norm there, as "norm-bound" would'
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
