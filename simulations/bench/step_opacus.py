"""Opacus at one private step: its hooks, its functorch mode and its ghost clipping, each as its manual says.

in        a model of the benchmarks and a batch
out       a function that makes so many steps in place
relies on Opacus' own optimizers for noise and division; ghost clipping gets its own loss object, without which nothing
          is clipped and nobody is told
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from shared.batch import Batch
from shared.model.encoders.recurrent import EmbeddingLstm, FramesLstm, LinearLstm
from shared.model.multimodal import MultimodalModel

LEARNING_RATE, CLIP_NORM = 0.05, 1.0
Step = Callable[[], object]


def hooks(model: MultimodalModel, batch: Batch, *, noise: float, functorch: bool = False) -> Step:
    """GradSampleModule: the gradient of every sample, by rules for each kind of layer or by torch.func for all."""
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="mean", force_functorch=functorch)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        noise_multiplier=noise,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(batch),
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(wrapped(batch.inputs, batch.present), batch.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ghost(model: MultimodalModel, batch: Batch, *, noise: float) -> Step:
    """Ghost clipping: norms from activations and output gradients, then a second backward pass of the weighted loss."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            # its rule for embeddings takes no expanded numbers, as of the places of words, and breaks on them
            module.register_forward_pre_hook(_contiguous)
    wrapped = GradSampleModuleFastGradientClipping(
        model, batch_first=True, loss_reduction="mean", max_grad_norm=CLIP_NORM, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        noise_multiplier=noise,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(batch),
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(reduction="mean"), "mean")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(wrapped(batch.inputs, batch.present), batch.targets).backward()
        optimizer.step()

    return step


def _contiguous(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    del module
    return tuple(each.contiguous() for each in given)


class DpLstm(nn.Module):
    """Opacus' own recurrence in the place of Motet's: the mean state of each sequence."""

    def __init__(self, inputs: int, *, hidden: int) -> None:
        super().__init__()
        self.lstm = DPLSTM(inputs, hidden, batch_first=True)

    def forward(self, steps: Tensor, shares: Tensor | None = None) -> Tensor:
        """[B, T, F] to [B, H]."""
        return _mean_state(self.lstm(steps)[0], shares)


class TorchLstm(nn.Module):
    """torch's own recurrence, which no engine of private gradients can look into: a floor without privacy."""

    def __init__(self, inputs: int, *, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, steps: Tensor, shares: Tensor | None = None) -> Tensor:
        """[B, T, F] to [B, H]."""
        return _mean_state(self.lstm(steps)[0], shares)


def _mean_state(states: Tensor, shares: Tensor | None) -> Tensor:
    return states.mean(dim=1) if shares is None else (states * shares[:, :, None]).sum(dim=1)


def with_recurrence(model: MultimodalModel, kind: type[DpLstm] | type[TorchLstm]) -> MultimodalModel:
    """The model with another recurrence in its LSTM encoders; other models as they are."""
    for module in model.modules():
        if isinstance(module, FramesLstm | EmbeddingLstm) and isinstance(module.lstm, LinearLstm):
            inputs, hidden = module.lstm.input.in_features, module.lstm.hidden
            module.lstm = kind(inputs, hidden=hidden)  # type: ignore[assignment]
    return model


@contextmanager
def same_randomness() -> Iterator[None]:
    """Weights of exchanged parts are drawn alike for all contenders."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
