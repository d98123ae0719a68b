"""Linear baselines: on pairs that a linear map explains they find nearly all; untrained maps do not."""

import shutil
from pathlib import Path

import numpy as np
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
    assert list(found) == ["untrained", "ridge", "ridge, public", "in-batch"]
    # the first ten of thirty items
    assert found["ridge"].mean >= 0.9
    assert found["ridge, public"].mean >= 0.9
    assert found["in-batch"].mean >= 0.8
    assert found["untrained"].mean <= 0.75


def test_the_ridge_of_public_rows_sees_no_site_and_is_left_out_where_nothing_is_public(tmp_path: Path) -> None:
    """Sites whose second vectors are all the same explain nothing; public rows do all the same, and only they."""
    data_set = write_matching_data(tmp_path, held_out_items=30)
    for file in (data_set / "sites").glob("*/right-*.npy"):
        np.save(file, np.ones(4, dtype=np.float32) + int(file.stem.split("-")[1]) * np.eye(4, dtype=np.float32)[0])
    run = RunConfig.model_validate(matching_run(private=False))
    found = {each.name: each for each in baselines(run, data_set=data_set, cache=tmp_path / "cache")}
    assert found["ridge, public"].mean >= 0.9
    assert found["ridge"].mean <= 0.75

    shutil.rmtree(data_set / "public")
    without = [each.name for each in baselines(run, data_set=data_set, cache=tmp_path / "cache")]
    assert without == ["untrained", "ridge", "in-batch"]


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
