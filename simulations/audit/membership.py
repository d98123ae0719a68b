"""Membership: how surprised a model is by a record, from which an attack guesses whether it was trained on.

in        a model before and after its training, samples
out       scores, higher for what was more likely there; which rows make a unit
relies on nothing private staying private: scores are about single records and never leave the machine
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from client.gradient.engine import rows_of, sample_losses
from shared.batch import Samples
from shared.config import Unit

_ROWS_AT_ONCE = 256


def losses(model: nn.Module, samples: Samples) -> Float[np.ndarray, "N"]:
    """Loss of each row; the model comes back as it was."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        found = [
            sample_losses(model, rows_of(samples, start=start, stop=start + _ROWS_AT_ONCE)).double().numpy()
            for start in range(0, len(samples), _ROWS_AT_ONCE)
        ]
    model.train(was_training)
    return np.concatenate(found)


def rows_of_units(samples: Samples, *, unit: Unit) -> tuple[Tensor, ...]:
    """The rows of each record, or of each subject."""
    if unit == "subject":
        return samples.rows_of_subjects
    return tuple(torch.tensor([row]) for row in range(len(samples)))


def by_unit(values: Float[np.ndarray, "N"], rows: tuple[Tensor, ...]) -> Float[np.ndarray, "U"]:
    """Mean of each unit's rows."""
    return np.array([values[numbers.numpy()].mean() for numbers in rows])
