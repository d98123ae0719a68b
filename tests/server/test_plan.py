"""Plan: each site is asked for what its owner says that it trains, and counts as its owner says that it should."""

import pytest
import torch

from server.aggregation import RunningMean, aggregate
from server.checkpoint import Progress
from server.intake import Intake, ModalityShares
from server.plan import Plan, make_plan
from shared.config import RunConfig
from shared.errors import ConfigError, RunError
from shared.messages import PROTOCOL_VERSION, Hello, ReplyHeader, RequestHeader, TrainReply, TrainRequest
from shared.model.multimodal import build_model
from shared.settings import parse_settings
from tests.server.conftest import SITE, protected_run, small_run
from tests.simulations.matching_runs import matching_run

BOTH = ("left", "right")
LEFT = ("encoders.left.linear.weight", "encoders.left.linear.bias")


def hello(site: str, **said: object) -> Hello:
    values = {"protocol_version": PROTOCOL_VERSION, "site": site, "modalities": BOTH, "nominal_size": 30, **said}
    return Hello.model_validate(values)


def plan_of(run: RunConfig, *sites: Hello) -> Plan:
    return make_plan(list(sites), run=run, model=build_model(run))


def several_run() -> RunConfig:
    tasks = {name: {"kind": "single-label", "labels": ["a", "b"]} for name in ("mood", "size")}
    data = {"task": "several", "tasks": tasks, "modalities": small_run().data.model_dump()["modalities"]}
    return protected_run(changes={"data": data})


def test_a_site_that_says_only_what_sites_always_said_trains_all(run: RunConfig) -> None:
    text = f'{{"protocol_version": {PROTOCOL_VERSION}, "site": "old", "modalities": ["left", "right"]}}'
    old = Hello.model_validate_json(text)
    exchange = plan_of(run, old).exchanges["old"]
    assert exchange.updated == tuple(name for name, _ in build_model(run).named_parameters())
    assert (exchange.given, exchange.personal) == ((), ())


def test_sites_are_asked_for_what_their_owners_let_train() -> None:
    run = several_run()
    sites = [
        hello("a"),
        hello("b", frozen=["encoders.left.*"]),
        hello("c", tasks=["size", "taste"]),
        hello("d", tasks=["taste"]),
        hello("e", frozen=["*"]),
    ]
    plan = plan_of(run, *sites)
    assert plan.site_names == ("a", "b", "c")
    whole = set(plan.exchanges["a"].updated)
    assert set(plan.exchanges["b"].updated) == whole - set(LEFT)
    assert plan.exchanges["b"].given == LEFT
    assert whole - set(plan.exchanges["c"].updated) == {name for name in whole if name.startswith("head.mood.")}
    shares = {share.site: share for share in plan.shares(build_model(run))}
    assert shares["a"].sent == shares["b"].sent + shares["b"].given
    assert (shares["b"].given, shares["c"].tasks) == (20, ("size", "taste"))
    with pytest.raises(RunError, match="0 of 2 sites have any of"):
        plan_of(run, *sites[3:])


def test_a_site_with_half_of_a_pair_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    run = RunConfig.model_validate(matching_run(private=True))
    plan = plan_of(run, hello("a"), hello("b", modalities=["left"]), hello("c", modalities=["right", "words"]))
    assert plan.site_names == ("a",)
    assert "b is left out: it has no left with right" in caplog.text
    with pytest.raises(RunError, match="0 of 1 sites have"):
        plan_of(run, hello("b", modalities=["left"]))


def test_sites_that_say_the_same_share_one_exchange() -> None:
    plan = plan_of(small_run(), *(hello(f"s{number}") for number in range(5)), hello("other", modalities=["left"]))
    assert len({id(exchange) for exchange in plan.exchanges.values()}) == 2


def test_a_modality_size_that_no_site_has_leaves_the_site_out() -> None:
    plan = plan_of(
        small_run(),
        hello("a"),
        hello("b", nominal_modality_sizes={"left": 0}),
        hello("c", nominal_modality_sizes={"left": 10**13}),
    )
    assert plan.site_names == ("a",)


def reply_of(request: TrainRequest, *, value: float, nominal_size: int) -> TrainReply:
    header = ReplyHeader(
        protocol_version=PROTOCOL_VERSION, run_id="r", round_number=1, nominal_size=nominal_size, privacy=None
    )
    return TrainReply(header, {name: torch.full_like(old, value) for name, old in request.weights.items()})


def test_modality_weights_are_what_owners_declare() -> None:
    """A site's encoder counts by the rows that its owner says have the modality; the rest by the nominal size."""
    run = small_run(weighting="modality")
    sites = (hello("a", nominal_modality_sizes={"left": 10}), hello("b"), hello("c", modalities=["left"]))
    plan, model = plan_of(run, *sites), build_model(run)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    intake = Intake(Progress(weights), run=run, central=None, shares=ModalityShares(plan, model=model))
    header = RequestHeader(protocol_version=PROTOCOL_VERSION, run=run, run_id="r", round_number=1, planned_rounds=4)
    for site, value, size in (("a", 1.0, 30), ("b", 2.0, 20), ("c", 4.0, 40)):
        request = TrainRequest(header, {name: weights[name] for name in plan.exchanges[site].updated})
        intake.take(site, reply_of(request, value=value, nominal_size=size), request=request)
    update = intake.settle()
    assert update is not None
    expected = {
        "encoders.left.linear.weight": (10 * 1 + 20 * 2 + 40 * 4) / 70,
        "fusion.project.left.bias": (10 * 1 + 20 * 2 + 40 * 4) / 70,
        "encoders.right.linear.weight": (30 * 1 + 20 * 2) / 50,
        "head.linear.weight": (30 * 1 + 20 * 2 + 40 * 4) / 90,
    }
    for name, mean in expected.items():
        torch.testing.assert_close(update[name], torch.full_like(update[name], mean))


def test_weights_by_parameter_and_as_a_whole_make_one_mean() -> None:
    updates = {
        name: {"w": torch.tensor([value]), "v": torch.tensor([-value])} for name, value in (("a", 1.0), ("b", 3.0))
    }
    found = aggregate(updates, weights={"a": 2.0, "b": {"w": 2.0, "v": 6.0}}, settings=small_run().federation)
    assert (float(found["w"]), float(found["v"])) == (2.0, -2.5)
    alike, whole = RunningMean(), RunningMean()
    for name, weight in (("a", 2.0), ("b", 5.0)):
        alike.add(updates[name], weight=dict.fromkeys(updates[name], weight))
        whole.add(updates[name], weight=weight)
    assert all(torch.equal(alike.result()[name], value) for name, value in whole.result().items())


def test_weights_by_modality_are_refused_where_whole_sites_are_protected() -> None:
    """What one site adds to the sum is bounded for a plain sum only."""
    table = protected_run(changes={"privacy": SITE}).model_dump()
    table["federation"]["weighting"] = "modality"
    with pytest.raises(ConfigError, match='allowed: aggregation = "mean" with weighting = "uniform"'):
        parse_settings(RunConfig, table, place="run")
