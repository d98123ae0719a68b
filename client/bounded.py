"""Bounded: what one site can add to the server's sum is limited; the last thing done to an update before it leaves.

in        what rounds of training gave, of one site or of many that were trained together
out       Bounded, the only thing that a reply is made of (agent.py's close_round)
relies on shared/privacy/mechanism.py; the server clips again, for sites that did not
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.private_training import TrainedRound
from shared.config import PrivacySettings
from shared.privacy.mechanism import clip_update, clip_updates
from shared.row import matrix_of_all, row_of_all

SITES_AT_ONCE = 64
"""whose updates are laid side by side, which takes their memory twice where they do not lie so already"""


@dataclass(frozen=True)
class Bounded:
    """An update within the round's site clip norm, where sites are protected, and what is told about it."""

    update: dict[str, Tensor]
    unclipped_share: float | None
    is_within: bool | None
    """adaptive clipping of sites: whether nothing had to be cut"""


def bounded(
    trained: Sequence[TrainedRound], *, central: PrivacySettings | None, clip_norm: float | None
) -> list[Bounded]:
    """Each site's update as it may leave, in order; what was trained may be written over.

    Args:
        trained: of sites with the same parameters.
        central: how the server protects whole sites; None where it does not.
        clip_norm: this round's norm of a whole update; there if `central` is.
    """
    if central is None or clip_norm is None:
        return [Bounded(each.update, each.unclipped_share, None) for each in trained]
    # PRIVACY: what a site adds to the sum is bounded here and again at the server.
    # test_the_whole_update_is_clipped_before_it_leaves, test_updates_clipped_together_are_those_clipped_alone
    per_layer, is_told, result = central.clipping == "per-layer", central.clipping == "adaptive", list[Bounded]()
    for start in range(0, len(trained), SITES_AT_ONCE):
        some = trained[start : start + SITES_AT_ONCE]
        if len(some) == 1:
            update, was_within = clip_update(some[0].update, clip_norm=clip_norm, per_layer=per_layer)
            clipped = [(update, was_within)]
        else:
            clipped = _clipped_together(some, clip_norm=clip_norm, per_layer=per_layer)
        result += [
            Bounded(update, each.unclipped_share, was_within if is_told else None)
            for each, (update, was_within) in zip(some, clipped, strict=True)
        ]
    return result


def _clipped_together(
    trained: Sequence[TrainedRound], *, clip_norm: float, per_layer: bool
) -> list[tuple[dict[str, Tensor], bool]]:
    """Each update clipped, and whether it was within the norm; those of one cohort are clipped where they lie."""
    rows = [row_of_all(list(each.update.values())) for each in trained]
    matrix = matrix_of_all(rows)
    matrix = torch.stack(rows) if matrix is None else matrix
    like = trained[0].update
    parts = matrix.split_with_sizes([value.numel() for value in like.values()], dim=1)
    views = {name: part.view(len(rows), *value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
    _, within = clip_updates(views, clip_norm=clip_norm, per_layer=per_layer, in_place=True)
    return [
        ({name: view[number] for name, view in views.items()}, was_within)
        for number, was_within in enumerate(within.tolist())
    ]
