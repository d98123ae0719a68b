"""Layers: fusions that read all embeddings of a sample side by side.

in        embeddings [B, M, D] and present [B, M]
out       fused [B, D]
relies on a linear layer over embeddings side by side being the sum of one linear layer for each
"""

import itertools

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from shared.model.fusion.present import linear_each, only_present
from shared.model.heads import ACTIVATIONS, Activation
from shared.model.parameters import apply_each
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.settings import Settings


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
        self.project = linear_each(place)
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The sum of the present modalities' projections."""
        projected = apply_each(self.project, embeddings)
        fused: Tensor = self.activation(only_present(projected, present).sum(dim=1))
        return fused


class MlpFusionOptions(Settings):
    """Size of the network over all embeddings side by side."""

    layers: int = Field(default=2, ge=1, le=8, description="the last is as wide as the embedding")
    hidden: int = Field(default=0, ge=0, le=4096, description="width of the others; 0: twice model.embedding_width")
    activation: Activation = Field(default="relu", description="after each of them")


@fusion_registry.register("mlp", options=MlpFusionOptions)
class MlpFusion(Fusion):
    """A few layers over all embeddings side by side, with a bend after each.

    The first layer is one Linear a modality, summed over those present, as in `concat`.

    Source: Ngiam et al. 2011, ICML (a shared representation above both modalities), trained with labels.
    """

    def __init__(self, place: FusionPlace, options: MlpFusionOptions) -> None:
        super().__init__()
        hidden = options.hidden or 2 * place.width
        widths = [*[hidden] * (options.layers - 1), place.width]
        self.project = linear_each(place, outputs=widths[0])
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """What the last layer gives."""
        values: Tensor = self.activation(only_present(apply_each(self.project, embeddings), present).sum(dim=1))
        for layer in self.layers:
            values = self.activation(layer(values))
        return values
