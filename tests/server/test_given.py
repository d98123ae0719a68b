"""Given tensors: sent with every request, in no update, changed by nobody but the server's own hook."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from server.judgement import Reply
from server.plan import make_plan, start_central
from server.roster import open_roster
from server.rounds import renewed, run_rounds, start_or_resume
from shared.config import RunConfig
from shared.errors import ModelError
from shared.messages import TrainRequest
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import tensor_of
from tests.server import conftest
from tests.server.conftest import SITE, CallTransport, protected_run, small_run, small_samples, small_settings

SITES = {"north": ("left", "right"), "deaf": ("left",)}
GIVEN = ("encoders.left.linear.weight", "encoders.left.linear.bias")


class Listening(CallTransport):
    """Keeps every request."""

    heard: list[TrainRequest]

    def train(self, requests: Mapping[str, TrainRequest], *, timeout_s: float) -> Iterator[tuple[str, Reply]]:
        self.heard = [*getattr(self, "heard", []), *requests.values()]
        yield from super().train(requests, timeout_s=timeout_s)


def frozen_run(**changes: object) -> RunConfig:
    model = small_run().model.model_dump()
    return protected_run(changes={"model": {**model, "freeze": ["encoders.left.*"]}, **changes}, rounds=2)


@pytest.mark.parametrize("privacy", ["none", SITE])
def test_given_tensors_are_in_requests_and_checkpoints_and_no_round_changes_them(
    privacy: object, tmp_path: Path
) -> None:
    run = frozen_run(privacy=privacy)
    first, transport = build_model(run), Listening(run, SITES)
    progress = conftest.train(run, tmp_path, transport=transport)
    assert len(transport.heard) == 4
    for request in transport.heard:
        assert request.kept == GIVEN
        assert set(request.update_shapes) == set(request.weights) - set(GIVEN)
    tensors = load_file(tmp_path / "checkpoints" / "round-000002.safetensors")
    for name in GIVEN:
        for value in (progress.weights[name], progress.best_weights[name], tensors[f"weights/{name}"]):
            assert torch.equal(value, first.get_parameter(name))
    assert not torch.equal(progress.weights["head.linear.weight"], first.get_parameter("head.linear.weight"))


def test_central_noise_is_on_what_sites_send(tmp_path: Path) -> None:
    """Noise on what nobody sends would be noise in a model for nothing, and cover nobody."""
    run = frozen_run(privacy=SITE)
    model = build_model(run)
    plan = make_plan(CallTransport(run, SITES).hello(expected=2, min_sites=1, timeout_s=1), run=run, model=model)
    central = start_central(plan, settings=small_settings(run, folder=tmp_path), model=model)
    assert central is not None
    assert set(central.plan.shapes) == set(dict(model.named_parameters())) - set(GIVEN)


def with_rows(run: RunConfig) -> MultimodalModel:
    """A model whose head is given rows."""
    model = build_model(run)
    model.head.register_buffer("rows", torch.zeros(3, 4))
    model.head.given = ("rows",)  # type: ignore[assignment]
    return model


def first_of_each(model: MultimodalModel) -> dict[str, Tensor]:
    assert not model.training
    head = model.head
    assert isinstance(head.linear, nn.Linear)
    return {"head.rows": head.linear.weight[:, :4].clone()}


def test_the_server_makes_given_tensors_anew_before_each_round(run: RunConfig, tmp_path: Path) -> None:
    model, transport = with_rows(run), Listening(run, SITES)
    settings = small_settings(run, folder=tmp_path)
    progress, _ = run_rounds(
        transport,
        progress=start_or_resume(model, settings=settings, folder=tmp_path),
        model=model,
        roster=open_roster(
            transport.hello(expected=2, min_sites=1, timeout_s=1), run=run, model=model, folder=tmp_path, next_round=1
        ),
        settings=settings,
        validation=small_samples(run, seed=99),
        folder=tmp_path,
        attempt=0,
        tell=lambda _: None,
        renew=first_of_each,
    )
    seen = [request.weights["head.rows"] for request in transport.heard]
    assert all(request.kept == ("head.rows",) for request in transport.heard)
    for request, rows in zip(transport.heard, seen, strict=True):
        assert torch.equal(rows, request.weights["head.linear.weight"][:, :4])
    assert not torch.equal(seen[0], seen[-1])
    # what a round had is what its checkpoint holds, and what is kept
    assert torch.equal(progress.weights["head.rows"], seen[-1])
    assert torch.equal(tensor_of(model, "head.rows"), progress.weights["head.rows"])


@pytest.mark.parametrize(
    "made",
    [
        {"head.linear.weight": torch.zeros(3, 4)},
        {"head.rows": torch.zeros(4, 4)},
        {"head.rows": torch.zeros(3, 4).double()},
        {"head.row": torch.zeros(3, 4)},
    ],
)
def test_what_renews_given_tensors_can_change_nothing_else(made: dict[str, Tensor], run: RunConfig) -> None:
    model = with_rows(run)
    weights = {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    with pytest.raises(ModelError, match=r"allowed: head\.rows, in their own shapes"):
        renewed(model, weights, renew=lambda _: made)
