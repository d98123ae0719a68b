"""Exchange: a site is sent what it needs and answers with what it may, whatever of the model rests or stays with it."""

from pathlib import Path

import pytest
import torch

from client import agent
from client.run_model import exchanged_shapes, key_of, model_with, num_parameters
from shared.config import RunConfig
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, Shapes, TrainRequest
from shared.wire import decode_arrays, encode_request
from tests.client.asking import site_file, used, zeros
from tests.tiny import tiny_config, tiny_run

BOTH = ("left", "right")
LEFT = {"encoders.left.linear.weight", "encoders.left.linear.bias"}
HEAD = {"head.linear.weight", "head.linear.bias"}


def changed(*, private: bool = True, **model: object) -> RunConfig:
    table = tiny_run(private=private)["model"]
    assert isinstance(table, dict)
    return tiny_config(private=private, model={**table, **model})


def header_of(run: RunConfig, *, number: int = 1, run_id: str = "r") -> RequestHeader:
    return RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, planned_rounds=3
    )


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    # seconds each; what passes it is looked at in test_preflight.py
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


def test_a_site_takes_what_it_is_given_and_does_not_send_it_back(tmp_path: Path) -> None:
    run = changed(freeze=["encoders.left.*"])
    asked: list[Shapes] = []
    header = header_of(run)

    def read(shapes: Shapes) -> dict[str, torch.Tensor]:
        asked.append(shapes)
        return {name: torch.full(shape, 0.5) for name, shape in shapes.items()}

    reply = used(agent.answer_train(header, read, site_file=site_file(tmp_path)))
    (shapes,) = asked
    assert set(shapes) - set(reply.update) == LEFT
    model = model_with(key_of(run), {})
    assert bool((model.get_parameter("encoders.left.linear.weight") == 0.5).all())


def test_the_given_part_of_a_model_moves_what_a_site_learns(tmp_path: Path) -> None:
    run = changed(private=False, freeze=["encoders.left.*"])
    path, updates = site_file(tmp_path, allow_non_private=True, reproducible_noise=True), []
    for value in (0.0, 1.0):
        header = header_of(run, run_id=f"r{value}")

        def read(shapes: Shapes, value: float = value) -> dict[str, torch.Tensor]:
            given = {name: torch.full(shapes[name], value) for name in LEFT}
            return zeros(shapes) | given | {"head.linear.weight": torch.ones(shapes["head.linear.weight"])}

        updates.append(used(agent.answer_train(header, read, site_file=path)).update)
    name = "fusion.project.left.weight"
    assert not torch.equal(updates[0][name], updates[1][name])


def test_a_buffer_is_given_like_a_parameter(tmp_path: Path) -> None:
    key = key_of(changed())
    model = model_with(key, {})
    model.head.register_buffer("rows", torch.zeros(2))
    model_with(key, {"head.rows": torch.tensor([1.0, 2.0])})
    assert model.head.get_buffer("rows").tolist() == [1.0, 2.0]


def test_what_is_given_counts_towards_the_largest_model() -> None:
    plain, frozen = changed(), changed(freeze=["encoders.left.*"])
    assert num_parameters(key_of(plain)) == num_parameters(key_of(frozen))
    assert len(exchanged_shapes(key_of(frozen), BOTH).trained) < len(exchanged_shapes(key_of(plain), BOTH).trained)


def test_a_request_without_what_is_given_is_refused(tmp_path: Path) -> None:

    run = changed(freeze=["encoders.left.*"])
    header = header_of(run)
    sent = zeros(exchanged_shapes(key_of(run), BOTH).sent)
    for names, refused in ((sent.keys(), False), (sent.keys() - LEFT, True)):
        records = encode_request(TrainRequest(header, {name: sent[name] for name in names}))
        reply = agent.answer_train(
            header, lambda shapes, records=records: decode_arrays(records, shapes=shapes), site_file=site_file(tmp_path)
        )
        assert isinstance(reply, Refusal) == refused
        if refused:
            assert reply == Refusal("message-invalid")
