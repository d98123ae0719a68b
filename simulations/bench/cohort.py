"""Many sites' private rounds: Motet's cohort, Motet and Opacus site after site, and plain torch without privacy.

in        a model of models.py: python -m simulations.bench.cohort cnn --batch 8
out       a line of times for each contender, of one round of all sites: STEPS steps at each, from the same weights
relies on equal work: Motet draws Poisson batches of the expected size, the others take batches of just that size
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from client.plan import PrivacyPlan
from client.private_training import train_round
from client.sample_store import SampleStore
from shared.batch import Samples
from shared.config import TrainingSettings
from shared.model.multimodal import MultimodalModel
from shared.privacy.noise import secret_source
from simulations.bench.alternate import Job, alternate, tell_all
from simulations.bench.models import RECIPES, model_of, random_samples
from simulations.bench.step import NOISE_MULTIPLIER, plain_step
from simulations.bench.step_opacus import CLIP_NORM, LEARNING_RATE, Step, hooks
from simulations.engine.held_memory import keep_freed_memory

SITES, ROWS, STEPS = 32, 64, 2
TORCH, OPACUS, ONE_BY_ONE = "torch loop, no privacy", "Opacus hooks loop", "Motet one by one"
COHORT, ONE_THREAD = "Motet cohort", "Motet cohort, one thread"
CONTENDERS = (TORCH, OPACUS, ONE_BY_ONE, ONE_THREAD, COHORT)


def preparing(model: str, *, batch: int, folder: Path) -> dict[str, Callable[[], Job]]:
    """Contender -> what makes its job of one round at all sites; the cohort reads rows as a run does, from a store."""
    sites = [random_samples(model, rows=ROWS, seed=site) for site in range(SITES)]
    private = partial(hooks, noise=NOISE_MULTIPLIER)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # loops of operations this small are slower on two threads than on one
    return {
        TORCH: lambda: _on(1, _loop_job(plain_step, model, sites, batch=batch)),
        OPACUS: lambda: _on(1, _loop_job(private, model, sites, batch=batch)),
        ONE_BY_ONE: lambda: _on(1, _one_by_one_job(model, sites, batch=batch)),
        ONE_THREAD: lambda: _on(1, _cohort_job(model, sites, batch=batch, folder=folder)),
        COHORT: lambda: _on(cores, _cohort_job(model, sites, batch=batch, folder=folder)),
    }


def plan_of(batch: int) -> PrivacyPlan:
    """How each site protects its records."""
    return PrivacyPlan(
        unit="record",
        epsilon=1.0,
        delta=1e-5,
        clip_norm=CLIP_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        sample_rate=batch / ROWS,
        expected_batch_size=float(batch),
        steps_per_round=STEPS,
        planned_rounds=1,
        accountant="rdp",
    )


def training_of(batch: int) -> TrainingSettings:
    """What each site does in the round."""
    return TrainingSettings(optimizer="sgd", learning_rate=LEARNING_RATE, batch_size=batch, local_steps=STEPS)


class _Steps:
    """A model, its optimizer and its wrapper, made once and used by all sites in turn: the kindest way to a loop."""

    def __init__(self, make: Callable[..., Step], model: MultimodalModel, batch: Samples) -> None:
        self.model = model
        # the step reads its batch from this object, whose tensors are exchanged before each
        self.batch = Samples(
            inputs=dict(batch.inputs),
            present=batch.present.clone(),
            targets=batch.targets.clone(),
            subjects=batch.subjects,
            groups={},
        )
        self.step = make(model, self.batch)

    def at(self, site: Samples, *, start: Sequence[Tensor]) -> list[Tensor]:
        """The change that a site's steps make."""
        parameters: list[nn.Parameter] = list(self.model.parameters())
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        order, size = torch.randperm(len(site)), len(self.batch)
        for number in range(STEPS):
            taken = site.take(order[number * size % ROWS :][:size])
            self.batch.inputs.update(taken.inputs)
            self.batch.present.copy_(taken.present)
            self.batch.targets.copy_(taken.targets)
            self.step()
        return [parameter.detach() - value for parameter, value in zip(parameters, start, strict=True)]


def _loop_job(make: Callable[..., Step], model: str, sites: Sequence[Samples], *, batch: int) -> Job:
    steps = _Steps(make, model_of(model), sites[0].subset(torch.arange(batch)))
    start = [parameter.detach().clone() for parameter in steps.model.parameters()]
    return lambda: [steps.at(site, start=start) for site in sites]


def _one_by_one_job(model: str, sites: Sequence[Samples], *, batch: int) -> Job:
    made, training, plan, source = model_of(model), training_of(batch), plan_of(batch), secret_source()
    names = tuple(name for name, _ in made.named_parameters())
    return lambda: [
        train_round(
            made,
            site,
            names=names,
            training=training,
            plan=plan,
            nominal_size=ROWS,
            round_number=1,
            rounds=1,
            modality_dropout=0.0,
            noise=source,
            sampling=source,
        )
        for site in sites
    ]


def _cohort_job(model: str, sites: Sequence[Samples], *, batch: int, folder: Path) -> Job:
    from client.cohort_training import Member, train_cohort, why_apart

    made, training, plan = model_of(model), training_of(batch), plan_of(batch)
    names = tuple(name for name, _ in made.named_parameters())
    apart = why_apart(made, names=names, training=training, plan=plan)
    if apart is not None:
        raise ValueError(apart)
    store = SampleStore(Path(tempfile.mkdtemp(dir=folder)))
    members = [
        Member(store.put(number, site), plan, nominal_size=ROWS, noise=secret_source(), sampling=secret_source())
        for number, site in enumerate(sites)
    ]
    return lambda: train_cohort(
        made, members, names=names, training=training, round_number=1, rounds=1, modality_dropout=0.0
    )


def _on(threads: int, run: Job) -> Job:
    def job() -> None:
        torch.set_num_threads(threads)
        run()

    return job


def main() -> None:
    """Take turns and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--budget-s", type=float, default=10.0)
    options = parser.parse_args()
    # as a run does, which lasts long enough to earn it
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        made = preparing(options.model, batch=options.batch, folder=Path(folder))
        tell_all(alternate(made, budget_s=options.budget_s, least=3))


if __name__ == "__main__":
    main()
