"""Naming: classes told apart in a joint space, by their names alone or by a few examples of each.

in        places of values, places of class names, or places of examples with their classes
out       scores by class; accuracy over a labelled folder
relies on nothing being trained but, if asked, a small head on the examples

Source: zero-shot by names Radford et al. 2021, arXiv:2103.00020, section 3.1.2; class means Snell et al. 2017,
arXiv:1703.05175, section 2.3; logistic regression on frozen places Tian et al. 2020, arXiv:2003.11539, section 3.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from server.joint_space import JointSpace
from server.metrics import classification_metrics
from shared.dataset import load_samples
from shared.errors import RunError
from shared.model.matching import Matching
from shared.settings import Settings

Head = Literal["mean", "logistic"]
PENALTY = 1.0
"""of logistic regression: half of it times the squared weights is added to the sum of the losses"""


class NamedClass(Settings):
    """One class and how well it fits."""

    name: str
    score: float
    probability: float
    """softmax of the scores over the run's temperature; how sure the model is, not how often it is right"""


@dataclass(frozen=True)
class Labelled:
    """Values of one modality with their classes."""

    places: Float[Tensor, "N D"]
    classes: Int[Tensor, "N"]
    names: tuple[str, ...]


class ShotScores(Settings):
    """What a way of naming reaches; with draws of examples, mean and standard deviation over the draws."""

    way: str
    num_classes: int
    num_tested: int
    accuracy: float
    macro_f1: float
    accuracy_spread: float | None = None
    macro_f1_spread: float | None = None
    left_out: tuple[str, ...] = ()
    """classes that have too few values for examples and something to test"""


def name_scores(space: JointSpace, modality: str, names: Sequence[str], *, template: str) -> Float[Tensor, "K D"]:
    """Where the names of classes lie, as texts of the run's other modality.

    Args:
        space: of the run.
        modality: of the values that will be named.
        names: two or more, all different.
        template: the text of a class, its name in place of `{}`.

    Raises:
        RunError: the other modality is no text, or the names or the template are not allowed.
    """
    other = space.other(modality)
    if space.trained.run.data.modalities[other].kind != "text":
        raise RunError(f"{modality} is matched with {other}, which is no text; classes cannot be given by names there")
    if len(names) < 2 or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise RunError(f"classes: {list(names)}; allowed: two or more, all different and none empty")
    if "{}" not in template:
        raise RunError(f"template: {template!r}; allowed: a text with {{}} where the name goes")
    return torch.stack([space.place(other, template.replace("{}", name)) for name in names])


def named(
    task: Matching, place: Float[Tensor, "D"], classes: Float[Tensor, "K D"], *, names: Sequence[str]
) -> list[NamedClass]:
    """The classes for one value, best first."""
    scores = task.scores(place[None], classes)[0]
    shares = (scores / task.temperature).softmax(dim=0)
    order = scores.argsort(descending=True, stable=True).tolist()
    return [NamedClass(name=names[k], score=float(scores[k]), probability=float(shares[k])) for k in order]


def read_labelled(space: JointSpace, folder: Path, *, modality: str, column: str) -> Labelled:
    """The values of a modality in a data folder, with the class that a group column gives each; of equal ones one.

    Raises:
        ManifestError: the folder has faults.
        RunError: the column is no group of the data, or fewer than two classes have a value.
    """
    run = space.trained.run
    if column not in run.data.groups:
        raise RunError(f"{column}: no group column of the run's data; allowed: {', '.join(run.data.groups) or 'none'}")
    if modality not in run.modalities:
        raise RunError(f"{modality}: the model has no such modality; allowed: {' or '.join(run.modalities)}")
    samples = load_samples(folder, run=run, cache=space.trained.settings.cache)
    has, first = samples.present[:, run.modalities.index(modality)].tolist(), dict[tuple[str, bytes], int]()
    for row, name in enumerate(samples.groups[column]):
        if has[row] and name:
            first.setdefault((name, samples.inputs[modality][row].numpy().tobytes()), row)
    names = tuple(sorted({name for name, _ in first}))
    if len(names) < 2:
        raise RunError(f"{folder}: {len(names)} classes in column {column}; allowed: two or more")
    rows = list(first.values())
    outputs = _outputs(space, modality, samples.inputs[modality][rows])
    classes = torch.tensor([names.index(name) for name, _ in first])
    return Labelled(places=outputs, classes=classes, names=names)


def zero_shot(
    space: JointSpace, labelled: Labelled, *, modality: str, names: Sequence[str], template: str
) -> ShotScores:
    """What the names alone reach.

    Args:
        space: of the run.
        labelled: values with their classes.
        modality: of the values.
        names: of the classes in the order of `labelled.names`, in words that the model may know.
        template: as `name_scores`.

    Raises:
        RunError: as `name_scores`, or another number of names.
    """
    if len(names) != len(labelled.names):
        raise RunError(f"classes: {len(names)} names; allowed: one each for {', '.join(labelled.names)}, in that order")
    classes = name_scores(space, modality, names, template=template)
    found = classification_metrics(space.task.scores(labelled.places, classes), labelled.classes, calibration=False)
    return ShotScores(
        way="by name",
        num_classes=len(names),
        num_tested=len(labelled.classes),
        accuracy=found["accuracy"],
        macro_f1=found["macro_f1"],
    )


def few_shot(task: Matching, labelled: Labelled, *, shots: int, head: Head, draws: int, seed: int) -> ShotScores:
    """What a head on a few examples of each class reaches on all others, over several draws of the examples.

    Args:
        task: of the run.
        labelled: values with their classes.
        shots: examples of each class; a class that has no more than that is left out.
        head: "mean": the nearest class mean by the task's score; "logistic": logistic regression on the places.
        draws: how often examples are drawn.
        seed: of the draws.

    Raises:
        RunError: fewer than two classes have more values than examples.
    """
    counts = torch.bincount(labelled.classes, minlength=len(labelled.names)).tolist()
    left_out = tuple(name for name, count in zip(labelled.names, counts, strict=True) if count <= shots)
    labelled = _without(labelled, left_out)
    if len(labelled.names) < 2:
        raise RunError(
            f"shots: {shots} examples of each class; only {len(labelled.names)} classes have more values than that; "
            "allowed: fewer examples, or a folder with more values"
        )
    generator, found = np.random.default_rng(seed), list[dict[str, float]]()
    for _ in range(draws):
        order = torch.from_numpy(generator.permutation(len(labelled.classes)))
        place_in_class = torch.zeros(len(order), dtype=torch.int64)
        for number in range(len(labelled.names)):
            own = order[labelled.classes[order] == number]
            place_in_class[own] = torch.arange(len(own))
        is_example = place_in_class < shots
        fitted = fit_head(task, labelled.places[is_example], labelled.classes[is_example], head=head)
        outputs = fitted(labelled.places[~is_example])
        found.append(classification_metrics(outputs, labelled.classes[~is_example], calibration=False))
    accuracy, macro_f1 = (np.array([each[name] for each in found]) for name in ("accuracy", "macro_f1"))
    return ShotScores(
        way=f"{shots} examples, {head}",
        num_classes=len(labelled.names),
        num_tested=len(labelled.classes) - shots * len(labelled.names),
        accuracy=float(accuracy.mean()),
        macro_f1=float(macro_f1.mean()),
        accuracy_spread=float(accuracy.std(ddof=1)) if draws > 1 else None,
        macro_f1_spread=float(macro_f1.std(ddof=1)) if draws > 1 else None,
        left_out=left_out,
    )


class FittedHead:
    """Scores of any places by class, [N, K]."""

    def __init__(
        self, task: Matching, means: Float[Tensor, "K D"], weights: Tensor | None, bias: Tensor | None
    ) -> None:
        self._task, self._means, self._weights, self._bias = task, means, weights, bias

    def __call__(self, places: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Higher is better."""
        if self._weights is None or self._bias is None:
            return self._task.scores(places, self._means)
        return places @ self._weights.T + self._bias


def fit_head(
    task: Matching, places: Float[Tensor, "N D"], classes: Int[Tensor, "N"], *, head: Head, penalty: float = PENALTY
) -> FittedHead:
    """A head from examples, each class of which has at least one."""
    num = int(classes.max()) + 1
    means = torch.stack([places[classes == number].mean(dim=0) for number in range(num)])
    if head == "mean":
        return FittedHead(task, task.placed(means), None, None)
    weights, bias = torch.zeros_like(means, requires_grad=True), means.new_zeros(num, requires_grad=True)
    scale = math.sqrt(places.shape[1]) / max(1e-12, float(places.norm(dim=1).mean()))
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        outputs = scale * places @ weights.T + bias
        loss = torch.nn.functional.cross_entropy(outputs, classes, reduction="sum")
        loss = loss + penalty / 2 * weights.square().sum()
        weights.grad, bias.grad = torch.autograd.grad(loss, [weights, bias])
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return FittedHead(task, means, scale * weights.detach(), bias.detach())


def _without(labelled: Labelled, names: Sequence[str]) -> Labelled:
    kept = tuple(name for name in labelled.names if name not in names)
    numbers = torch.tensor([kept.index(name) if name in kept else -1 for name in labelled.names])
    classes = numbers[labelled.classes]
    return Labelled(places=labelled.places[classes >= 0], classes=classes[classes >= 0], names=kept)


@torch.no_grad()
def _outputs(space: JointSpace, modality: str, values: Tensor) -> Float[Tensor, "N D"]:
    """Where values lie that are finished already, as load_samples gives them."""
    model, task = space.trained.model, space.task
    side, column, pieces = task.pair.index(modality), model.modalities.index(modality), []
    for piece in torch.split(values, 256):
        present = torch.zeros(len(piece), len(model.modalities), dtype=torch.bool)
        present[:, column] = True
        pieces.append(task.places_of(model({modality: piece}, present))[side])
    return torch.cat(pieces)
