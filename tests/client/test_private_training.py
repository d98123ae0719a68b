"""Tests of client/private_training.py: noise, denominator, steps, and what privacy leaves of ordinary training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from client.plan import PrivacyPlan
from client.private_training import learning_rate
from client.sampling import poisson_batch
from shared.batch import Samples
from shared.privacy.noise import RandomSource, reproducible_source, secret_source
from tests.client.toy import (
    NAMES,
    WIDTH,
    Optimizer,
    Planted,
    Toy,
    flat,
    plan_of,
    planted_samples,
    toy_samples,
    trained,
    training_settings,
)

PLANTED_NAMES = ("weight", "bias")


class Wide(Planted):
    """No gradient whatever, and many weights: all that leaves is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(20_000))

    def forward(self, inputs: object, present: Tensor) -> Tensor:
        return (present.float().sum(dim=1) * 0 * self.weight.sum())[:, None]


def variance_is_plausible(noise: Tensor, std: float, *, false_alarm: float) -> bool:
    share = float(stats.chi2.cdf(float((noise.double() / std).square().sum()), noise.numel()))
    return false_alarm / 2 < share < 1 - false_alarm / 2


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_noise_has_the_promised_scale(optimizer: Optimizer) -> None:
    """On the noise of a real round; fails by chance for two seeds in a million, catches a scale 5 % off either way."""
    clip_norm, multiplier, expected = 0.7, 1.3, 12.0
    plan = plan_of(clip_norm=clip_norm, noise_multiplier=multiplier, expected_batch_size=expected)
    change = trained(
        Wide(),
        toy_samples(20),
        training=training_settings(optimizer),
        plan=plan,
        names=("weight",),
        noise=secret_source(),
        sampling=secret_source(),
    )["weight"]
    std = clip_norm * multiplier / expected

    assert variance_is_plausible(change, std, false_alarm=1e-6)
    assert not variance_is_plausible(change, std * 1.05, false_alarm=1e-6)
    assert not variance_is_plausible(change, std / 1.05, false_alarm=1e-6)
    assert stats.kstest((change.double() / std).numpy(), "norm").pvalue > 1e-6


def test_each_step_has_fresh_noise() -> None:
    """Four equal noises would have four times the deviation of one, not twice; fails by chance twice in a million."""
    plan = plan_of(steps_per_round=4)
    change = trained(Wide(), toy_samples(20), training=training_settings(), plan=plan, names=("weight",))["weight"]

    assert variance_is_plausible(change, 2 * 0.7 * 1.3 / 10.0, false_alarm=1e-6)


def test_empty_batches_are_noised_and_counted() -> None:
    """At a site without a single record every step is a sum of noise; fails by chance twice in a million."""
    plan = plan_of(steps_per_round=4)
    change = trained(Wide(), toy_samples(0), training=training_settings(), plan=plan, names=("weight",))["weight"]

    assert variance_is_plausible(change, 2 * 0.7 * 1.3 / 10.0, false_alarm=1e-6)


def test_denominator_is_public() -> None:
    """One more record moves the change by its own clipped gradient over the expected size, and nothing else."""
    gradients = torch.zeros(21, WIDTH + 1)
    gradients[:, 0] = 0.1
    plan = plan_of(sample_rate=1.0, expected_batch_size=20.0, noise_multiplier=0.4)

    def change(rows: int) -> Tensor:
        samples = planted_samples(gradients[:rows])
        training = training_settings(sample_rate=1.0)
        return flat(trained(Planted(), samples, training=training, plan=plan, names=PLANTED_NAMES))

    moved = change(21) - change(20)

    assert float(moved.abs().sum()) == pytest.approx(0.1 / 20.0, rel=1e-4)


def test_one_record_moves_a_round_by_at_most_the_clip_norm_over_the_denominator() -> None:
    """Through the whole of train_round, with a record of huge, NaN or infinite gradient added."""
    plan = plan_of(sample_rate=1.0, expected_batch_size=8.0, noise_multiplier=0.4)
    others = torch.randn(8, WIDTH + 1, generator=torch.Generator().manual_seed(2))
    for value in (0.0, 0.3, 1e20, 3e38, math.nan, math.inf):
        one = torch.full((1, WIDTH + 1), value)
        with_one, without = (
            flat(
                trained(
                    Planted(),
                    planted_samples(rows),
                    training=training_settings(sample_rate=1.0),
                    plan=plan,
                    names=PLANTED_NAMES,
                    nominal_size=8,
                )
            )
            for rows in (torch.cat([others, one]), others)
        )

        assert float((with_one - without).double().norm()) <= 0.7 / 8 * (1 + 1e-5)


def torch_optimizer(name: Optimizer, model: nn.Module, *, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=weight_decay)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)


def ordinary_training(model: nn.Module, samples: Samples, *, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(samples.inputs, samples.present)
        model.loss(outputs, samples.targets).mean().backward()  # type: ignore[operator]
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("plan", [None, "no-noise"])
def test_without_noise_and_clipping_a_round_is_ordinary_training(optimizer: Optimizer, plan: str | None) -> None:
    samples, model, twin = toy_samples(12), Toy().double(), Toy().double()
    samples = replace(samples, inputs={name: values.double() for name, values in samples.inputs.items()})
    training = training_settings(optimizer, learning_rate=0.1, sample_rate=1.0, local_steps=6, weight_decay=0.01)
    neutral = plan_of(clip_norm=1e9, noise_multiplier=0.0, sample_rate=1.0, expected_batch_size=12.0, steps_per_round=6)
    change = trained(model, samples, training=training, plan=neutral if plan else None, nominal_size=12, names=NAMES)

    inner = torch_optimizer(optimizer, twin, weight_decay=0.01)
    ordinary_training(twin, samples, optimizer=inner, steps=6)
    start = dict(Toy().double().named_parameters())
    for name, parameter in twin.named_parameters():
        assert torch.allclose(start[name] + change[name], parameter, rtol=1e-10, atol=1e-12), name


def test_noise_is_drawn_in_double_precision() -> None:
    """float32 draws end at 5.77 deviations; the numbers that leave are those of a float64 draw, and of no other."""
    noise = trained(Wide(), toy_samples(20), training=training_settings(), plan=plan_of(), names=("weight",))["weight"]
    double, single = (
        reproducible_source(1, purpose="noise").normal((20_000,), std=0.7 * 1.3, kind=kind)
        for kind in ("float64", "float32")
    )

    assert torch.equal(noise, -(double.float() / 10.0))
    assert not torch.equal(noise, -(single.float() / 10.0))


def cipher_noise(std: float, reference: Tensor, generator: RandomSource, secure_mode: bool) -> Tensor:
    return generator.normal(tuple(reference.shape), std=std).to(reference.dtype)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_round_equals_opacus_own_engine_on_the_same_draws(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opacus' DPOptimizer with its own hooks and clipping, given our batches and our noise, drawn in float64."""
    monkeypatch.setattr("opacus.optimizers.optimizer._generate_noise", cipher_noise)
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    samples, steps = toy_samples(20), 5
    training = training_settings(optimizer, learning_rate=0.1, local_steps=steps)
    plan = plan_of(steps_per_round=steps)
    change = trained(Toy(), samples, training=training, plan=plan)

    twin = Toy()
    wrapped = GradSampleModule(twin, loss_reduction="sum")
    inner = torch_optimizer(optimizer, twin)
    theirs = DPOptimizer(
        inner,
        noise_multiplier=1.3,
        max_grad_norm=0.7,
        expected_batch_size=10,
        generator=reproducible_source(1, purpose="noise"),
    )
    sampling = reproducible_source(1, purpose="sampling")
    sampling.seed()  # the draw that seeds dropout
    for _ in range(steps):
        batch = samples.take(poisson_batch(20, sample_rate=0.5, source=sampling))
        theirs.zero_grad()
        outputs = wrapped(batch.inputs, batch.present)
        with pytest.warns(UserWarning, match="Full backward hook"):
            twin.loss(outputs, batch.targets).sum().backward()  # type: ignore[no-untyped-call]
        theirs.step()
    start = dict(Toy().named_parameters())
    # Opacus divides by the norm plus 1e-6; Adam's first steps magnify what little differs.
    for name, parameter in twin.named_parameters():
        assert torch.allclose(start[name] + change[name], parameter, rtol=1e-4, atol=1e-5), name


def test_proximal_term_comes_after_the_noise() -> None:
    """With a pull a thousand times the clip norm, one record still moves a round no further than without."""
    others = torch.randn(8, WIDTH + 1, generator=torch.Generator().manual_seed(2))
    one = torch.full((1, WIDTH + 1), 5.0)
    plan = plan_of(sample_rate=1.0, expected_batch_size=8.0, steps_per_round=2)

    def change(rows: Tensor, mu: float) -> Tensor:
        training = training_settings(learning_rate=1e-3, sample_rate=1.0, local_steps=2, proximal_mu=mu)
        return flat(trained(Planted(), planted_samples(rows), training=training, plan=plan, names=PLANTED_NAMES))

    free, pulled = change(others, 0.0), change(others, 100.0)
    moved = change(torch.cat([others, one]), 100.0) - pulled

    first_and_second = (1 - 1e-3 * 100.0) + 1  # the first step's share is pulled back once
    assert float(moved.double().norm()) <= first_and_second * 1e-3 * 0.7 / 8 * (1 + 1e-4)
    assert float(pulled.norm()) < float(free.norm())


def test_proximal_term_is_that_of_fedprox() -> None:
    """Against autograd on the loss plus mu/2 times the squared way from the start."""
    samples, model, twin, mu = toy_samples(12), Toy(), Toy(), 0.8
    training = training_settings(learning_rate=0.1, sample_rate=1.0, local_steps=5, proximal_mu=mu)
    change = trained(model, samples, training=training, plan=None, nominal_size=12)

    start = {name: value.detach().clone() for name, value in twin.named_parameters()}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss = twin.loss(twin(samples.inputs, samples.present), samples.targets).mean()
        way = sum((value - start[name]).square().sum() for name, value in twin.named_parameters())
        (loss + mu / 2 * way).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, value in twin.named_parameters():
        assert torch.allclose(change[name], value - start[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plan", [None, plan_of(steps_per_round=3)])
def test_the_model_and_the_global_generator_come_back_as_they_were(plan: PrivacyPlan | None) -> None:
    model, samples = Toy(), toy_samples(20)
    model.eval()
    model.head.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator, modes = torch.random.get_rng_state(), [module.training for module in model.modules()]
    change = trained(model, samples, training=training_settings("adam", local_steps=3), plan=plan)

    assert all(float(value.abs().sum()) > 0 for value in change.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(generator, torch.random.get_rng_state())
    assert all(parameter.grad is None and not vars(parameter) for parameter in model.parameters())


def test_only_the_named_parameters_change() -> None:
    names = ("head.weight", "head.bias")
    change = trained(Toy(), toy_samples(20), training=training_settings(), plan=plan_of(), names=names)

    assert tuple(change) == names


def test_the_change_depends_on_nothing_but_its_generators() -> None:
    def change(noise: int, sampling: int) -> Tensor:
        torch.rand(1)  # the global generator moves on between the calls
        return flat(
            trained(
                Toy(),
                toy_samples(20),
                training=training_settings(local_steps=3),
                plan=plan_of(steps_per_round=3),
                noise=reproducible_source(noise, purpose="noise"),
                sampling=reproducible_source(sampling, purpose="sampling"),
            )
        )

    assert torch.equal(change(1, 1), change(1, 1))
    assert not torch.equal(change(1, 1), change(2, 1))
    assert not torch.equal(change(1, 1), change(1, 2))


def test_optimizer_state_does_not_outlive_a_round() -> None:
    model, samples = Toy(), toy_samples(12)
    training = training_settings("adam", learning_rate=0.1, sample_rate=1.0)
    first, second = (flat(trained(model, samples, training=training, plan=None)) for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_learning_rate_warms_up_and_falls_by_its_schedule(schedule: str, expected: list[float]) -> None:
    training = training_settings(schedule=schedule, warmup_rounds=2)

    assert [learning_rate(training, round_number=number, rounds=6) for number in range(1, 7)] == pytest.approx(expected)


def test_the_schedule_reaches_the_step() -> None:
    changes = [
        flat(
            trained(
                Toy(),
                toy_samples(20),
                training=training_settings(schedule="linear"),
                plan=plan_of(),
                round_number=n,
                rounds=4,
            )
        )
        for n in (1, 3)
    ]

    assert torch.allclose(changes[1], changes[0] / 2, rtol=1e-3, atol=1e-6)


def test_secret_runs_differ() -> None:
    changes = [
        flat(
            trained(
                Toy(),
                toy_samples(20),
                training=training_settings(),
                plan=plan_of(),
                noise=secret_source(),
                sampling=secret_source(),
            )
        )
        for _ in range(2)
    ]

    assert np.abs((changes[0] - changes[1]).numpy()).max() > 1e-3
