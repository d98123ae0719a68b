"""Krum: of a round's updates, the one or the few that lie closest to their neighbours.

in        one update after the other, each with the parameters that this site trained
out       one update; whose were set aside
relies on every update being finite (wire.py); keeps all of them, and their distances, until the round is over

Where sites train different parameters, the distance of two is over what both have trained, and for the rest the
typical distance of those who have: see `squared_distances`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from server.records import AggregationNote
from server.running_mean import RunningMean, Weight, Weights
from shared.config import FederationSettings

_PIECE = 2**16
"""numbers of each update that are turned into float64 at a time"""


class Krum:
    """The update with the smallest sum of squared distances to its n - f - 2 nearest, or the mean of the best m.

    Promise: of n >= 2f + 3 updates of the same parameters, f of them anything at all, krum takes one that lies no
    further from one of the others than sqrt((n - f - 2) / (n - 2f - 1)) times the furthest that these lie apart: once
    for f = 1. (Its score is at most theirs, and n - 2f - 1 of those it is scored against are not hostile.)
    Void if: more than f are hostile, among them one person's many sites, or those that train a parameter are mostly
    hostile: of a parameter that only they train, nobody can say what is right.

    Krum learns from one site a round: where sites train different parameters, only those of that site move, and under
    local differential privacy the model gets the noise of one update, not of a mean. Multi-krum keeps n - f.

    Source: Blanchard et al. 2017, NeurIPS, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
    (arXiv:1703.02757), section 4 (krum; its ties go to the smallest identifier, as here to the first name) and section
    6 (multi-krum, whose m is open there; ours: `kept_sites`, n - f if not set).
    """

    def __init__(self, settings: FederationSettings) -> None:
        """Starts with no update.

        Args:
            settings: `byzantine_sites` is f; `kept_sites` m of multi-krum.
        """
        self._hostile, self._needed = settings.byzantine_sites or 0, settings.fewest_updates
        self._most = 1 if settings.aggregation == "krum" else settings.kept_sites
        self._updates: list[tuple[str, Weights]] = []
        self._set_aside: tuple[str, ...] = ()

    def add(self, update: Weights, *, weight: Weight, row: Tensor | None = None, site: str = "") -> None:
        """Keeps an update; all count alike."""
        del weight, row
        self._updates.append((site, update))

    def result(self) -> Weights:
        """The mean of those kept, each parameter over the ones that trained it; one that none of them trained is left.

        At least 2f + 3 updates must have come: `min_sites` sees to it.
        """
        if len(self._updates) < self._needed:
            raise AssertionError(f"{len(self._updates)} updates; {self._needed} are needed")
        # by name, so that neither sums nor ties depend on who answered first
        ordered = sorted(self._updates, key=lambda each: each[0])
        scores = krum_scores(squared_distances([update for _, update in ordered]), hostile=self._hostile)
        best = torch.argsort(scores, stable=True).tolist()
        most = len(ordered) - self._hostile
        kept = set(best[: most if self._most is None else min(self._most, most)])
        mean = RunningMean()
        for place in sorted(kept):
            mean.add(ordered[place][1], weight=1.0)
        self._set_aside = tuple(site for place, (site, _) in enumerate(ordered) if place not in kept)
        return mean.result()

    def note(self) -> AggregationNote | None:
        """Whose updates are not in the result."""
        return AggregationNote(set_aside=self._set_aside)


def krum_scores(squared: Float64[Tensor, "N N"], *, hostile: int) -> Float64[Tensor, "N"]:
    """Each update's sum of squared distances to its N - hostile - 2 nearest others."""
    others = squared + torch.diag(torch.full((len(squared),), torch.inf, dtype=torch.float64))
    nearest = others.sort(dim=1).values[:, : len(squared) - hostile - 2]
    return nearest.sum(dim=1)


def squared_distances(updates: Sequence[Weights]) -> Float64[Tensor, "N N"]:
    """Squared L2 distance of every two updates; plainly that, where all of them hold the same parameters.

    Where they do not, each group of parameters that the same sites trained is measured by itself, and two updates of
    which one lacks it get the median distance of those that have it. Left out instead, the group would count as a
    distance of zero, and sites that send little would look close to everybody; an attacker needs only to say that it
    has one modality.
    """
    holders: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        holders.setdefault(tuple(n for n, update in enumerate(updates) if name in update), []).append(name)
    total = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for members, names in holders.items():
        places = torch.tensor(members)
        among = _plain_distances([updates[place] for place in members], names=names)
        pairs = among[tuple(torch.triu_indices(len(members), len(members), offset=1))]
        filled = torch.full_like(total, float(pairs.median()) if len(pairs) else 0.0)
        filled[places[:, None], places] = among
        total += filled
    return total.fill_diagonal_(0.0)


def _plain_distances(updates: Sequence[Weights], *, names: Sequence[str]) -> Float64[Tensor, "M M"]:
    """Over parameters that all of them hold, from their scalar products: one matrix product for all pairs."""
    products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in names:
        values = [update[name].reshape(-1) for update in updates]
        for start in range(0, len(values[0]), _PIECE):
            piece = torch.stack([value[start : start + _PIECE] for value in values]).double()
            products += piece @ piece.T
    squares = products.diagonal()
    # rounding of huge numbers may lead below zero
    return (squares[:, None] + squares - 2 * products).clamp_(min=0.0).fill_diagonal_(0.0)
