"""Decisions: fusions of answers: every modality has a head of its own, and what the heads say becomes one answer.

in        the heads' numbers [B, M, K] and present [B, M]
out       [B, K] logits or ratings, which tasks.py puts on their scale
relies on tasks.py for what the numbers are: logits of classes that exclude each other or not, or a rating
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from shared.errors import ModelError
from shared.model.attention import masked_mean
from shared.model.fusion.present import LearnedWeights, PlainOptions
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.model.tasks import MultiLabel, Rating, Several, SingleLabel, Task
from shared.settings import Settings

SHARED_OUT = 0.5
"""of a vote, shared out by the mean probabilities: less than the 1 by which majorities differ, so that it breaks ties
and nothing else, and no class has a probability of exactly 0"""
Vote = Callable[[Float[Tensor, "B M K"], Bool[Tensor, "B M"]], Float[Tensor, "B K"]]


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


@fusion_registry.register("weighted-average", options=AverageOptions)
class WeightedAverageFusion(Fusion):
    """One head a modality; the answer is the mean of what those present say, by one learned weight a modality.

    The weights are a softmax over the modalities present, as in `weighted`; they start equal, which is `average`.

    Source: the logarithmic opinion pool, Genest and Zidek 1986, Statistical Science 1, with learned weights.
    """

    level = "decision"

    def __init__(self, place: FusionPlace, options: AverageOptions) -> None:
        super().__init__()
        self.task, self.normalised = place.task, options.of == "log-probabilities"
        self.weights = LearnedWeights(place.modalities)

    def forward(self, outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        """The weighted mean answer of the modalities present."""
        answers = self.task.log_probabilities(outputs) if self.normalised else outputs
        fused: Tensor = self.weights(answers, present)
        return fused


@fusion_registry.register("vote", options=PlainOptions)
class VoteFusion(Fusion):
    """One head a modality; each of those present has one vote: the majority of classes, the median of ratings.

    Of labels that may be true together each is voted on by itself, and so is each of several tasks. Half a vote more is
    shared out by the mean probabilities, which breaks ties; the outputs are logits of the shares of votes. A vote has
    no gradient: in training the heads answer together, as in `average`.

    Source: Kittler et al. 1998, IEEE TPAMI 20(3) (median and majority vote rules). Ours differs in ties.
    """

    level = "decision"

    def __init__(self, place: FusionPlace, options: PlainOptions) -> None:
        super().__init__()
        del options
        self.task, self.vote = place.task, _vote_of(place.task)

    def forward(self, outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        """In training the mean answer of the modalities present, otherwise what most of them say; zeros without any."""
        if self.training:
            return masked_mean(self.task.log_probabilities(outputs), present)
        return self.vote(outputs, present).masked_fill(~present.any(dim=1, keepdim=True), 0.0)


def _vote_of(task: Task) -> Vote:
    if isinstance(task, Several):
        return _SeveralVotes(task)
    for kind, vote in ((SingleLabel, _majority), (MultiLabel, _majorities), (Rating, _median)):
        if isinstance(task, kind):
            return vote
    raise ModelError(
        f"fusion 'vote': nothing to vote on for {type(task).__name__}; allowed: tasks single-label, multi-label, "
        "rating and several"
    )


class _SeveralVotes:
    """Each task's own vote."""

    def __init__(self, task: Several) -> None:
        self.task, self.votes = task, {name: _vote_of(part) for name, part in task.tasks.items()}

    def __call__(self, outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        pieces = self.task.outputs_of(outputs)
        return torch.cat([vote(pieces[name], present) for name, vote in self.votes.items()], dim=1)


def _majority(outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
    """Log of each class's share of the votes."""
    classes = torch.arange(outputs.shape[2], device=outputs.device)
    votes = (outputs.argmax(dim=2, keepdim=True) == classes).to(outputs.dtype)
    return _share(votes, outputs.softmax(dim=2), present).log()


def _majorities(outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
    """Logit of each label's share of the votes for it."""
    share = _share((outputs > 0).to(outputs.dtype), outputs.sigmoid(), present)
    against = _share((outputs <= 0).to(outputs.dtype), (-outputs).sigmoid(), present)
    return share.log() - against.log()


def _share(
    votes: Float[Tensor, "B M K"], probabilities: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]
) -> Float[Tensor, "B K"]:
    """Share of the votes present, and of what is shared out beside them; above 0."""
    num = present.sum(dim=1, keepdim=True).to(votes.dtype)
    total = masked_mean(votes, present) * num + SHARED_OUT * masked_mean(probabilities, present)
    return total.clamp(min=torch.finfo(votes.dtype).tiny) / (num + SHARED_OUT)


def _median(outputs: Float[Tensor, "B M K"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
    """The middle one of the ratings present, or the mean of the two in the middle."""
    last = torch.finfo(outputs.dtype).max
    ordered = outputs.masked_fill(~present[:, :, None], last).sort(dim=1).values
    num = present.sum(dim=1).clamp(min=1)[:, None, None].expand(-1, 1, outputs.shape[2])
    lower, upper = (ordered.gather(1, middle)[:, 0] for middle in ((num - 1) // 2, num // 2))
    return lower + (upper - lower) / 2
