"""Negatives: where public values lie in the joint space of the coming round, for sites to tell their pairs from.

in        the folder public/ of a data set, whose values are nobody's; the model with the round's first weights
out       what the fusion `pair` is given in that round
relies on rounds.py, which asks for it before each round and sends it with the weights
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from server.heldout import HeldOut
from server.retrieval import item_numbers
from server.rounds import Renew
from server.settings import ServerSettings
from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.errors import RunError
from shared.model.matching import Matching, matching_of
from shared.model.multimodal import MultimodalModel

FOLDER = "public"
"""beside held-out/"""
NEGATIVES, CENTERS = "fusion.negatives", "fusion.centers"
ROWS_AT_ONCE = 256


def public_negatives(settings: ServerSettings, *, held_out: HeldOut) -> Renew | None:
    """What makes the negatives of every round; None for a run that is given none.

    Raises:
        RunError: no folder public/, too few values in it, or an item that is also held out.
        ManifestError: the folder has faults.
    """
    run = settings.run
    if run.data.task != "matching" or run.model.matching.negatives != "public":
        return None
    folder, task = settings.held_out.parent / FOLDER, matching_of(run)
    if not folder.is_dir():
        raise RunError(
            f'{folder}: no such folder; model.matching.negatives = "public" needs one beside held-out/, with rows that '
            f"are nobody's and have {task.pair[0]} and {task.pair[1]}"
        )
    samples = load_samples(folder, run=run, cache=settings.cache)
    _refuse_known_items(samples, held_out=held_out, run=run, folder=folder)
    rows = [_spread_rows(samples, side, run=run, task=task, folder=folder) for side in task.pair]
    sides = [samples.subset(torch.tensor(each)) for each in rows]

    def renew(model: MultimodalModel) -> dict[str, Tensor]:
        vectors = torch.stack([_of_head(model, name, each) for name, each in zip(task.pair, sides, strict=True)])
        centers = vectors.mean(dim=1)
        return {NEGATIVES: task.placed(vectors - centers[:, None]), CENTERS: centers}

    return renew


def _spread_rows(samples: Samples, modality: str, *, run: RunConfig, task: Matching, folder: Path) -> list[int]:
    """The first `num_negatives` rows with a value of a modality: one of each item, then the next of each."""
    has, numbers = samples.present[:, run.modalities.index(modality)], item_numbers(samples, run=run)
    seen: dict[int, int] = {}
    turn = {}
    for row in has.nonzero()[:, 0].tolist():
        turn[row] = seen[numbers[row]] = seen.get(numbers[row], -1) + 1
    rows = sorted(turn, key=lambda row: (turn[row], row))
    if len(rows) < task.num_negatives:
        raise RunError(
            f"{folder}: {len(rows)} rows with {modality}; allowed: at least model.matching.num_negatives, which is "
            f"{task.num_negatives}. Add rows, or ask for fewer"
        )
    return rows[: task.num_negatives]


@torch.no_grad()
def _of_head(model: MultimodalModel, modality: str, samples: Samples) -> Float[Tensor, "N D"]:
    """What a modality's encoder and head give for each sample."""
    encoder, head = model.get_submodule(f"encoders.{modality}"), model.get_submodule(f"head.{modality}")
    values = samples.inputs[modality].to(next(model.parameters()).device)
    return torch.cat([head(encoder(piece)).float().cpu() for piece in torch.split(values, ROWS_AT_ONCE)])


def _refuse_known_items(samples: Samples, *, held_out: HeldOut, run: RunConfig, folder: Path) -> None:
    """An item that is public and held out would be tested on what training was told to keep away from."""
    if run.data.item is None:
        return
    public = set(_names(samples, run=run))
    both = sorted(public & {name for part in (held_out.validation, held_out.test) for name in _names(part, run=run)})
    if both:
        raise RunError(
            f"{folder}: {len(both)} items are held out as well, {both[0]!r} among them; allowed: items of its own, "
            f"told by the column {run.data.item}"
        )


def _names(samples: Samples, *, run: RunConfig) -> tuple[str, ...]:
    column = str(run.data.item)
    return samples.subjects if column == "subject_id" else tuple(filter(None, samples.groups[column]))
