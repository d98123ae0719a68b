"""Pair: the two values of a row in a joint space, and how they score against public values there.

in        what one head a modality says, [B, M, D], and present [B, M]
out       [B, K] as matching.py reads it
relies on the server for the public values' places, which come down with every round's weights (server/negatives.py)
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shared.errors import ModelError
from shared.model.fusion.present import PlainOptions
from shared.model.matching import Matching
from shared.model.registry import Fusion, FusionPlace, fusion_registry


@fusion_registry.register("pair", options=PlainOptions)
class PairFusion(Fusion):
    """Two values side by side in a joint space, for matching; each also scored against public values of the other kind.

    The public values' places were computed with the weights that the round began with. They are constants here, as the
    queue is there: no gradient flows into them. So is their mean, which is taken from every value of the modality:
    what all values share, and the gap between modalities (Liang et al. 2022, arXiv:2203.02053, section 2), would
    otherwise make all angles small.

    Source: two towers and a joint space as Radford et al. 2021, arXiv:2103.00020, section 2.3; constant negatives as
    He et al. 2020, arXiv:1911.05722, section 3.2. Ours differs: the negatives are public values alone.

    Raises:
        ModelError: the run's task is not matching.
    """

    level = "decision"
    negatives: Tensor
    """[2, N, D], of the pair's first modality and of its second"""
    centers: Tensor
    """[2, D], the mean of what the heads give for public values"""

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del options
        if not isinstance(place.task, Matching):
            raise ModelError("fusion 'pair' is for task = \"matching\"; allowed: any of the others")
        self.task = task = place.task
        self.given = ("negatives", "centers") if task.num_negatives else ()
        """what the server says anew in every round, and nobody trains"""
        self._places = [place.modalities.index(name) for name in task.pair]
        # somewhere at first, not all in one place: so a preflight's gradients are those of a run
        first = task.placed(torch.randn(2, task.num_negatives, task.num_outputs))
        self.register_buffer("negatives", first)
        self.register_buffer("centers", torch.zeros(2, task.num_outputs))

    def forward(self, outputs: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        """Both places, whether each is there, and with public negatives the scores."""
        there = present[:, self._places]
        placed = self.task.placed(outputs[:, self._places] - self.centers).masked_fill(~there[:, :, None], 0.0)
        first, second = placed[:, 0], placed[:, 1]
        pieces = [first, second, there.to(placed.dtype)]
        if self.task.num_negatives:
            pieces.append(self.task.own_scores(first, second)[:, None])
            pieces += [self.task.scores(first, self.negatives[1]), self.task.scores(second, self.negatives[0])]
        return torch.cat(pieces, dim=1)
