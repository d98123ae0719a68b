"""Updates become one step, parameter by parameter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import RunningMean, ServerOptimizer, aggregate, start_average
from shared.config import FederationSettings, ServerOptimizerSettings


def settings(**options: object) -> FederationSettings:
    return FederationSettings.model_validate({"rounds": 1, **options})


def test_a_parameter_is_averaged_over_the_sites_that_trained_it_only() -> None:
    updates = {
        "a": {"shared": torch.tensor([1.0]), "audio": torch.tensor([10.0])},
        "b": {"shared": torch.tensor([3.0])},
    }
    result = aggregate(updates, weights={"a": 1.0, "b": 1.0}, settings=settings())
    assert result["shared"].item() == 2.0
    assert result["audio"].item() == 10.0


def test_weights_count_in_proportion() -> None:
    updates = {"a": {"w": torch.tensor([0.0])}, "b": {"w": torch.tensor([4.0])}}
    assert aggregate(updates, weights={"a": 3.0, "b": 1.0}, settings=settings())["w"].item() == pytest.approx(1.0)


@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=9), st.floats(1e6, 1e9, width=32))
def test_one_wild_site_cannot_move_a_robust_average_beyond_the_others(values: list[float], wild: float) -> None:
    updates = {f"s{i}": {"w": torch.tensor([value])} for i, value in enumerate(values)} | {
        "wild": {"w": torch.tensor([wild])}
    }
    weights = dict.fromkeys(updates, 1.0)
    for how in (settings(aggregation="median"), settings(aggregation="trimmed-mean", trim_share=0.34)):
        assert min(values) - 1e-4 <= aggregate(updates, weights=weights, settings=how)["w"].item() <= max(values) + 1e-4
    assert aggregate(updates, weights=weights, settings=settings())["w"].item() > max(values)


def test_the_order_of_replies_does_not_change_a_bit_of_the_result() -> None:
    draws = torch.Generator().manual_seed(0)
    updates = {f"s{i}": {"w": torch.randn(1000, generator=draws)} for i in range(7)}
    weights = {site: 1.0 + i for i, site in enumerate(updates)}
    backwards = dict(reversed(updates.items()))
    first, second = (aggregate(each, weights=weights, settings=settings())["w"] for each in (updates, backwards))
    assert torch.equal(first, second)


def test_a_running_mean_is_the_mean_of_the_list() -> None:
    """200 sites, some without a parameter, of all weights; some updates one row, some not."""
    draws, mean = torch.Generator().manual_seed(1), RunningMean()
    updates: list[dict[str, torch.Tensor]] = []
    weights = (torch.rand(200, generator=draws, dtype=torch.float64) * 50 + 0.1).tolist()
    for number, weight in enumerate(weights):
        row = torch.randn(13, generator=draws, dtype=torch.float64) * 10.0 ** (number % 5)
        update = {"a": row[:6].view(2, 3), "b": row[6:11], "scale": row[11]}
        if number % 3 == 0:
            update.pop("b")
        if number % 7 == 0:
            update = {name: value.clone() for name, value in reversed(update.items())}
        updates.append(update)
        mean.add(update, weight=weight)
    result = mean.result()
    for name in ("a", "b", "scale"):
        pairs = [(update[name], weight) for update, weight in zip(updates, weights, strict=True) if name in update]
        stacked = torch.stack([value for value, _ in pairs])
        shares = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
        expected = torch.tensordot(shares / shares.sum(), stacked, dims=1)
        torch.testing.assert_close(result[name], expected, rtol=1e-12, atol=1e-12)
        assert result[name].shape == updates[1][name].shape


def test_an_average_of_float32_updates_is_rounded_once() -> None:
    """A float32 sum of these is 0.01 off."""
    draws, mean = torch.Generator().manual_seed(2), start_average(settings())
    values = 1000 + torch.rand(5000, 1, generator=draws)
    for value in values:
        mean.add({"w": value}, weight=1.0)
    assert mean.result()["w"].dtype == torch.float32
    assert mean.result()["w"].item() == torch.tensor(values.double().mean().item()).item()


@pytest.mark.parametrize("aggregation", ["mean", "median", "trimmed-mean"])
def test_updates_that_are_taken_are_not_changed(aggregation: str) -> None:
    row = torch.tensor([1.0, 2.0, 3.0])
    average = start_average(settings(aggregation=aggregation))
    for _ in range(3):
        average.add({"w": row[:2], "v": row[2:]}, weight=2.0)
    assert {name: value.tolist() for name, value in average.result().items()} == {"w": [1.0, 2.0], "v": [3.0]}
    assert row.tolist() == [1.0, 2.0, 3.0]


def optimizer(name: str, **options: float) -> ServerOptimizer:
    return ServerOptimizer(ServerOptimizerSettings.model_validate({"name": name, **options}))


def test_fedavg_with_rate_one_adds_the_average_update() -> None:
    new = optimizer("fedavg").step({"w": torch.tensor([1.0])}, update={"w": torch.tensor([0.5])})
    assert new["w"].item() == 1.5


def test_fedavgm_is_torch_sgd_with_momentum_on_the_negative_update() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    reference = torch.optim.SGD([weight], lr=0.3, momentum=0.8)
    ours, weights = optimizer("fedavgm", learning_rate=0.3, momentum=0.8), {"w": weight.detach().clone()}
    for step in range(5):
        update = torch.tensor([0.1 * step, -0.2])
        weight.grad = -update
        reference.step()
        weights = ours.step(weights, update={"w": update})
    torch.testing.assert_close(weights["w"], weight.detach())


def test_fedadagrad_is_torch_adagrad_with_the_same_start() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    reference = torch.optim.Adagrad([weight], lr=0.3, initial_accumulator_value=1e-2**2, eps=1e-2)
    ours, weights = (
        optimizer("fedadagrad", learning_rate=0.3, momentum=0.0, adaptivity=1e-2),
        {"w": weight.detach().clone()},
    )
    for step in range(5):
        update = torch.tensor([0.1 * step, -0.2])
        weight.grad = -update
        reference.step()
        weights = ours.step(weights, update={"w": update})
    torch.testing.assert_close(weights["w"], weight.detach())


def test_fedadam_and_fedyogi_follow_the_published_rule() -> None:
    """One step by hand: v0 = tau^2 = .01, m = .1 * 2, v_adam = .99 * .01 + .01 * 4, v_yogi = .01 + .01 * 4."""
    for name, second in (("fedadam", 0.99 * 0.01 + 0.01 * 4), ("fedyogi", 0.01 + 0.01 * 4)):
        ours = optimizer(name, learning_rate=1.0, momentum=0.9, second_momentum=0.99, adaptivity=0.1)
        new = ours.step({"w": torch.tensor([0.0])}, update={"w": torch.tensor([2.0])})
        assert new["w"].item() == pytest.approx(0.1 * 2 / (second**0.5 + 0.1), rel=1e-5)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_parameter_that_nobody_trained_keeps_its_value_and_moments(name: str) -> None:
    ours, weights = optimizer(name), {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
    weights = ours.step(weights, update={"a": torch.tensor([1.0]), "b": torch.tensor([1.0])})
    moments = {key: value.clone() for key, value in ours.moments.items()}
    later = ours.step(weights, update={"a": torch.tensor([1.0])})
    assert torch.equal(later["b"], weights["b"])
    assert all(torch.equal(ours.moments[key], moments[key]) for key in moments if key == "b")


@pytest.mark.parametrize(("values", "median"), [([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 2.0, 9.0], 3.0), ([5.0], 5.0)])
def test_the_median_is_that_of_each_number(values: list[float], median: float) -> None:
    updates = {f"s{i}": {"w": torch.tensor([value, -value])} for i, value in enumerate(values)}
    result = aggregate(updates, weights=dict.fromkeys(updates, 1.0), settings=settings(aggregation="median"))
    assert result["w"].tolist() == [median, -median]
