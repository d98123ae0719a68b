"""Transfer: patterns freeze and set apart what they name, and nothing is taken from an earlier run that does not fit."""

import pytest
from pydantic import ValidationError

from shared.errors import ModelError
from shared.model.exchange import Exchange, exchange_of
from shared.model.multimodal import MultimodalModel, build_model
from tests.tiny import tiny_config, tiny_run

MODEL = tiny_run(private=False)["model"]
LEFT, RIGHT = ("encoders.left.linear.weight", "encoders.left.linear.bias"), "encoders.right.*"
HEAD = ("head.linear.weight", "head.linear.bias")
BOTH = ("left", "right")


def model_of(**changes: object) -> MultimodalModel:
    assert isinstance(MODEL, dict)
    return build_model(tiny_config(private=False, model={**MODEL, **changes}))


def names_of(exchange: Exchange) -> set[str]:
    return set(exchange.sent)


def test_without_patterns_a_request_holds_what_an_update_holds() -> None:
    exchange = exchange_of(model_of(), BOTH)
    assert exchange.sent == exchange.updated == tuple(name for name, _ in model_of().named_parameters())


def test_what_a_run_freezes_is_sent_and_not_trained() -> None:
    whole, exchange = exchange_of(model_of(), BOTH), exchange_of(model_of(freeze=["encoders.left.*"]), BOTH)
    assert exchange.given == LEFT
    assert set(exchange.updated) == set(whole.updated) - set(LEFT)
    assert exchange_of(model_of(freeze=["encoders.left.*"]), ("right",)).given == ()


def test_what_is_personal_is_sent_and_trained_and_in_no_update() -> None:
    exchange = exchange_of(model_of(personal=["head.*"]), BOTH)
    assert exchange.personal == HEAD
    assert not set(HEAD) & {*exchange.updated, *exchange.given}
    assert set(HEAD) < set(exchange.sent)


def test_what_one_site_does_not_train_it_is_given() -> None:
    whole, exchange = exchange_of(model_of(), BOTH), exchange_of(model_of(), BOTH, frozen=["encoders.left.*", "none"])
    assert exchange.given == LEFT
    assert set(exchange.sent) == set(whole.sent)
    # a personal head that its site does not train stays as it was
    assert exchange_of(model_of(personal=["head.*"]), BOTH, frozen=["head.*"]).personal == ()


@pytest.mark.parametrize("kind", ["freeze", "personal"])
def test_a_pattern_that_hits_nothing_is_refused_with_the_names_there_are(kind: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.{kind}: \['encoder\.\*'\] match no name; there are: encoders\.left"):
        model_of(**{kind: ["head.*", "encoder.*"]})


def test_a_model_of_which_nothing_is_trained_in_common_is_refused() -> None:
    with pytest.raises(ModelError, match="leave nothing that sites train in common"):
        model_of(freeze=["encoders.*", "fusion.*"], personal=["head.*"])


def test_what_is_frozen_cannot_be_personal() -> None:
    with pytest.raises(ModelError, match=r"model\.personal: \['head\.\*'\] match no name"):
        model_of(freeze=["head.*"], personal=["head.*"])


@pytest.mark.parametrize("patterns", [["?" * 201], ["head.*"] * 1001, [""]], ids=["long", "many", "empty"])
def test_a_pattern_and_a_list_of_them_have_a_length(patterns: list[str]) -> None:
    """Two million question marks are looked for in every name for seconds."""
    with pytest.raises(ValidationError, match=r"model\.freeze"):
        model_of(freeze=patterns)
