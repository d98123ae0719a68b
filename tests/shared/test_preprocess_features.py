"""Features: a vector comes to a common scale by public constants alone."""

import numpy as np
import pytest
import torch

from shared.errors import ModelError
from shared.preprocess.features import FeaturesOptions, FeaturesPreprocessor

VECTOR = np.array([1.0, 3.0, -200.0], np.float32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (FeaturesOptions(), [1.0, 3.0, -200.0]),
        (FeaturesOptions(center=(1.0,), spread=(2.0,)), [0.0, 1.0, -100.5]),
        (FeaturesOptions(center=(1.0, 2.0, 0.0), spread=(1.0, 0.5, 100.0)), [0.0, 2.0, -2.0]),
        (FeaturesOptions(clip=2.0), [1.0, 2.0, -2.0]),
        (FeaturesOptions(squash="asinh"), np.arcsinh([1.0, 3.0, -200.0]).tolist()),
    ],
)
def test_the_vector_is_scaled_squashed_and_clipped_as_asked(options: FeaturesOptions, expected: list[float]) -> None:
    door = FeaturesPreprocessor(options, width=3)
    values = torch.stack([door.read(VECTOR), door.read(2 * VECTOR)])

    assert torch.equal(values[0], torch.from_numpy(VECTOR))
    torch.testing.assert_close(door.finish(values)[0], torch.tensor(expected))


def test_constants_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"preprocess.center holds 2 numbers; allowed: none, 1 or 3"):
        FeaturesPreprocessor(FeaturesOptions(center=(1.0, 2.0)), width=3)
    with pytest.raises(ModelError, match=r"preprocess.spread holds a number that is not above 0"):
        FeaturesPreprocessor(FeaturesOptions(spread=(1.0, 0.0, 1.0)), width=3)


def test_another_width_is_refused() -> None:
    with pytest.raises(TypeError, match=r"shape \[3\]"):
        FeaturesPreprocessor(FeaturesOptions(), width=3).read(np.zeros(4, np.float32))
