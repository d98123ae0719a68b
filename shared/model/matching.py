"""Matching: two values of one row belong together, and a space in which they lie closer than values of other rows.

in        a pair's embeddings in the joint space, from pair.py, and how they score against public negatives
out       the loss of each pair; scores of any values against any others, for retrieval
relies on negatives that are public and constant. Were they the other rows of the batch, one pair would move the loss of
          all the others: measured, up to 4.9 clip norms in the clipped sum. So these are for runs that protect whole
          sites, or nobody (config.py refuses the rest).

What the model gives for each row, [B, K]: the first value's place in the joint space, the second's, 1 or 0 for whether
each is there; with public negatives also the pair's own score, the first value's scores against N second ones, and the
second's against N first ones.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn import functional

from shared.config import RunConfig
from shared.errors import ModelError

_SMALLEST_SQUARE = 1e-12
"""added to a squared length, so that a vector of zeros has a direction's worth of gradient and no NaN"""


@dataclass(frozen=True)
class Matching:
    """Pairs told from other pairs: what belongs together scores higher than what does not.

    Losses of a pair with score s and of N negatives with scores n, over temperature t, mean of both directions:

    | info-nce | -log(e^(s/t) / (e^(s/t) + sum e^(n/t)))                                                 |
    | sigmoid  | softplus(-(s/t + b)) + sum softplus(n/t + b), b = -log N: as many are wrong for one right |
    | binary   | half of softplus(-s/t), half of the mean of softplus(n/t)                               |

    Source: info-nce van den Oord et al. 2018, arXiv:1807.03748, section 2.3, in both directions as Radford et al. 2021,
    arXiv:2103.00020, section 2.3; sigmoid Zhai et al. 2023, arXiv:2303.15343, section 3.2, ours with fixed t and b;
    binary Li et al. 2021, arXiv:2107.07651, section 3.2, on the joint space's own score.
    """

    pair: tuple[str, str]
    """the two modalities"""
    num_outputs: int
    """D, width of the joint space, which is what each modality's head gives"""
    kind: Literal["info-nce", "sigmoid", "binary"]
    score: Literal["cosine", "euclidean"]
    temperature: float
    num_negatives: int
    """N: public values of either modality; 0: the other rows of the batch are the negatives"""

    @property
    def has_independent_rows(self) -> bool:
        """Whether a row's loss is its own; never with negatives from the batch."""
        return self.num_negatives > 0

    def scaled(self, outputs: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """As they are."""
        return outputs

    def log_probabilities(self, outputs: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """As they are."""
        return outputs

    def placed(self, vectors: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Vectors of the heads where they lie in the joint space: of length 1 where angles are scored."""
        if self.score == "euclidean":
            return vectors
        return vectors * (vectors.square().sum(dim=-1, keepdim=True) + _SMALLEST_SQUARE).rsqrt()

    def scores(self, first: Float[Tensor, "A D"], second: Float[Tensor, "N D"]) -> Float[Tensor, "A N"]:
        """How well each of the first fits each of the second, higher is better: cosine, or 1 - squared distance."""
        products = first @ second.T
        if self.score == "cosine":
            return products
        return 1 - first.square().sum(dim=1)[:, None] - second.square().sum(dim=1)[None] + 2 * products

    def own_scores(self, first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        """How well each of the first fits the second of its own row."""
        return (first * second).sum(dim=1) if self.score == "cosine" else 1 - (first - second).square().sum(dim=1)

    def places_of(
        self, outputs: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, "B 2"]]:
        """Both values' places in the joint space, and 1 or 0 for whether each is there, from what the model gives."""
        width = self.num_outputs
        return outputs[:, :width], outputs[:, width : 2 * width], outputs[:, 2 * width : 2 * width + 2]

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """What each pair costs; nothing where one of the two is absent. `targets` say nothing."""
        del targets
        first, second, there = self.places_of(outputs)
        is_pair = (there > 0).all(dim=1)
        if self.num_negatives:
            # PRIVACY: a row's own columns and public constants, so that one pair more moves the clipped sum by at most
            # the clip norm. test_one_pair_more_moves_the_clipped_sum_by_at_most_the_clip_norm
            own, others = outputs[:, 2 * self.num_outputs + 2], outputs[:, 2 * self.num_outputs + 3 :]
            costs = self._costs(own, others.reshape(-1, 2, self.num_negatives), num=float(self.num_negatives))
        else:
            costs = self._costs_in_batch(first, second, is_pair=is_pair)
        return costs.masked_fill(~is_pair, 0.0)

    def _costs(self, own: Float[Tensor, "B"], others: Float[Tensor, "B 2 N"], *, num: float) -> Float[Tensor, "B"]:
        """The loss of pairs with a score each, against so many negatives; a score of -inf is none."""
        own, others = own / self.temperature, others / self.temperature
        if self.kind == "info-nce":
            everything = torch.cat([own[:, None, None].expand(-1, 2, 1), others], dim=2)
            return (everything.logsumexp(dim=2) - own[:, None]).mean(dim=1)
        if self.kind == "sigmoid":
            bias = -math.log(num)
            wrong = functional.softplus(others + bias).sum(dim=2).mean(dim=1)
            return functional.softplus(-(own + bias)) + wrong
        wrong = functional.softplus(others).sum(dim=2).mean(dim=1)
        return (functional.softplus(-own) + wrong / num) / 2

    def _costs_in_batch(
        self, first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], *, is_pair: Tensor
    ) -> Float[Tensor, "B"]:
        scores = self.scores(first, second)
        no_negative = torch.eye(len(scores), dtype=torch.bool, device=scores.device) | ~is_pair[None]
        others = torch.stack([scores, scores.T], dim=1).masked_fill(no_negative[:, None], -math.inf)
        return self._costs(scores.diagonal(), others, num=max(1.0, float(is_pair.sum()) - 1))


def matching_of(run: RunConfig) -> Matching:
    """The run's matching task.

    Raises:
        ModelError: the run's modalities are not the pair, or fusion or dropout do not fit the task.
    """
    pair, settings = run.data.pair, run.model.matching
    if pair is None or set(run.modalities) != set(pair):
        raise ModelError(
            f'model.encoders: {list(run.modalities)}; allowed with task = "matching": the two of data.pair, '
            f"{list(pair or ())}, each with an encoder"
        )
    if run.model.fusion.name != "pair":
        raise ModelError(f"fusion {run.model.fusion.name!r} gives no pairs; allowed with task = \"matching\": 'pair'")
    if run.model.modality_dropout:
        raise ModelError('model.modality_dropout: half a pair teaches nothing; allowed with task = "matching": 0')
    return Matching(
        pair=pair,
        num_outputs=settings.width or run.model.embedding_width,
        kind=settings.loss,
        score=settings.score,
        temperature=settings.temperature,
        num_negatives=settings.num_negatives if settings.negatives == "public" else 0,
    )
