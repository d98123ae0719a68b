"""Sums: fusions that add the embeddings a sample has up, each with a weight.

in        embeddings [B, M, D] and present [B, M]
out       fused [B, D]
relies on present.py for weights over the modalities that are there
"""

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from shared.model.attention import masked_mean
from shared.model.fusion.present import LearnedWeights, PlainOptions, linear_each, only_present, weights_of
from shared.model.parameters import PerModality, apply_each
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.settings import Settings


@fusion_registry.register("sum", options=PlainOptions)
class SumFusion(Fusion):
    """Sum of the embeddings a sample has; no parameters."""

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del place, options

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The sum over the modalities present."""
        return only_present(embeddings, present).sum(dim=1)


@fusion_registry.register("mean", options=PlainOptions)
class MeanFusion(Fusion):
    """Mean of the embeddings a sample has; no parameters."""

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del place, options

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the modalities present."""
        return masked_mean(embeddings, present)


@fusion_registry.register("weighted", options=PlainOptions)
class WeightedFusion(Fusion):
    """Weighted mean of the embeddings a sample has, by one learned weight a modality, the same for all samples.

    The weights are a softmax over the modalities present of one number each, so that they add up to 1 whatever is
    absent; they start equal.

    Source: Peters et al. 2018, arXiv:1802.05365, equation 1 (softmax-normalised scalar weights), there over layers.
    """

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del options
        self.weights = LearnedWeights(place.modalities)

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the modalities present, each with its weight."""
        fused: Tensor = self.weights(embeddings, present)
        return fused


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
        self.project = linear_each(place) if options.project else None
        self.gate = PerModality({name: nn.Linear(place.width, 1) for name in place.modalities})

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the modalities present, each with the weight its gate gives it."""
        scores = apply_each(self.gate, embeddings)[:, :, 0]
        values = embeddings if self.project is None else apply_each(self.project, embeddings).tanh()
        return (weights_of(scores, present)[:, :, None] * only_present(values, present)).sum(dim=1)
