"""Linear baselines of a matching scenario: what frozen features of all sites together give, without privacy.

in        a scenario whose two encoders are frozen networks, its data set
out       recall@10 of either direction on the test part, printed: python -m simulations.matching_baseline SCENARIO
relies on pooling what no site would give away; every choice is made on the validation part

- ridge: the second modality's features predicted from the first's, by least squares with a penalty.
- ridge, public: the same from the rows of public/ alone, which whoever starts a run has without asking a site.
- in-batch: linear maps of both into a space of the run's width, trained with InfoNCE among the rows of a batch, which
  holds each item once (Radford et al. 2021, arXiv:2103.00020, figure 3).
- untrained: the in-batch maps before the first step.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from server.heldout import HeldOut, split_by_subject
from server.negatives import FOLDER as PUBLIC
from server.retrieval import Values, distinct_rows, item_numbers, search
from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.errors import ModelError
from shared.model.matching import Matching, matching_of
from simulations.scenario import find_scenario, motet_home, read_scenario

PENALTIES = (1e2, 1e3, 1e4, 1e5)
STEPS, STEPS_BETWEEN_LOOKS = 240, 20
RATES = (0.03, 0.1, 0.3)
MOMENTUM = 0.9
Maps = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Features:
    """Rows of one part: both modalities' vectors, each of mean 0 and deviation 1, and what tells values apart."""

    first: Float[Tensor, "N F"]
    second: Float[Tensor, "N G"]
    samples: Samples


@dataclass(frozen=True)
class Baseline:
    """Recall@10 of one baseline on one part."""

    name: str
    forth: float
    back: float

    @property
    def mean(self) -> float:
        """Of both directions."""
        return (self.forth + self.back) / 2


def baselines(run: RunConfig, *, data_set: Path, cache: Path) -> tuple[Baseline, ...]:
    """The test part's recall of every baseline; the choices of each were made on the validation part.

    That of public rows is left out where a data set has none.

    Raises:
        ModelError: an encoder does not begin with a fixed vector.
    """
    sites = sorted(path for path in (data_set / "sites").iterdir() if path.is_dir())
    pooled = [features_of(load_samples(site, run=run, cache=cache), run=run) for site in sites]
    held_out = _held_out(run, data_set=data_set, cache=cache)
    validation, test = (features_of(part, run=run) for part in (held_out.validation, held_out.test))
    first, second = (torch.cat([getattr(each, name) for each in pooled]) for name in ("first", "second"))
    items = [f"{name}" for each in pooled for name in _items(each.samples, run=run)]
    public, found = _public(run, data_set=data_set, cache=cache), list[Baseline]()
    from_public = [ridge_maps(public.first, public.second, penalty=each) for each in PENALTIES] if public else []
    for name, candidates in (
        ("untrained", [random_maps(first, second, width=matching_of(run).num_outputs, seed=run.seed)]),
        ("ridge", [ridge_maps(first, second, penalty=penalty) for penalty in PENALTIES]),
        ("ridge, public", from_public),
        ("in-batch", [maps for rate in RATES for maps in in_batch_maps(first, second, items, run=run, rate=rate)]),
    ):
        if not candidates:
            continue
        best = max(candidates, key=lambda maps: recall(maps, validation, run=run).mean)
        measured = recall(best, test, run=run)
        found.append(Baseline(name=name, forth=measured.forth, back=measured.back))
    return tuple(found)


def features_of(samples: Samples, *, run: RunConfig) -> Features:
    """Both modalities' vectors.

    Raises:
        ModelError: a modality's values are no vectors.
    """
    pair = matching_of(run).pair
    for name in pair:
        values = samples.inputs[name]
        if values.ndim != 2 or not values.is_floating_point():
            raise ModelError(
                f"{name}: its encoder {run.model.encoders[name].name!r} trains on {list(values.shape[1:])} by itself; "
                "allowed for a linear baseline: a frozen network or features"
            )
    first, second = (functional.layer_norm(samples.inputs[name], samples.inputs[name].shape[1:]) for name in pair)
    return Features(first=first, second=second, samples=samples)


def ridge_maps(first: Float[Tensor, "N F"], second: Float[Tensor, "N G"], *, penalty: float) -> Maps:
    """The first modality's vectors into the space of the second's, by penalised least squares around the means."""
    means = first.mean(dim=0), second.mean(dim=0)
    left, right = (first - means[0]).double(), (second - means[1]).double()
    gram = left.T @ left + penalty * torch.eye(left.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, left.T @ right).float()
    return lambda a, b: ((a - means[0]) @ weights, b - means[1])


def random_maps(first: Float[Tensor, "N F"], second: Float[Tensor, "N G"], *, width: int, seed: int) -> Maps:
    """Linear maps as they are drawn, around the means."""
    return _linear_maps(_drawn(first, second, width=width, seed=seed), first, second)


def in_batch_maps(
    first: Float[Tensor, "N F"], second: Float[Tensor, "N G"], items: Sequence[str], *, run: RunConfig, rate: float
) -> list[Maps]:
    """Linear maps trained by plain gradient descent with momentum, as they are after every few steps."""
    task = matching_of(run)
    weights = [each.requires_grad_() for each in _drawn(first, second, width=task.num_outputs, seed=run.seed)]
    velocity = [torch.zeros_like(each) for each in weights]
    left, right = first - first.mean(dim=0), second - second.mean(dim=0)
    rows_of: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows_of.setdefault(item, []).append(row)
    draws, kept = torch.Generator().manual_seed(run.seed), list[Maps]()
    for step in range(1, STEPS + 1):
        # one row of each item: two rows of one would be taken for a mismatch
        rows = [own[int(torch.randint(len(own), (), generator=draws))] for own in rows_of.values()]
        a, b = (
            functional.normalize(side[rows] @ each.T, dim=1) for side, each in zip((left, right), weights, strict=True)
        )
        table, right_ones = a @ b.T / task.temperature, torch.arange(len(rows))
        loss = (functional.cross_entropy(table, right_ones) + functional.cross_entropy(table.T, right_ones)) / 2
        with torch.no_grad():
            for each, speed, gradient in zip(weights, velocity, torch.autograd.grad(loss, weights), strict=True):
                each.sub_(rate * speed.mul_(MOMENTUM).add_(gradient))
        if step % STEPS_BETWEEN_LOOKS == 0:
            kept.append(_linear_maps([each.detach().clone() for each in weights], first, second))
    return kept


def recall(maps: Maps, part: Features, *, run: RunConfig) -> Baseline:
    """Recall@10 in both directions, by the same search as a run's."""
    task, placed = matching_of(run), maps(part.first, part.second)
    present = part.samples.present[:, [run.modalities.index(name) for name in task.pair]]
    numbers = item_numbers(part.samples, run=run)
    rows = distinct_rows(part.samples, present, run=run)
    angles = Matching(
        pair=task.pair, num_outputs=1, kind=task.kind, score="cosine", temperature=1.0, num_negatives=task.num_negatives
    )
    first, second = (
        Values(
            places=functional.normalize(placed[side][torch.from_numpy(rows[side])], dim=1), items=numbers[rows[side]]
        )
        for side in (0, 1)
    )
    forth, back = search(first, second, task=angles).metrics(), search(second, first, task=angles).metrics()
    return Baseline(name="", forth=forth["recall_at_10"], back=back["recall_at_10"])


def _drawn(first: Tensor, second: Tensor, *, width: int, seed: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(width, each.shape[1], generator=draws) / each.shape[1] ** 0.5 for each in (first, second)]


def _linear_maps(weights: Sequence[Tensor], first: Tensor, second: Tensor) -> Maps:
    means = first.mean(dim=0), second.mean(dim=0)
    return lambda a, b: ((a - means[0]) @ weights[0].T, (b - means[1]) @ weights[1].T)


def _items(samples: Samples, *, run: RunConfig) -> tuple[str, ...]:
    column = run.data.item
    if column is None:
        return tuple(str(row) for row in range(len(samples)))
    return samples.subjects if column == "subject_id" else samples.groups[column]


def _public(run: RunConfig, *, data_set: Path, cache: Path) -> Features | None:
    """The public rows that have both of the pair; None where there are none."""
    folder = data_set / PUBLIC
    if not folder.is_dir():
        return None
    samples = load_samples(folder, run=run, cache=cache)
    places = [run.modalities.index(name) for name in matching_of(run).pair]
    whole = samples.present[:, places].all(dim=1).nonzero()[:, 0]
    return features_of(samples.subset(whole), run=run) if len(whole) else None


def _held_out(run: RunConfig, *, data_set: Path, cache: Path) -> HeldOut:
    folder = data_set / "held-out"
    if (folder / "test").is_dir():
        validation, test = (load_samples(folder / name, run=run, cache=cache) for name in ("validation", "test"))
        return HeldOut(validation=validation, test=test)
    whole = load_samples(folder, run=run, cache=cache)
    return split_by_subject(whole, share=run.evaluation.validation_share, seed=run.seed)


def main(words: Sequence[str] | None = None) -> None:
    """Print every baseline's recall."""
    parser = argparse.ArgumentParser(prog="python -m simulations.matching_baseline", description=__doc__)
    parser.add_argument("scenario", help="a shipped scenario's name, or a path")
    parser.add_argument("--seed", type=int, default=0, help="of the maps")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(words)
    home = motet_home()
    changes = [*options.changes, f"run.seed={options.seed}"]
    scenario, data_set = read_scenario(find_scenario(options.scenario), changes=changes, home=home)
    pair = matching_of(scenario.run).pair
    print(
        f"recall@10 on the test part: {pair[0]} to {pair[1]}, {pair[1]} to {pair[0]}; NOT private, all sites pooled "
        "or, where it says so, public rows alone"
    )
    for each in baselines(scenario.run, data_set=data_set, cache=home / "features"):
        print(f"{each.name:13} {each.forth:.3f} {each.back:.3f}")


if __name__ == "__main__":
    main()
