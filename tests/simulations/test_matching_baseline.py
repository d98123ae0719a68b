"""Linear baselines: on pairs that a linear map explains they find nearly all; untrained maps do not."""

from pathlib import Path

import pytest
import torch

from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import ModelError
from simulations.matching_baseline import baselines, features_of
from tests.simulations.matching_runs import matching_run, write_matching_data


def test_linear_maps_find_pairs_that_are_a_rotation_apart(tmp_path: Path) -> None:
    data_set = write_matching_data(tmp_path, held_out_items=30)
    run = RunConfig.model_validate(matching_run(private=False))
    found = {each.name: each for each in baselines(run, data_set=data_set, cache=tmp_path / "cache")}
    assert list(found) == ["untrained", "ridge", "in-batch"]
    # the first ten of thirty items
    assert found["ridge"].mean >= 0.9
    assert found["in-batch"].mean >= 0.8
    assert found["untrained"].mean <= 0.75


def test_values_that_are_no_vectors_are_refused() -> None:
    run = RunConfig.model_validate(matching_run(private=False))
    samples = Samples(
        inputs={"left": torch.zeros(2, 3, 4), "right": torch.zeros(2, 4)},
        present=torch.ones(2, 2, dtype=torch.bool),
        targets=torch.zeros(2, dtype=torch.int64),
        subjects=("a", "b"),
        groups={},
    )
    with pytest.raises(ModelError, match=r"left: its encoder 'linear' trains on \[3, 4\] by itself"):
        features_of(samples, run=run)
