"""Warm start: encoders learn from public values that nobody labelled, before the first round.

in        a run's model, and rows of public data as given.py reads them
out       weights of its encoders, which a later run begins with (`model.start`)
relies on the data being public: nothing here is protected, and its rows look at each other as they like

| how         | what is learned                                                                                      |
| contrastive | which values stand in one row, where rows have several modalities; which two changed copies are of   |
|             | one value, where the run augments a modality                                                         |
| autoencoder | a value from what is left of it when a part was blanked                                              |
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor, nn

from server.aggregation import Weights
from server.given import Readers, read_folder
from shared.batch import Batch
from shared.config import RunConfig
from shared.errors import RunError
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import modality_of
from shared.model.sample_draws import KEYS
from shared.model.seeding import seeded
from shared.settings import Settings

FEWEST_ROWS = 32
CHECKED_SHARE = 0.1
"""of the rows, kept aside to see whether anything was learned that holds for other rows"""
_PREFIX = "encoders."


class WarmStartSettings(Settings):
    """How encoders learn from public values."""

    how: Literal["contrastive", "autoencoder"]
    steps: int = Field(default=300, ge=1, le=1_000_000)
    batch_size: int = Field(default=64, ge=2, le=4096)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, description="of Adam")
    temperature: float = Field(default=0.1, gt=0, le=100, description="contrastive")
    blanked: float = Field(default=0.3, ge=0, lt=1, description="autoencoder: share of a value that is hidden")


@dataclass(frozen=True)
class WarmStart:
    """What was learned."""

    weights: Weights
    """of the encoders' parameters that train"""
    num_rows: int
    losses: tuple[float, float]
    """on rows that were kept aside, before and after"""


def warm_start(run: RunConfig, *, public: Path, settings: WarmStartSettings) -> WarmStart:
    """Encoders of the run's model after `steps` of Adam on public rows; the same for a seed on one machine.

    Raises:
        ManifestError: the folder has faults.
        RunError: too few rows, or nothing in them that could be told apart.
        ModelError: the run's model cannot be built.
    """
    model, rows = build_model(run), _rows(run, folder=public)
    if len(rows) < FEWEST_ROWS:
        raise RunError(f"{public}: {len(rows)} rows; allowed: {FEWEST_ROWS} and more, for anything to be learned")
    draws = torch.Generator().manual_seed(run.seed)
    order = torch.randperm(len(rows), generator=draws)
    cut = max(2, round(CHECKED_SHARE * len(rows)))
    with seeded(run.seed, part="warm start"):
        task = _task(model, rows, settings=settings, place=public)
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith(_PREFIX) and modality_of(model, name) in rows.inputs
    }
    if not trained:
        raise RunError(f"{public}: no row has a modality whose encoder has weights that train; allowed: some that have")
    aside, learned_from = rows.take(order[:cut]), order[cut:]
    before = _loss_aside(model, task, aside, seed=run.seed)
    optimizer = torch.optim.Adam([*trained.values(), *task.parameters()], lr=settings.learning_rate)
    model.train()
    for step in _steps(learned_from, settings=settings, draws=draws):
        optimizer.zero_grad()
        task.loss(model, rows.take(step), draws=draws).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    after = _loss_aside(model, task, aside, seed=run.seed)
    return WarmStart(
        weights={name: parameter.detach().clone() for name, parameter in trained.items()},
        num_rows=len(rows),
        losses=(before, after),
    )


class _Learning(nn.Module, ABC):
    """What the encoders learn by; its own parameters are thrown away afterwards."""

    @abstractmethod
    def loss(self, model: MultimodalModel, batch: Batch, *, draws: torch.Generator) -> Float[Tensor, ""]:
        """What a batch costs; it may draw from `draws`."""


class _Contrastive(_Learning):
    """Two views of a row are to be nearer to each other than to those of other rows.

    Views are two modalities of the row, or a modality changed twice. Source: Chen et al. 2020, arXiv:2002.05709,
    section 2.1 (two changed copies, a projection that is thrown away); between modalities Radford et al. 2021,
    arXiv:2103.00020, section 2.3. In-batch negatives: here, and only here, the data is public.
    """

    def __init__(self, model: MultimodalModel, *, temperature: float, augmented: frozenset[str]) -> None:
        super().__init__()
        self.temperature, self.augmented = temperature, augmented
        self.pairs = tuple(itertools.combinations(range(len(model.modalities)), 2))
        self.project = nn.ModuleList(nn.Linear(model.width, model.width) for _ in model.modalities)

    def loss(self, model: MultimodalModel, batch: Batch, *, draws: torch.Generator) -> Float[Tensor, ""]:
        """Mean over the pairs of views that at least two rows of the batch have."""
        first, second = (self._views(model, batch, draws=draws) for _ in range(2))
        costs = []
        for one, other in self.pairs:
            both = batch.present[:, one] & batch.present[:, other]
            costs += [_nce(first[one][both], second[other][both], temperature=self.temperature)] * int(both.sum() > 1)
        for place, name in enumerate(model.modalities):
            has = batch.present[:, place]
            if name in self.augmented and int(has.sum()) > 1:
                costs.append(_nce(first[place][has], second[place][has], temperature=self.temperature))
        return torch.stack(costs).mean() if costs else _sum_of_nothing(self)

    def _views(self, model: MultimodalModel, batch: Batch, *, draws: torch.Generator) -> list[Float[Tensor, "B D"]]:
        keys = torch.randint(2**62, (len(batch),), generator=draws)
        embeddings = model.embeddings({**batch.inputs, KEYS: keys}, batch.present)
        projected = [project(embeddings[:, place]) for place, project in enumerate(self.project)]
        return [nn.functional.normalize(each, dim=1) for each in projected]


class _Autoencoder(_Learning):
    """From an embedding a small network guesses the value whose parts were blanked before it was encoded.

    Numbers are guessed by their squared error, on the scale that the public rows have; token numbers by which of them
    are there. Source: Vincent et al. 2008, ICML, section 2.3 (denoising autoencoders, masking noise).
    """

    def __init__(self, model: MultimodalModel, rows: Batch, *, blanked: float) -> None:
        super().__init__()
        self.blanked, width = blanked, model.width
        self.scales = {name: _Scale.of(values) for name, values in rows.inputs.items()}
        self.guess = nn.ModuleDict(
            {
                str(place): nn.Sequential(
                    nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, self.scales[name].num_numbers)
                )
                for place, name in enumerate(model.modalities)
                if name in rows.inputs
            }
        )

    def loss(self, model: MultimodalModel, batch: Batch, *, draws: torch.Generator) -> Float[Tensor, ""]:
        """Mean over the modalities of the batch."""
        keys = torch.randint(2**62, (len(batch),), generator=draws)
        seen = {name: self._partly(values, draws=draws) for name, values in batch.inputs.items()}
        embeddings = model.embeddings({**seen, KEYS: keys}, batch.present)
        costs = []
        for place, name in enumerate(model.modalities):
            has = batch.present[:, place]
            if name in batch.inputs and bool(has.any()):
                guessed = self.guess[str(place)](embeddings[has, place])
                costs.append(self.scales[name].error(guessed, batch.inputs[name][has]))
        return torch.stack(costs).mean() if costs else _sum_of_nothing(self)

    def _partly(self, values: Num[Tensor, "B *shape"], *, draws: torch.Generator) -> Num[Tensor, "B *shape"]:
        hidden = torch.rand(values.shape, generator=draws) < self.blanked
        return values.masked_fill(hidden, 0)


@dataclass(frozen=True)
class _Scale:
    """What a modality's values are guessed as: numbers around a mean, or which of some tokens are there."""

    num_numbers: int
    mean: float
    deviation: float
    is_tokens: bool

    @staticmethod
    def of(values: Num[Tensor, "N *shape"]) -> "_Scale":
        """That of public values."""
        if not values.is_floating_point():
            return _Scale(num_numbers=int(values.max()) + 1, mean=0.0, deviation=1.0, is_tokens=True)
        deviation = float(values.std()) or 1.0
        return _Scale(prod(values.shape[1:]), float(values.mean()), deviation, is_tokens=False)

    def error(self, guessed: Float[Tensor, "B N"], values: Num[Tensor, "B *shape"]) -> Float[Tensor, ""]:
        """Mean squared error in deviations, or mean binary cross-entropy of the tokens that are there."""
        if not self.is_tokens:
            return nn.functional.mse_loss(guessed, (values.flatten(1) - self.mean) / self.deviation)
        return nn.functional.binary_cross_entropy_with_logits(guessed, self._there(values.flatten(1)))

    def _there(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B N"]:
        there = torch.zeros(len(tokens), self.num_numbers)
        # 0 stands where a text has ended, and a token that no public row of the training had has no place
        there.scatter_(1, tokens.clamp(max=self.num_numbers - 1), 1.0)
        there[:, 0] = 0.0
        return there


def _sum_of_nothing(module: nn.Module) -> Float[Tensor, ""]:
    """Zero, with gradients of zero, for a batch in which nothing can be learned from."""
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0.0


def _nce(one: Float[Tensor, "B D"], other: Float[Tensor, "B D"], *, temperature: float) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding each row's other view among those of all, in both directions."""
    scores, own = one @ other.T / temperature, torch.arange(len(one))
    return (nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)) / 2


def _task(model: MultimodalModel, rows: Batch, *, settings: WarmStartSettings, place: Path) -> _Learning:
    if settings.how == "autoencoder":
        return _Autoencoder(model, rows, blanked=settings.blanked)
    augmented = frozenset(model.augment)
    if not augmented and not bool((rows.present.sum(dim=1) > 1).sum() >= FEWEST_ROWS):
        raise RunError(
            f"{place}: fewer than {FEWEST_ROWS} rows have two modalities, and the run augments none; allowed: rows "
            'with two, `augment` for an encoder, or how = "autoencoder"'
        )
    return _Contrastive(model, temperature=settings.temperature, augmented=augmented)


def _rows(run: RunConfig, *, folder: Path) -> Batch:
    pieces = [named.batch for named in read_folder(folder, readers=Readers(run))]
    names = [name for name in run.modalities if any(name in piece.inputs for piece in pieces)]
    return Batch(
        inputs={name: torch.cat([_or_blank(piece, name, pieces) for piece in pieces]) for name in names},
        present=torch.cat([piece.present for piece in pieces]),
        targets=torch.cat([piece.targets for piece in pieces]),
    )


def _or_blank(piece: Batch, name: str, pieces: list[Batch]) -> Tensor:
    if name in piece.inputs:
        return piece.inputs[name]
    like = next(other.inputs[name] for other in pieces if name in other.inputs)
    return torch.zeros((len(piece), *like.shape[1:]), dtype=like.dtype)


def _steps(rows: Int[Tensor, "N"], *, settings: WarmStartSettings, draws: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step: all of them in a random order, again and again."""
    waiting = rows[:0]
    for _ in range(settings.steps):
        while len(waiting) < min(settings.batch_size, len(rows)):
            waiting = torch.cat([waiting, rows[torch.randperm(len(rows), generator=draws)]])
        yield waiting[: settings.batch_size]
        waiting = waiting[settings.batch_size :]


@torch.no_grad()
def _loss_aside(model: MultimodalModel, task: _Learning, aside: Batch, *, seed: int) -> float:
    """On rows kept aside, changed and blanked in the same way each time."""
    return float(task.loss(model, aside, draws=torch.Generator().manual_seed(seed)))
