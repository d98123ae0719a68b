"""What one site can add to the server's sum: bounded alone or beside other sites' updates, with the same result."""

import math

import pytest
import torch

from client.bounded import SITES_AT_ONCE, bounded
from client.private_training import TrainedRound
from shared.config import Clipping, PrivacySettings
from shared.privacy.mechanism import clip_update
from tests.client.asking import SITE_PRIVACY

NORM = 0.7


def trained_rounds(num: int) -> list[TrainedRound]:
    """Updates of every size, two layers and a 0-d weight; some broken, one huge, one of nothing."""
    draws = torch.Generator().manual_seed(3)
    updates = []
    for number in range(num):
        size = 10.0 ** float(torch.rand((), generator=draws) * 4 - 3)
        shapes = {"a.weight": (3, 2), "a.scale": (), "b.weight": (5,)}
        updates.append({name: torch.randn(shape, generator=draws) * size for name, shape in shapes.items()})
        broken = {1: math.nan, 2: math.inf, 3: -math.inf, 4: 3e38}.get(number)
        if broken is not None:
            updates[-1]["b.weight"][2] = broken
    updates[0] = {name: torch.zeros_like(value) for name, value in updates[0].items()}
    return [TrainedRound(update, unclipped_share=float(number)) for number, update in enumerate(updates)]


def side_by_side(trained: list[TrainedRound]) -> list[TrainedRound]:
    """The same as views of one matrix, as a cohort leaves them."""
    matrix = torch.stack([torch.cat([value.reshape(-1) for value in each.update.values()]) for each in trained])
    views = []
    for row, each in zip(matrix, trained, strict=True):
        parts = row.split([value.numel() for value in each.update.values()])
        update = {key: part.view_as(value) for (key, value), part in zip(each.update.items(), parts, strict=True)}
        views.append(TrainedRound(update, unclipped_share=each.unclipped_share))
    return views


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
@pytest.mark.parametrize("is_matrix", [False, True])
def test_updates_clipped_together_are_those_clipped_alone(clipping: Clipping, is_matrix: bool) -> None:
    central = PrivacySettings.model_validate({**SITE_PRIVACY, "clipping": clipping})
    trained = trained_rounds(SITES_AT_ONCE + 7)
    together = bounded(side_by_side(trained) if is_matrix else trained, central=central, clip_norm=NORM)
    assert len(together) == len(trained)
    for each, leaving in zip(trained, together, strict=True):
        alone, was_within = clip_update(each.update, clip_norm=NORM, per_layer=clipping == "per-layer")
        assert list(leaving.update) == list(alone)
        for name, value in alone.items():
            torch.testing.assert_close(leaving.update[name], value, rtol=1e-6, atol=0.0)
        length = math.sqrt(sum(float(value.double().square().sum()) for value in leaving.update.values()))
        assert length <= NORM * (1 + 1e-6)
        assert leaving.is_within == (was_within if clipping == "adaptive" else None)
        assert leaving.unclipped_share == each.unclipped_share
    assert not any(value.any() for leaving in together[:5] for value in leaving.update.values())
    # and some of each kind were there
    assert len({float(leaving.update["a.scale"]) == float(each.update["a.scale"])
                for each, leaving in zip(trained[5:], together[5:], strict=True)}) == 2  # fmt: skip


def test_updates_leave_as_they_are_where_sites_are_not_protected() -> None:
    trained = trained_rounds(3)
    assert [each.update for each in bounded(trained, central=None, clip_norm=None)] == [each.update for each in trained]
