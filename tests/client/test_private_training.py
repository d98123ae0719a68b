"""Tests of client/private_training.py: noise, denominator, steps, and what privacy leaves of ordinary training."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from client.plan import PrivacyPlan
from client.private_training import learning_rate
from client.sampling import poisson_batch
from shared.batch import Samples
from shared.config import Clipping, NoiseKind
from shared.privacy.mechanism import GRIDS_PER_NORM, split_noise, whole_number_sensitivity
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


class Wide(nn.Module):
    """No gradient whatever, and many weights in two layers: all that leaves is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Planted(width=15_000), Planted(width=5_000)

    def forward(self, inputs: object, present: Tensor) -> Tensor:
        return (present.float().sum(dim=1) * 0 * (self.first.weight.sum() + self.second.weight.sum()))[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]


def noise_of(plan: PrivacyPlan, *, num: int = 20, optimizer: Optimizer = "sgd", secret: bool = False) -> Tensor:
    """20,000 numbers of a round that holds nothing else."""
    return flat(
        trained(
            Wide(),
            toy_samples(num),
            training=training_settings(optimizer),
            plan=plan,
            names=("first.weight", "second.weight"),
            noise=secret_source() if secret else None,
        )
    )


def noise_std(plan: PrivacyPlan) -> float:
    """What the accountant was told, with what adaptive clipping and rounding add, over the denominator."""
    multiplier = split_noise(plan.noise_multiplier)[0] if plan.clipping == "adaptive" else plan.noise_multiplier
    grid = plan.clip_norm / GRIDS_PER_NORM
    whole = whole_number_sensitivity(clip_norm=plan.clip_norm, grid=grid, num_parameters=20_000) * grid
    length = whole if plan.noise == "discrete" else plan.clip_norm
    return multiplier * length / plan.expected_batch_size


def variance_is_plausible(noise: Tensor, std: float, *, false_alarm: float) -> bool:
    share = float(stats.chi2.cdf(float((noise.double() / std).square().sum()), noise.numel()))
    return false_alarm / 2 < share < 1 - false_alarm / 2


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
@pytest.mark.parametrize("kind", ["float64", "float32", "discrete"])
def test_noise_has_the_promised_scale(optimizer: Optimizer, clipping: Clipping, kind: NoiseKind) -> None:
    """On the noise of a real round; fails by chance for two keys in a million, catches a scale 5 % off either way."""
    plan = plan_of(clipping=clipping, noise=kind, expected_batch_size=12.0)
    noise, std = noise_of(plan, optimizer=optimizer, secret=True), noise_std(plan)

    assert variance_is_plausible(noise, std, false_alarm=1e-6)
    assert not variance_is_plausible(noise, std * 1.05, false_alarm=1e-6)
    assert not variance_is_plausible(noise, std / 1.05, false_alarm=1e-6)
    assert stats.kstest((noise.double() / std).numpy(), "norm").pvalue > 1e-6


def test_discrete_noise_covers_the_rounding() -> None:
    """Rounding may lengthen a contribution of 20,000 numbers by 0.0067 %; the noise is that much more."""
    plan = plan_of(noise="discrete")
    drawn = reproducible_source(1, purpose="noise")
    grid = 0.7 / GRIDS_PER_NORM
    whole = drawn.discrete_normal((15_000,), std=1.3 * (2**20 + math.sqrt(20_000) / 2)).double()

    assert torch.allclose(noise_of(plan)[:15_000].double(), -whole * grid / 10.0, rtol=1e-6)


@pytest.mark.parametrize("kind", ["float64", "float32", "discrete"])
@pytest.mark.parametrize("num", [20, 0])
def test_each_step_has_fresh_noise(kind: NoiseKind, num: int) -> None:
    """Four equal noises would have four times the deviation of one, not twice; fails by chance twice in a million."""
    plan = plan_of(steps_per_round=4, noise=kind)

    assert variance_is_plausible(noise_of(plan, num=num), 2 * noise_std(plan), false_alarm=1e-6)


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_empty_batches_are_noised_and_counted(clipping: Clipping) -> None:
    """At a site without a single record every step is a sum of noise; fails by chance twice in a million."""
    plan = plan_of(steps_per_round=4, clipping=clipping)

    assert variance_is_plausible(noise_of(plan, num=0), 2 * noise_std(plan), false_alarm=1e-6)


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
    """The numbers that leave are those of a float64 draw; of a float32 one only where the owner chose it."""
    kinds: list[tuple[NoiseKind, NoiseKind]] = [("float64", "float32"), ("float32", "float64")]
    for kind, other in kinds:
        noise = noise_of(plan_of(noise=kind))
        drawn, not_drawn = (
            reproducible_source(1, purpose="noise").normal((len(noise),), std=0.7 * 1.3, kind=each)
            for each in (kind, other)
        )

        assert torch.equal(noise, -(drawn.float() / 10.0))
        assert not torch.equal(noise, -(not_drawn.float() / 10.0))


class OneDrawAStep:
    """A step's noise, drawn for all parameters together and handed out one parameter after the other."""

    def __init__(self, source: RandomSource, *, sizes: list[int]) -> None:
        self.source, self.sizes, self.left = source, sizes, list[Tensor]()

    def cipher_noise(self, std: float, reference: Tensor, generator: object, secure_mode: bool) -> Tensor:
        if not self.left:
            self.left = list(torch.split(self.source.normal((sum(self.sizes),), std=std), self.sizes))
        return self.left.pop(0).view(reference.shape).to(reference.dtype)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_round_equals_opacus_own_engine_on_the_same_draws(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opacus' DPOptimizer with its own hooks and clipping, given our batches and our noise, drawn in float64."""
    sizes = [parameter.numel() for parameter in Toy().parameters()]
    draws = OneDrawAStep(reproducible_source(1, purpose="noise"), sizes=sizes)
    monkeypatch.setattr("opacus.optimizers.optimizer._generate_noise", draws.cipher_noise)
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    samples, steps = toy_samples(20), 5
    training = training_settings(optimizer, learning_rate=0.1, local_steps=steps)
    plan = plan_of(steps_per_round=steps)
    change = trained(Toy(), samples, training=training, plan=plan)

    twin = Toy()
    wrapped = GradSampleModule(twin, loss_reduction="sum")
    inner = torch_optimizer(optimizer, twin)
    theirs = DPOptimizer(inner, noise_multiplier=1.3, max_grad_norm=0.7, expected_batch_size=10)
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


@pytest.mark.parametrize("kind", ["float64", "float32", "discrete"])
def test_equal_runs_differ_in_secret_noise(kind: NoiseKind) -> None:
    """Every number of them, though batches are equal."""
    plan = plan_of(noise=kind)
    first, second = (
        flat(trained(Toy(), toy_samples(20), training=training_settings(), plan=plan, noise=secret_source()))
        for _ in range(2)
    )

    assert (first != second).all()
    assert float((first - second).abs().max()) > 1e-3


def test_equal_runs_differ_in_secret_batches() -> None:
    plan = plan_of(noise_multiplier=0.0)
    changes = [
        flat(trained(Toy(), toy_samples(200), training=training_settings(), plan=plan, sampling=secret_source()))
        for _ in range(2)
    ]

    assert not torch.equal(*changes)
