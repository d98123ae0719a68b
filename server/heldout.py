"""Held-out data: the server's own samples, a part to choose by and a part to report on, never mixed.

in        the held-out folder: validation/ and test/ in it, or one manifest that is split here
out       HeldOut
relies on dataset.py; a subject's rows are all in one part
"""

import hashlib
from dataclasses import dataclass

import torch

from server.settings import ServerSettings
from shared.batch import Samples
from shared.dataset import load_samples
from shared.errors import RunError


@dataclass(frozen=True)
class HeldOut:
    """What early stopping and model selection see, and what only the final evaluation sees."""

    validation: Samples
    test: Samples


def load_held_out(settings: ServerSettings) -> HeldOut:
    """Both parts of the held-out data.

    Raises:
        ManifestError: the folder has faults.
        RunError: it has only one of validation/ and test/, or too few subjects to be split.
    """
    folder, run, cache = settings.held_out, settings.run, settings.cache
    parts = {name: folder / name for name in ("validation", "test")}
    there = [name for name, part in parts.items() if part.is_dir()]
    if len(there) == 1:
        raise RunError(
            f"{folder}: has {there[0]}/ only; allowed: both validation/ and test/, or one manifest without either"
        )
    if there:
        return HeldOut(**{name: load_samples(part, run=run, cache=cache) for name, part in parts.items()})
    return split_by_subject(
        load_samples(folder, run=run, cache=cache), share=run.evaluation.validation_share, seed=run.seed
    )


def split_by_subject(samples: Samples, *, share: float, seed: int) -> HeldOut:
    """Whole subjects to either part, about `share` of them to validation; the same for a seed on every machine.

    Raises:
        RunError: fewer than two subjects.
    """
    order = sorted(set(samples.subjects), key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).digest())
    if len(order) < 2:
        raise RunError(
            f"held-out data has {len(order)} subject; allowed: two or more, so that choosing a model and reporting "
            "on it use different ones. Add rows, or give both validation/ and test/"
        )
    cut = min(max(1, round(share * len(order))), len(order) - 1)
    first = set(order[:cut])
    in_first = torch.tensor([subject in first for subject in samples.subjects])
    return HeldOut(
        validation=samples.subset(in_first.nonzero()[:, 0]), test=samples.subset((~in_first).nonzero()[:, 0])
    )
