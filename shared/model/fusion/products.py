"""Products: fusions in which modalities multiply, so that one may say how another is to be read.

in        embeddings [B, M, D] and present [B, M]
out       fused [B, D]
relies on 1 being neutral: an absent modality's factor is 1, and so is every factor about, at the start
"""

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from shared.model.fusion.present import linear_each, only_present
from shared.model.heads import ACTIVATIONS, Activation
from shared.model.parameters import apply_each
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.settings import Settings


class ProductOptions(Settings):
    """What is multiplied."""

    activation: Activation = Field(default="tanh", description="of each projected embedding, before 1 is added")


@fusion_registry.register("product", options=ProductOptions)
class ProductFusion(Fusion):
    """Element-wise product of the embeddings a sample has, each through a layer of its own and 1 added.

    With tanh every factor is between 0 and 2, and the noise of private training cannot make products of many explode.

    Source: Hadamard product of projections, Kim et al. 2017, arXiv:1610.04325, section 3.2. Ours differs: 1 is added to
    each factor. Factors about 0 would leave one another next to no gradient at the start, and an absent modality, whose
    factor is 1, would outweigh those present.
    """

    def __init__(self, place: FusionPlace, options: ProductOptions) -> None:
        super().__init__()
        self.project = linear_each(place)
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The product over the modalities present; ones where there is none."""
        factors = 1 + self.activation(apply_each(self.project, embeddings))
        return _product(only_present(factors, present, neutral=1.0))


class BilinearOptions(Settings):
    """Size of the low-rank tensor."""

    rank: int = Field(default=4, ge=1, le=64, description="products that are averaged; parameters grow with it")


@fusion_registry.register("bilinear", options=BilinearOptions)
class BilinearFusion(Fusion):
    """Every product of numbers of different modalities has a weight, in a tensor of low rank.

    Of two modalities it is bilinear: each output is a quadratic form of the two embeddings, of rank at most `rank`, and
    a linear form of each by itself; of M modalities it is multilinear. Parameters: rank * D * (D + 1) a modality where
    the whole tensor would have D * (D + 1)^M.

    Source: low-rank multimodal fusion, Liu et al. 2018, arXiv:1806.00064, section 3.2; of two modalities:
    Kim et al. 2017, arXiv:1610.04325, section 2. Ours differs: products are averaged over the rank and not summed;
    factors start about 1 for the reason told under `product`; and an absent modality's factor is 1, where theirs is a
    bias of its own, which would be an influence.
    """

    def __init__(self, place: FusionPlace, options: BilinearOptions) -> None:
        super().__init__()
        self.shape = (options.rank, place.width)
        self.factor = linear_each(place, outputs=options.rank * place.width)

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B D"]:
        """The mean over the rank of the products over the modalities present; ones where there is none."""
        factors = 1 + apply_each(self.factor, embeddings)
        products = _product(only_present(factors, present, neutral=1.0))
        return products.reshape(-1, *self.shape).mean(dim=1)


def _product(factors: Float[Tensor, "B M D"]) -> Float[Tensor, "B D"]:
    """Over the modalities, one after another: torch's own product has no gradient that torch.func can batch at a 0."""
    product = factors[:, 0]
    for place in range(1, factors.shape[1]):
        product = product * factors[:, place]
    return product
