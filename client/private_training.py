"""Private training: one round at one site, from the model as it came to the change that may leave.

in        a model, the site's Samples, a PrivacyPlan that ledger.py has already charged for this round
out       parameter -> change; update.py sends it
relies on per-sample gradients (gradient/), Poisson batches (sampling.py), noise and scaling by Opacus' optimizer
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from client.gradient import GradientEngine, choose_engine
from client.gradient.plain import PlainEngine
from client.sampling import poisson_batch
from shared.batch import Batch, Samples
from shared.config import PrivacySettings, TrainingSettings, Unit
from shared.privacy.accountant import Accountant, MechanismUse, calibrate_noise, spent_epsilon


def train_round(
    model: nn.Module,
    samples: Samples,
    *,
    names: tuple[str, ...],
    training: TrainingSettings,
    plan: PrivacyPlan | None,
    nominal_size: int,
    round_number: int,
    rounds: int,
    modality_dropout: float,
    noise: torch.Generator,
    sampling: torch.Generator,
) -> dict[str, Tensor]:
    """Change of the named parameters after one round of local steps; the model itself comes back as it was given.

    Promise: with a plan, the change is a function of `plan.steps_per_round` clipped, noised sums over Poisson samples
    and of nothing else private. Without one it is ordinary training on the same kind of batches.
    Void if: the ledger was not charged before, or `noise` and `sampling` can be guessed (sampling.secret_generator).

    Args:
        names: parameters that are trained; all others stay and get no gradient.
        round_number: from 1 to `rounds`; only the learning rate depends on it.
        modality_dropout: chance that a step hides a present modality of a sample; one is always left.
        noise: makes the noise and nothing else.
        sampling: draws batches, hidden modalities and dropout.
    """
    parameters = dict(model.named_parameters())
    trained = {name: parameters[name] for name in names}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    rate = plan.sample_rate if plan else training.sampling(nominal_size)
    engine = _engine(model, training=training, private=plan is not None)
    with _as_given(model, trained, start), _own_randomness(sampling, next(iter(trained.values())).device):
        optimizer = _optimizer(
            list(trained.values()),
            training=training,
            learning_rate=learning_rate(training, round_number=round_number, rounds=rounds),
            plan=plan,
            expected_batch_size=plan.expected_batch_size if plan else rate * nominal_size,
            noise=noise,
        )
        if training.proximal_mu:
            # PRIVACY: the pull starts from public weights and is added after the noise, so a sample's share of the
            # sum is still at most clip_norm. test_proximal_term_comes_after_the_noise
            optimizer.attach_step_hook(_pull(trained, start, mu=training.proximal_mu))
        # PRIVACY: as many steps as were charged, whatever was drawn. test_empty_batches_are_noised_and_counted
        for _ in range(plan.steps_per_round if plan else training.steps(nominal_size)):
            batch = samples.take(poisson_batch(len(samples), sample_rate=rate, generator=sampling))
            if modality_dropout:
                batch = hide_modalities(batch, chance=modality_dropout, generator=sampling)
            optimizer.zero_grad()
            sums = engine.clipped_sum(model, batch, names=names, clip_norm=plan.clip_norm if plan else math.inf)
            for name, parameter in trained.items():
                parameter.grad = sums[name]
            optimizer.step()
        return {name: parameter.detach() - start[name] for name, parameter in trained.items()}


def learning_rate(training: TrainingSettings, *, round_number: int, rounds: int) -> float:
    """Step size of a round: rises evenly over the warm-up, then falls by the schedule, and is never zero."""
    warmup = training.warmup_rounds
    if round_number <= warmup:
        return training.learning_rate * round_number / (warmup + 1)
    progress = (round_number - warmup - 1) / max(1, rounds - warmup)
    share = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return training.learning_rate * share[training.schedule]


def hide_modalities(batch: Batch, *, chance: float, generator: torch.Generator) -> Batch:
    """The batch with present modalities hidden at random, sample by sample; a sample keeps at least one it had.

    Each sample's fate is drawn apart from the others', so it still has one gradient, clipped like any other.
    """
    draws = torch.rand(batch.present.shape, generator=generator)
    kept = batch.present & (draws >= chance)
    luckiest = torch.where(batch.present, draws, -1.0).argmax(dim=1, keepdim=True)
    rescued = torch.zeros_like(kept).scatter(1, luckiest, value=True)
    kept = torch.where(kept.any(dim=1, keepdim=True), kept, rescued & batch.present)
    return Batch(inputs=batch.inputs, present=kept, targets=batch.targets)


def _engine(model: nn.Module, *, training: TrainingSettings, private: bool) -> GradientEngine:
    if not private:
        return PlainEngine()
    return choose_engine(training.gradient_engine, model, microbatch_size=training.microbatch_size)


def _optimizer(
    parameters: list[nn.Parameter],
    *,
    training: TrainingSettings,
    learning_rate: float,
    plan: PrivacyPlan | None,
    expected_batch_size: float,
    noise: torch.Generator,
) -> DPOptimizerFastGradientClipping:
    """A torch optimizer in Opacus' wrapper, which adds the noise and divides; its state lasts one round."""
    decay = training.weight_decay
    inner: torch.optim.Optimizer
    if training.optimizer == "adam":
        inner = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=decay)
    else:
        momentum = training.momentum if training.optimizer == "momentum" else 0.0
        inner = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=decay)
    return _DoubleNoiseOptimizer(
        inner,
        # PRIVACY: noise of the scale the accountant was told. test_noise_has_the_promised_scale
        noise_multiplier=plan.noise_multiplier if plan else 0.0,
        max_grad_norm=plan.clip_norm if plan else 1.0,
        # PRIVACY: divide by the expected batch size; the drawn one depends on who is there. test_denominator_is_public
        expected_batch_size=expected_batch_size,
        generator=noise,
    )


class _DoubleNoiseOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimizer, its noise drawn in float64 and then rounded.

    Opacus draws in float32, whose uniform numbers have 24 bits, so that no draw passes 5.77 deviations. A Gaussian
    passes them eight times in a thousand million: over all weights and steps, more than a delta of 1e-5 has room for.
    """

    def add_noise(self) -> None:
        """Leaves the clipped sum with its noise in every parameter's `grad`."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            clipped = parameter.summed_grad
            # PRIVACY: drawn with 53 bits, so that the tail is there. test_noise_is_drawn_in_double_precision
            noise = torch.normal(
                0.0, std, clipped.shape, generator=self.generator, device=clipped.device, dtype=torch.float64
            )
            parameter.grad = (clipped.double() + noise).to(clipped.dtype).view_as(parameter)


def _pull(trained: dict[str, nn.Parameter], start: dict[str, Tensor], *, mu: float) -> Callable[[object], None]:
    """Opacus' hook between noise and step that adds the gradient of FedProx' term: mu times the way from the start."""

    def hook(_: object) -> None:
        for name, parameter in trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start[name], alpha=mu)

    return hook


@contextmanager
def _as_given(model: nn.Module, trained: dict[str, nn.Parameter], start: dict[str, Tensor]) -> Iterator[None]:
    """Training mode while it lasts; mode, weights and gradients as before after it, whatever happened."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(start[name])
                parameter.grad = None
                parameter.__dict__.pop("summed_grad", None)


@contextmanager
def _own_randomness(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout inside draws from `generator`'s stream; torch's global generator is left as it was."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which keeps a stack trace for every kind of device it has not started yet.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
