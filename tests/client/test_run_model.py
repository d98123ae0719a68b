"""Run model: how large a model is, before any memory is taken for it."""

import pytest

from client.run_model import built_model, key_of, num_parameters
from shared.errors import ModelError
from tests.tiny import tiny_config


@pytest.mark.parametrize("augment", [{}, {"noise": 0.1}])
def test_a_model_that_changes_its_values_in_training_is_counted_like_any_other(augment: dict[str, object]) -> None:
    encoders = {"left": {"name": "linear", "augment": augment, "preprocess": {"spread": [2.0]}}}
    key = key_of(
        tiny_config(private=True, model={"embedding_width": 4, "encoders": encoders, "fusion": {"name": "concat"}})
    )
    assert num_parameters(key) == sum(value.numel() for value in built_model(key).parameters())


def test_an_option_that_is_none_is_a_fault_of_the_model() -> None:
    encoders = {"left": {"name": "linear", "augment": {"path": "/etc"}}}
    run = tiny_config(private=True, model={"embedding_width": 4, "encoders": encoders, "fusion": {"name": "concat"}})
    with pytest.raises(ModelError, match="no such setting"):
        num_parameters(key_of(run))
