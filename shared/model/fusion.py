"""Fusion: the embeddings of one sample, some of them absent, become one vector.

in        embeddings [B, M, D] from encoders/ (zeros where absent) and present [B, M] from batch.py
out       fused [B, D], read by heads.py; at decision level, the answers of M heads become one answer
relies on nothing for rows without any modality: they give a finite result, because padded batches hold such rows

An absent modality has no weight, exactly, and gets no gradient, exactly. None uses statistics across the batch.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.attention import TransformerBlock, masked_mean
from shared.model.heads import ACTIVATIONS, Activation
from shared.model.parameters import PerModality, apply_each
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.settings import Settings


class PlainOptions(Settings):
    """None."""


class ActivationOptions(Settings):
    """What follows the sum."""

    activation: Activation = "none"


@fusion_registry.register("concat", options=ActivationOptions)
class ConcatFusion(Fusion):
    """One linear layer over all embeddings side by side, and over which of them are present.

    Written as one Linear a modality, summed over those present, which is the same thing: so each modality's weights
    are parameters of its own, and a bias speaks only where its modality is.
    """

    def __init__(self, place: FusionPlace, options: ActivationOptions) -> None:
        super().__init__()
        self.project = _linear_each(place)
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The sum of the present modalities' projections."""
        projected = apply_each(self.project, embeddings)
        fused: Tensor = self.activation(_only_present(projected, present).sum(dim=1))
        return fused


@fusion_registry.register("sum", options=PlainOptions)
class SumFusion(Fusion):
    """Sum of the embeddings a sample has; no parameters."""

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del place, options

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The sum over the modalities present."""
        return _only_present(embeddings, present).sum(dim=1)


@fusion_registry.register("mean", options=PlainOptions)
class MeanFusion(Fusion):
    """Mean of the embeddings a sample has; no parameters."""

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del place, options

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the modalities present."""
        return masked_mean(embeddings, present)


class GatedOptions(Settings):
    """What the gates weigh."""

    project: bool = Field(default=True, description="each embedding through a tanh layer of its own first")


@fusion_registry.register("gated", options=GatedOptions)
class GatedFusion(Fusion):
    """Weighted mean of the embeddings a sample has; an absent one has no weight and gets no gradient.

    Uses no statistics across the batch, so every sample keeps a gradient of its own to clip.

    Source: gated multimodal unit, Arevalo et al. 2017, arXiv:1702.01992. Ours differs: the gates are one softmax
    over the modalities present, because independent gates would shrink the vector when audio is missing; and each
    gate looks at its own embedding alone, so that a site without a modality has nothing of it to send.
    """

    def __init__(self, place: FusionPlace, options: GatedOptions) -> None:
        super().__init__()
        self.project = _linear_each(place) if options.project else None
        self.gate = PerModality({name: nn.Linear(place.width, 1) for name in place.modalities})

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the modalities present, each with the weight its gate gives it."""
        scores = apply_each(self.gate, embeddings)[:, :, 0]
        scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=1).masked_fill(~present, 0.0)
        values = embeddings if self.project is None else apply_each(self.project, embeddings).tanh()
        return (weights[:, :, None] * _only_present(values, present)).sum(dim=1)


class AttentionOptions(Settings):
    """Size of the transformer over modalities."""

    layers: int = Field(default=1, ge=1, le=8)
    heads: int = Field(default=2, ge=1, le=16, description="must divide model.embedding_width")
    hidden: int = Field(default=0, ge=0, le=4096, description="width inside a layer; 0: twice model.embedding_width")


@fusion_registry.register("attention", options=AttentionOptions)
class AttentionFusion(Fusion):
    """A small transformer over one token a modality; absent ones are seen by nobody.

    Each token is a projection of the embedding by the modality's own layer, whose bias says which modality it is.
    """

    def __init__(self, place: FusionPlace, options: AttentionOptions) -> None:
        super().__init__()
        if place.width % options.heads:
            raise ModelError(
                f"fusion 'attention': heads is {options.heads}; allowed: a divisor of model.embedding_width, "
                f"which is {place.width}"
            )
        hidden = options.hidden or 2 * place.width
        self.token = _linear_each(place)
        self.layers = nn.ModuleList(
            TransformerBlock(place.width, heads=options.heads, hidden=hidden) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(place.width)

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the tokens present, after they have looked at each other."""
        tokens = _only_present(apply_each(self.token, embeddings), present)
        for layer in self.layers:
            tokens = layer(tokens, present)
        return masked_mean(self.norm(tokens), present)


class AverageOptions(Settings):
    """What is averaged."""

    of: Literal["log-probabilities", "logits"] = Field(
        default="log-probabilities", description="ratings are always averaged as they are"
    )


@fusion_registry.register("average", options=AverageOptions)
class AverageFusion(Fusion):
    """One head a modality; the answer is the mean of what those present say."""

    level = "decision"

    def __init__(self, place: FusionPlace, options: AverageOptions) -> None:
        super().__init__()
        self.task, self.normalised = place.task, options.of == "log-probabilities"

    def forward(self, outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        """The mean answer of the modalities present."""
        return masked_mean(self.task.log_probabilities(outputs) if self.normalised else outputs, present)


def _linear_each(place: FusionPlace) -> PerModality:
    return PerModality({name: nn.Linear(place.width, place.width) for name in place.modalities})


def _only_present(values: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    return values.masked_fill(~present[:, :, None], 0.0)
