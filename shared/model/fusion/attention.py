"""Attention over modalities: the embeddings of one sample look at each other before they become one vector.

in        embeddings [B, M, D] and present [B, M]
out       fused [B, D]
relies on ../attention.py for the layers
"""

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from shared.errors import ModelError
from shared.model.attention import TransformerBlock, masked_mean
from shared.model.fusion.present import linear_each, only_present
from shared.model.parameters import apply_each
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.settings import Settings


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
        self.token = linear_each(place)
        self.layers = nn.ModuleList(
            TransformerBlock(place.width, heads=options.heads, hidden=hidden) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(place.width)

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the tokens present, after they have looked at each other."""
        tokens = only_present(apply_each(self.token, embeddings), present)
        for layer in self.layers:
            tokens = layer(tokens, present)
        return masked_mean(self.norm(tokens), present)
