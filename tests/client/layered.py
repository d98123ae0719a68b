"""Layered: models of a few layers for tests of book-keeping, whose gradients can be planted; used by the tests beside it."""

import torch
from torch import Tensor, nn

from client.gradient.engine import GradientEngine
from shared.batch import Batch
from shared.privacy.mechanism import Clip, ClippedSum


class Chain(nn.Module):
    """Layers one after another; a sample's loss weighs each of its outputs with its target, so that targets plant.

    Without targets the loss is bent, and every layer has a gradient that depends on all the others.
    """

    def __init__(self, *layers: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.7)

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs["x"])
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim > 1:
            return (outputs * targets).flatten(1).sum(dim=1)
        flat = outputs.flatten(1)
        bent = (flat + 0.3).tanh() * torch.arange(1.0, flat.shape[1] + 1, dtype=flat.dtype).cos()
        return bent.sum(dim=1) * (1 + targets)


class Twice(nn.Module):
    """A layer that is called twice in a pass, the second time on what it gave."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        outputs: Tensor = self.layer(self.layer(values).tanh() + values)
        return outputs


def batch_of(inputs: Tensor, targets: Tensor | None = None) -> Batch:
    """Rows of a Chain; without targets of its own each row's loss has another weight."""
    num = len(inputs)
    found = torch.arange(float(num)) / 3 if targets is None else targets
    return Batch(inputs={"x": inputs}, present=torch.ones(num, 1, dtype=torch.bool), targets=found)


def names_of(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in model.named_parameters())


def summed(
    engine: GradientEngine, model: nn.Module, batch: Batch, *, clip: Clip, rows_per_unit: int = 1
) -> tuple[Tensor, ClippedSum]:
    """The clipped sum over all parameters as one vector in float64, and as it is."""
    found = engine.clipped_sum(model, batch, names=names_of(model), clip=clip, rows_per_unit=rows_per_unit)
    return torch.cat([found.sums[name].reshape(-1).double() for name in names_of(model)]), found
