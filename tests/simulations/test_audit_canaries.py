"""Canaries of many labels and of several tasks: wrong in every answer, and answers all the same."""

import dataclasses
import math

import numpy as np
import torch

from shared.schema import DataSchema
from simulations.audit.canaries import mislabelled
from tests.server.test_scoring import samples_of


def test_a_mislabelled_record_of_many_answers_has_none_of_them_right() -> None:
    """Of several tasks, those it has an answer to; and where it has none it still has none."""
    rows = samples_of(torch.zeros(4, 4))
    nan = math.nan
    answers = torch.tensor([[0, 1, 0, -3.0], [2, nan, nan, nan], [nan, 1, 1, 2], [1, 0, 0, nan]])
    tasks = {
        "mood": {"kind": "single-label", "labels": ("a", "b", "c")},
        "topics": {"kind": "multi-label", "labels": ("war", "love")},
        "valence": {"kind": "rating", "rating_range": (-3, 3)},
    }
    for table, columns in (
        ({"task": "several", "tasks": tasks}, slice(None)),
        ({"task": "multi-label", "labels": ("war", "love")}, slice(1, 3)),
    ):
        schema = DataSchema.model_validate({**table, "modalities": {"left": {"kind": "features", "width": 4}}})
        records = dataclasses.replace(
            rows, targets=answers[:, columns].nan_to_num(nan if columns == slice(None) else 0)
        )
        wrong = mislabelled(records, data=schema, num=4, generator=np.random.default_rng(0)).targets
        assert torch.equal(wrong.isnan(), records.targets.isnan())
        assert bool((wrong != records.targets)[~wrong.isnan()].all())
        # and every one of them is an answer
        allowed = [{0.0, 1.0, 2.0}, {0.0, 1.0}, {0.0, 1.0}, {-3.0, 3.0}][columns]
        for column, known in zip(wrong.T, allowed, strict=True):
            assert set(column[~column.isnan()].tolist()) <= known
