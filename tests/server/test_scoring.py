"""Scoring: several tasks are each measured where they have answers, by the same people, and their mean chooses."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from server.evaluation import evaluate, score
from server.headline import headline_of, selection_score
from server.records import Scores
from server.scoring import Resampling, scores_of
from shared.batch import Samples
from shared.config import RunConfig
from tests.shared.test_tasks import MULTI, RATING, SEVERAL, SINGLE, run_of

NAN = math.nan


def samples_of(targets: Tensor, *, subjects: tuple[str, ...] | None = None) -> Samples:
    rows = len(targets)
    return Samples(
        inputs={name: torch.randn(rows, 5, generator=torch.Generator().manual_seed(1)) for name in ("left", "right")},
        present=torch.ones(rows, 2, dtype=torch.bool),
        targets=targets,
        subjects=subjects or tuple(f"p{row % 11}" for row in range(rows)),
        groups={},
    )


def answers(rows: int, *, seed: int = 0) -> tuple[Tensor, Samples]:
    """Outputs and answers of `SEVERAL`, a third of each task's answers missing."""
    draw = torch.Generator().manual_seed(seed)
    feeling = torch.randint(0, 3, (rows,), generator=draw).float()
    valence = torch.rand(rows, generator=draw) * 6 - 3
    topics = (torch.rand(rows, 2, generator=draw) < 0.5).float()
    outputs = torch.cat(
        [
            torch.nn.functional.one_hot(feeling.long(), 3) + torch.randn(rows, 3, generator=draw),
            valence[:, None] + torch.randn(rows, 1, generator=draw),
            topics - 0.5 + torch.randn(rows, 2, generator=draw),
        ],
        dim=1,
    )
    for number, own in enumerate((feeling, valence, topics)):
        own[torch.arange(rows) % 3 == number] = NAN
    return outputs, samples_of(torch.cat([feeling[:, None], valence[:, None], topics], dim=1))


def scored(run: RunConfig, outputs: Tensor, samples: Samples, *, resamples: int = 0) -> Scores:
    return scores_of(outputs, samples, resampling=Resampling(run=run, resamples=resamples, seed=3))


def test_each_task_is_measured_on_the_rows_that_answer_it() -> None:
    outputs, samples = answers(90)
    found = scored(run_of(SEVERAL), outputs, samples)
    assert {name: scores.num_samples for name, scores in found.tasks.items()} == dict.fromkeys(
        ("feeling", "valence", "topics"), 60
    )
    feeling, valence, topics = (found.tasks[name].metrics for name in found.tasks)
    rows = ~samples.targets[:, 0].isnan()
    truth, taken = samples.targets[rows, 0].numpy(), outputs[rows, :3].argmax(dim=1).numpy()
    assert feeling["macro_f1"].value == pytest.approx(sk.f1_score(truth, taken, average="macro"))
    rows = ~samples.targets[:, 1].isnan()
    mae = sk.mean_absolute_error(samples.targets[rows, 1].numpy(), outputs[rows, 3].numpy())
    assert valence["mae"].value == pytest.approx(mae)
    assert valence["closeness"].value == pytest.approx(1 - mae / 6)
    rows = ~samples.targets[:, 2].isnan()
    many = samples.targets[rows, 2:].numpy(), (outputs[rows, 4:] >= 0).numpy()
    assert topics["micro_f1"].value == pytest.approx(sk.f1_score(*many, average="micro"))
    mean = (feeling["macro_f1"].value + valence["closeness"].value + topics["macro_f1"].value) / 3
    assert found.metrics["mean_score"].value == pytest.approx(mean)
    assert set(found.metrics) == {"mean_score"}
    assert found.named["valence/mae"] == valence["mae"]
    assert [scores.label for scores in found.tasks["topics"].classes] == ["war", "love"]
    assert found.tasks["topics"].confusion == ()
    assert len(found.tasks["feeling"].confusion) == 3


def test_the_mean_is_resampled_with_the_same_people_in_every_task() -> None:
    """Its interval is that of means over tasks of one resample each, computed here from the drawn rows."""
    from server.bootstrap import resample_counts

    outputs, samples = answers(60)
    found = scored(run_of(SEVERAL), outputs, samples, resamples=40)
    means = []
    for counts in resample_counts(samples.subjects, resamples=40, seed=3):
        for row in counts:
            rows = torch.from_numpy(np.repeat(np.arange(60), row))
            again = scored(run_of(SEVERAL), outputs[rows], samples.subset(rows))
            means.append(again.metrics["mean_score"].value)
    mean = found.metrics["mean_score"]
    assert (mean.low, mean.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=1e-6)
    for scores in found.tasks.values():
        for name, estimate in scores.metrics.items():
            assert estimate.low is not None, name
            assert estimate.low <= estimate.value <= (estimate.high or 0.0)


def test_a_task_that_nobody_answered_is_left_out_of_the_mean() -> None:
    outputs, samples = answers(30)
    samples.targets[:, 1] = NAN
    found = scored(run_of(SEVERAL), outputs, samples, resamples=10)
    assert set(found.tasks) == {"feeling", "topics"}
    both = [found.tasks[name].metrics["macro_f1"].value for name in found.tasks]
    assert found.metrics["mean_score"].value == pytest.approx(sum(both) / 2)


def test_a_task_that_diverged_leaves_no_mean_by_which_it_could_be_chosen() -> None:
    outputs, samples = answers(30)
    outputs[5, 3] = math.inf
    found = scored(run_of(SEVERAL), outputs, samples)
    assert found.metrics == {}
    assert found.tasks["valence"].metrics == {}
    assert selection_score(found, data=run_of(SEVERAL).data) is None


def test_closeness_is_never_below_zero() -> None:
    outputs, samples = answers(30)
    outputs[:, 3] = 100.0
    assert scored(run_of(SEVERAL), outputs, samples).tasks["valence"].metrics["closeness"].value == 0


def test_a_rating_alone_is_chosen_by_its_error_and_everything_else_by_its_score() -> None:
    targets = torch.tensor([1.0, -1.0, 2.0])
    near, far = torch.tensor([[1.0], [-1.0], [1.0]]), torch.tensor([[0.0], [0.0], [0.0]])
    run = run_of(RATING)
    better, worse = (selection_score(scored(run, each, samples_of(targets)), data=run.data) for each in (near, far))
    assert better == pytest.approx(-1 / 3)
    assert better is not None
    assert worse is not None
    assert better > worse
    assert "closeness" not in scored(run, near, samples_of(targets)).metrics
    mains = [headline_of(run_of(task).data).main for task in (SINGLE, MULTI, RATING, SEVERAL)]
    assert mains == ["macro_f1", "macro_f1", "mae", "mean_score"]


@pytest.mark.parametrize("task", [MULTI, SEVERAL], ids=["multi-label", "several"])
def test_a_model_is_scored_in_rounds_and_at_the_end_alike(task: dict[str, object]) -> None:
    from shared.model.multimodal import build_model

    run = run_of(task)
    targets = answers(40)[1].targets
    samples = samples_of(targets[:, 2:].nan_to_num(0.0) if task is MULTI else targets)
    model = build_model(run)
    quick = score(model, samples, run=run)
    full = evaluate(model, samples, run=run, part="test", bootstrap_samples=20, subsets=True, seed=1)
    assert set(full.by_modalities) == {"left", "right", "left+right"}
    for name, estimate in quick.named.items():
        assert estimate.value == full.overall.named[name].value
    assert full.overall.named[headline_of(run.data).main].low is not None
    assert not quick.classes
    assert all(not scores.classes for scores in quick.tasks.values())


def test_a_resample_without_an_answer_has_no_score_and_no_warning() -> None:
    """One of three people answered: about a third of the resamples have none of theirs."""
    targets = torch.full((6, 4), NAN)
    targets[:, 0] = torch.tensor([0.0, 1, 2, 0, 1, 2])
    targets[:2, 1] = 1.0
    samples = samples_of(targets, subjects=("a", "b", "c", "d", "e", "f"))
    found = scored(run_of(SEVERAL), torch.randn(6, 6), samples, resamples=50)
    assert found.tasks["valence"].metrics["mae"].low is not None
    one = samples_of(targets, subjects=("a", "a", "c", "d", "e", "f"))
    assert scored(run_of(SEVERAL), torch.randn(6, 6), one, resamples=50).tasks["valence"].metrics["mae"].low is None
