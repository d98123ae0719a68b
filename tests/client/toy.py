"""Toy: a two-modality model small enough to differentiate by hand, and samples for it; used by the tests beside it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, ParamSpec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from client.plan import PrivacyPlan
from client.private_training import TrainedRound, train_round
from shared.batch import Samples
from shared.config import TrainingSettings
from shared.privacy.noise import RandomSource, reproducible_source

NUM_CLASSES, WIDTH = 3, 5
Optimizer = Literal["sgd", "momentum", "adam"]
P = ParamSpec("P")


class Scale(nn.Module):
    """One 0-d parameter, which clipping must not forget."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class Toy(nn.Module):
    """Two linear encoders, absent ones masked after, a tanh, a head, a 0-d scale."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.head, self.scale = nn.Linear(4, NUM_CLASSES), Scale()
        torch.random.set_rng_state(state)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        embeddings = torch.stack([self.first(inputs["first"]), self.second(inputs["second"])], dim=1)
        outputs: Tensor = self.scale(self.head(embeddings.masked_fill(~present[:, :, None], 0.0).sum(dim=1).tanh()))
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


class Planted(nn.Module):
    """A model whose gradient for a sample is that sample's input, whatever the weights: to plant any gradient."""

    def __init__(self, *, width: int = WIDTH) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        planted = inputs["first"]
        return (planted[:, :WIDTH] @ self.weight + planted[:, WIDTH] * self.bias)[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]


class PlantedLayers(nn.Module):
    """Planted gradients again, over three layers: weights and a 0-d bias in two of them, a 0-d scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = Planted(width=3), Planted(width=1), Scale()

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        first, second = self.first, self.second
        weights = [first.weight, first.bias[None], second.weight, second.bias[None], self.scale.factor[None]]
        return (inputs["first"] @ torch.cat(weights))[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]


LAYERED_NAMES = ("first.weight", "first.bias", "second.weight", "second.bias", "scale.factor")
LAYERED_WIDTH = 7


def toy_samples(num: int, *, seed: int = 0) -> Samples:
    """Random samples, some without one of the modalities."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(num, 2, generator=generator) < 0.7
    present[:, 0] |= ~present.any(dim=1)
    return Samples(
        inputs={name: torch.randn(num, WIDTH, generator=generator) for name in ("first", "second")},
        present=present,
        targets=torch.randint(NUM_CLASSES, (num,), generator=generator),
        subjects=tuple(str(row) for row in range(num)),
        groups={},
    )


def planted_samples(gradients: Float[Tensor, "B P"]) -> Samples:
    """Samples for Planted with exactly these gradients."""
    num = len(gradients)
    return Samples(
        inputs={"first": gradients},
        present=torch.ones(num, 1, dtype=torch.bool),
        targets=torch.zeros(num, dtype=torch.int64),
        subjects=tuple(str(row) for row in range(num)),
        groups={},
    )


def training_settings(optimizer: Optimizer = "sgd", **changes: object) -> TrainingSettings:
    table: dict[str, object] = {"optimizer": optimizer, "learning_rate": 1.0, "sample_rate": 0.5, "local_steps": 1}
    return TrainingSettings.model_validate({**table, **changes})


def plan_of(**changes: float | str) -> PrivacyPlan:
    """A plan of one step, with some fields changed."""
    plan = PrivacyPlan(
        unit="record",
        epsilon=1.0,
        delta=1e-5,
        planned_rounds=1,
        accountant="pld",
        clip_norm=0.7,
        noise_multiplier=1.3,
        sample_rate=0.5,
        expected_batch_size=10.0,
        steps_per_round=1,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


NAMES = tuple(name for name, _ in Toy().named_parameters())


def trained_round(
    model: nn.Module,
    samples: Samples,
    *,
    training: TrainingSettings,
    plan: PrivacyPlan | None,
    names: tuple[str, ...] = NAMES,
    nominal_size: int = 20,
    round_number: int = 1,
    rounds: int = 1,
    modality_dropout: float = 0.0,
    noise: RandomSource | None = None,
    sampling: RandomSource | None = None,
) -> TrainedRound:
    """A round with random numbers that a seed gives back."""
    return train_round(
        model,
        samples,
        names=names,
        training=training,
        plan=plan,
        nominal_size=nominal_size,
        round_number=round_number,
        rounds=rounds,
        modality_dropout=modality_dropout,
        noise=noise or reproducible_source(1, purpose="noise"),
        sampling=sampling or reproducible_source(1, purpose="sampling"),
    )


def _update_of(run: Callable[P, TrainedRound]) -> Callable[P, dict[str, Tensor]]:
    def changed(*samples: P.args, **how: P.kwargs) -> dict[str, Tensor]:
        return run(*samples, **how).update

    return changed


trained = _update_of(trained_round)
"""the change that `trained_round` gives"""


def flat(change: dict[str, Tensor]) -> Tensor:
    """All numbers of a change as one vector."""
    return torch.cat([change[name].reshape(-1) for name in sorted(change)])
