"""Aggregation settings: how a round's updates become one, and how many hostile sites that has to bear.

in        the federation part of a run's table
out       AggregationSettings, the base of config.FederationSettings; rules that cannot hold what they promise refused
relies on settings.py; what each rule does is server/aggregation.py
"""

from typing import Literal

from pydantic import Field, model_validator

from shared.settings import Settings

Rule = Literal["mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-bound"]


class AggregationSettings(Settings):
    """Which updates of a round count, and how much."""

    sites_per_round: int | None = Field(default=None, ge=1, description="all, if not set; the schedule is public")
    min_sites: int = Field(default=1, ge=1, description="a round with fewer usable updates changes nothing")
    aggregation: Rule = "mean"
    trim_share: float = Field(default=0.1, ge=0, lt=0.5, description="trimmed-mean: share cut off at either end")
    byzantine_sites: int | None = Field(
        default=None, ge=0, le=10_000, description="krum, multi-krum: how many sites of a round may be hostile"
    )
    kept_sites: int | None = Field(
        default=None,
        ge=1,
        description="multi-krum: how many updates are averaged; all but byzantine_sites, if not set, and at the most",
    )
    norm_bound: float | None = Field(
        default=None, gt=0, le=1e9, description="norm-bound: largest L2 norm of an update; the round's own, if not set"
    )
    norm_bound_factor: float = Field(
        default=1.0, gt=0, le=1e6, description="norm-bound: the round's own bound is its median norm times this"
    )
    weighting: Literal["uniform", "examples", "modality"] = "uniform"

    @property
    def fewest_updates(self) -> int:
        """How many updates the rule needs, whichever they are."""
        return 1 if self.byzantine_sites is None else 2 * self.byzantine_sites + 3

    @model_validator(mode="after")
    def _belongs_to_the_rule(self) -> "AggregationSettings":
        rule, is_krum = self.aggregation, self.aggregation in ("krum", "multi-krum")
        used = {
            "byzantine_sites": (self.byzantine_sites is not None, is_krum, '"krum" or "multi-krum"'),
            "kept_sites": (self.kept_sites is not None, rule == "multi-krum", '"multi-krum"'),
            "norm_bound": (self.norm_bound is not None, rule == "norm-bound", '"norm-bound"'),
            "norm_bound_factor": (
                self.norm_bound_factor != 1.0,
                rule == "norm-bound" and self.norm_bound is None,
                '"norm-bound" without norm_bound',
            ),
        }
        for name, (is_set, is_read, where) in used.items():
            if is_set and not is_read:
                raise ValueError(f"{name}: nothing reads it with aggregation = {rule!r}; allowed: with {where}")
        if is_krum and self.byzantine_sites is None:
            raise ValueError(
                f"byzantine_sites: aggregation = {rule!r} needs it, how many sites of a round may be hostile; allowed: "
                "0 or more, with at least 2 * byzantine_sites + 3 sites in every round"
            )
        return self

    @model_validator(mode="after")
    def _can_hold_its_promise(self) -> "AggregationSettings":
        if self.aggregation != "mean" and self.weighting != "uniform":
            raise ValueError(
                f"weighting is {self.weighting!r} with aggregation = {self.aggregation!r}: how large a site is stands "
                'in its own word, which a hostile one chooses; allowed: "uniform", or aggregation = "mean"'
            )
        fewest = self.fewest_updates
        if self.sites_per_round is not None and self.sites_per_round < fewest:
            raise ValueError(
                f"sites_per_round is {self.sites_per_round}; aggregation = {self.aggregation!r} with byzantine_sites = "
                f"{self.byzantine_sites} needs {fewest} updates in a round; allowed: {fewest} or more, or fewer "
                "byzantine_sites"
            )
        if self.min_sites < fewest:
            raise ValueError(
                f"min_sites is {self.min_sites}; aggregation = {self.aggregation!r} with byzantine_sites = "
                f"{self.byzantine_sites} says nothing about fewer than 2 * {self.byzantine_sites} + 3 = {fewest} "
                f"updates; allowed: {fewest} or more. With 3 * byzantine_sites + 3 sites in every round, hostile ones "
                "cannot stop it by sending nothing"
            )
        return self
