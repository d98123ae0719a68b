"""The common job: what every framework, and Motet, trains in the same way.

in        the options --model mlp|cnn, --rounds, --private
out       data, model, local training and the clipped update, as simple as torch allows
relies on torch alone: it is imported in the environments of the peers

100 clients of 20 synthetic records of 28 x 28 numbers, all of them in every round; one epoch in batches of 10, SGD with
learning rate 0.05, the plain mean of the updates. Private: each update clipped to norm 1, Gaussian noise of multiplier
1 once on the sum.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLIENTS, RECORDS, BATCH, LEARNING_RATE, LABELS, SIDE = 100, 20, 10, 0.05, 10, 28
CLIP_NORM, NOISE_MULTIPLIER = 1.0, 1.0
HIDDEN = 74


@dataclass(frozen=True)
class Asked:
    """What one run of the job is to do."""

    model: str
    rounds: int
    private: bool
    mode: str


class Mlp(nn.Module):
    """58,840 weights and little arithmetic: what is measured is mostly the framework."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(SIDE * SIDE, HIDDEN), nn.Linear(HIDDEN, LABELS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.out(torch.relu(self.hidden(pictures.flatten(1))))
        return logits


class Cnn(nn.Module):
    """60,088 weights; two convolutions with a maximum over squares of four, then the layers of the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.hidden, self.out = nn.Linear(SIDE * SIDE, HIDDEN), nn.Linear(HIDDEN, LABELS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits."""
        pictures = torch.max_pool2d(torch.relu(self.first(pictures)), 2)
        pictures = torch.max_pool2d(torch.relu(self.second(pictures)), 2)
        logits: Tensor = self.out(torch.relu(self.hidden(pictures.flatten(1))))
        return logits


MODELS: dict[str, type[nn.Module]] = {"mlp": Mlp, "cnn": Cnn}


def asked() -> Asked:
    """From the command line; torch keeps to one thread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=sorted(MODELS), default="mlp")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--mode", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Asked(model=options.model, rounds=options.rounds, private=options.private, mode=options.mode)


def make_model(name: str) -> nn.Module:
    """The model with its first weights."""
    return MODELS[name]()


def data(clients: int = CLIENTS) -> tuple[Tensor, Tensor]:
    """Pictures [clients, RECORDS, 1, 28, 28] around a prototype of their class, and the classes."""
    draws = torch.Generator().manual_seed(0)
    prototypes = torch.randn(LABELS, 1, SIDE, SIDE, generator=draws)
    labels = torch.randint(0, LABELS, (clients, RECORDS), generator=draws)
    return prototypes[labels] + torch.randn(clients, RECORDS, 1, SIDE, SIDE, generator=draws), labels


def accuracy(model: nn.Module) -> float:
    """On 1,000 new records: shows that a framework has trained at all."""
    prototypes = torch.randn(LABELS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(7)
    labels = torch.randint(0, LABELS, (1000,), generator=draws)
    pictures = prototypes[labels] + torch.randn(1000, 1, SIDE, SIDE, generator=draws)
    with torch.no_grad():
        return float((model(pictures).argmax(1) == labels).float().mean())


def train_one(model: nn.Module, pictures: Tensor, labels: Tensor, *, optimizer: torch.optim.Optimizer) -> None:
    """One epoch at one client, in place."""
    order = torch.randperm(RECORDS)
    for start in range(0, RECORDS, BATCH):
        rows = order[start : start + BATCH]
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(pictures[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class Flat:
    """A model that takes its weights from one vector and gives its change as one."""

    def __init__(self, name: str) -> None:
        self.model = make_model(name)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=LEARNING_RATE)

    def first_weights(self) -> Tensor:
        """The weights it was made with."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def load(self, weights: Tensor) -> None:
        """Take these."""
        parts: Sequence[Tensor] = torch.split(weights, [parameter.numel() for parameter in self.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def update(self, weights: Tensor, pictures: Tensor, labels: Tensor, *, private: bool) -> Tensor:
        """The change that one client's epoch makes, clipped where it is to be protected."""
        self.load(weights)
        train_one(self.model, pictures, labels, optimizer=self.optimizer)
        change = self.first_weights() - weights
        return change * min(1.0, CLIP_NORM / (float(change.norm()) + 1e-12)) if private else change


def noised(total: Tensor, *, private: bool) -> Tensor:
    """The sum of all updates, with its noise where it is to be protected."""
    return total + torch.randn(total.shape) * (NOISE_MULTIPLIER * CLIP_NORM) if private else total
