"""Costs: what a sample's embeddings cost by themselves, beside what its wrong answer costs.

in        embeddings [B, M, D] and present [B, M] from multimodal.py, in training alone
out       a cost for each sample [B], which the model's loss adds
relies on every cost being of one sample by itself, so that its gradient is part of the one that is clipped and noised
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.attention import masked_mean
from shared.model.registry import EmbeddingCost
from shared.model.seeding import seeded


class ModalityAdversary(EmbeddingCost):
    """A small network guesses which modality an embedding came from; the encoders learn to keep it from telling.

    The cost is the cross-entropy of the guesses, averaged over the modalities that a sample has, so that embeddings of
    all modalities come to lie in the same places. Going back, its gradient is turned round and scaled by `weight`
    before it reaches the embeddings: the network learns to guess well and the encoders to have it guess badly, in one
    backward pass and without a loss of two parts.

    This is the form of alignment that record privacy allows. A distance between the modalities' distributions over a
    batch (MMD, CORAL), or pairs set against the batch's other pairs, makes one sample's gradient depend on the others:
    there would be no gradient of a sample by itself to clip. Here what the samples say together is remembered only in
    the network's weights, which learn from clipped and noised gradients as all others do.

    Source: Ganin and Lempitsky 2015, arXiv:1409.7495, section 3.2 (gradient reversal), with modalities for
    domains.
    """

    def __init__(self, *, width: int, num_modalities: int, hidden: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.hidden, self.guess = nn.Linear(width, hidden), nn.Linear(hidden, num_modalities)

    def forward(self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B"]:
        """Mean cross-entropy of the guesses in nats; 0 for a sample without any modality."""
        costs = -self.told(_turned(embeddings, weight=self.weight)).diagonal(dim1=1, dim2=2)
        return masked_mean(costs[:, :, None], present)[:, 0]

    def told(self, embeddings: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
        """Log-probability of each modality, for each embedding."""
        # all embeddings are positions of one call: a layer that is called once is followed at the least cost
        guesses: Tensor = self.guess(self.hidden(embeddings).relu())
        return guesses.log_softmax(dim=2)


def build_costs(run: RunConfig) -> dict[str, EmbeddingCost]:
    """The costs that the run asks for, by name, with first weights that follow from `run.seed` alone.

    Raises:
        ModelError: the model has too few modalities.
    """
    adversary = run.model.adversary
    if adversary is None:
        return {}
    if len(run.modalities) < 2:
        raise ModelError(
            f"model.adversary: the model has one modality, {run.modalities[0]!r}, and nothing to tell it from; "
            "allowed: two modalities or more, or no [model.adversary]"
        )
    with seeded(run.seed, part="costs.adversary"):
        return {
            "adversary": ModalityAdversary(
                width=run.model.embedding_width,
                num_modalities=len(run.modalities),
                hidden=adversary.hidden,
                weight=adversary.weight,
            )
        }


def _turned(values: Tensor, *, weight: float) -> Tensor:
    """The values themselves, whose gradient is turned round and scaled: gradient reversal.

    Without a function of its own in autograd, for which every engine of per-sample gradients would need a rule.
    """
    scaled = weight * values
    return (values + scaled).detach() - scaled
