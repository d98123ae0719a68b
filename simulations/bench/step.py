"""One site's private step: Motet's engines, Opacus' and plain torch without privacy, in turns in one process.

in        a model of models.py and a batch size: python -m simulations.bench.step cnn --batch 64
out       a line of times for each contender, of one step: gradients, clipping, noise, division, SGD
relies on every private contender giving the update of one backward pass a sample, where there is no noise; one that
          does not is told with that reason and gets no time
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from client.gradient.choice import EngineName
from client.gradient.reference import ReferenceEngine
from client.plan import PrivacyPlan
from client.private_training import train_round
from shared.batch import Batch, Samples
from shared.config import TrainingSettings
from shared.errors import PrivacyError
from shared.model.multimodal import MultimodalModel
from shared.privacy.mechanism import Clip
from shared.privacy.noise import secret_source
from simulations.bench.alternate import Job, alternate, tell_all
from simulations.bench.models import RECIPES, RECURRENT, model_of, random_samples
from simulations.bench.step_opacus import (
    CLIP_NORM,
    LEARNING_RATE,
    DpLstm,
    Step,
    TorchLstm,
    ghost,
    hooks,
    same_randomness,
    with_recurrence,
)
from simulations.engine.held_memory import keep_freed_memory

STEPS, CHECKED_ROWS, NOISE_MULTIPLIER = 4, 8, 1.0
TORCH, TORCH_LSTM = "torch, no privacy", "torch nn.LSTM, no privacy"
OPACUS: Mapping[str, Callable[..., Step]] = {
    "Opacus hooks": hooks,
    "Opacus functorch": partial(hooks, functorch=True),
    "Opacus ghost": ghost,
}
MOTET = tuple(f"Motet {name}" for name in get_args(EngineName) if name != "reference")


def contenders(model: str) -> tuple[str, ...]:
    """Names of all that step on a model."""
    return (TORCH, *((TORCH_LSTM,) if model in RECURRENT else ()), *OPACUS, *MOTET)


def preparing(model: str, *, batch: int) -> dict[str, Callable[[], Job]]:
    """Contender -> what makes its job of STEPS steps on a batch of so many rows."""
    samples = random_samples(model, rows=batch)
    made: dict[str, Callable[[], Job]] = {TORCH: partial(_plain_job, model, samples)}
    if model in RECURRENT:
        made[TORCH_LSTM] = partial(_plain_job, model, samples, recurrence=TorchLstm)
    made |= {name: partial(_opacus_job, name, model, samples) for name in OPACUS}
    made |= {name: partial(_motet_job, name, model, samples) for name in MOTET}
    return {name: made[name] for name in contenders(model)}


def motet_update(
    engine: str, model: MultimodalModel, samples: Samples, *, noise: float, steps: int = STEPS
) -> dict[str, Tensor]:
    """What a round of so many private steps over all rows changes, by the code that sites run."""
    training = TrainingSettings.model_validate(
        {
            "optimizer": "sgd",
            "learning_rate": LEARNING_RATE,
            "sample_rate": 1.0,
            "local_steps": steps,
            "gradient_engine": engine.removeprefix("Motet "),
        }
    )
    plan = PrivacyPlan(
        unit="record",
        epsilon=1.0,
        delta=1e-5,
        clip_norm=CLIP_NORM,
        noise_multiplier=noise,
        sample_rate=1.0,
        expected_batch_size=float(len(samples)),
        steps_per_round=steps,
        planned_rounds=1,
        accountant="rdp",
    )
    trained = train_round(
        model,
        samples,
        names=tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad),
        training=training,
        plan=plan,
        nominal_size=len(samples),
        round_number=1,
        rounds=1,
        modality_dropout=0.0,
        noise=secret_source(),
        sampling=secret_source(),
    )
    return trained.update


def plain_step(model: nn.Module, batch: Batch) -> Step:
    """Ordinary training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(batch.inputs, batch.present), batch.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def must_agree(update: Mapping[str, Tensor], model: MultimodalModel, samples: Samples) -> None:
    """One step without noise must be what a backward pass a sample gives, to 1 in 1,000 of its length.

    Raises:
        PrivacyError: it is something else.
    """
    names = tuple(name for name, _ in model.named_parameters())
    summed = ReferenceEngine().clipped_sum(model, samples, names=names, clip=Clip(CLIP_NORM)).sums
    wanted = torch.cat([-LEARNING_RATE / len(samples) * summed[name].reshape(-1) for name in names])
    came = torch.cat([update[name].reshape(-1) for name in names])
    apart = float((came - wanted).norm() / wanted.norm())
    if not apart < 1e-3:
        raise PrivacyError(f"wrong update: {apart:.2g} of its length away from one backward pass a sample")


def _plain_job(model: str, samples: Samples, *, recurrence: type[TorchLstm] | None = None) -> Job:
    with same_randomness():
        made = model_of(model) if recurrence is None else with_recurrence(model_of(model), recurrence)
    return _times(plain_step(made, samples))


def _opacus_job(name: str, model: str, samples: Samples) -> Job:
    def made() -> MultimodalModel:
        with same_randomness():
            return with_recurrence(model_of(model), DpLstm)

    few, checked, reference = _few(samples), made(), made()
    OPACUS[name](checked, few, noise=0.0)()
    after = dict(checked.named_parameters())
    update = {key: after[key].detach() - value.detach() for key, value in reference.named_parameters()}
    must_agree(update, reference, few)
    return _times(OPACUS[name](made(), samples, noise=NOISE_MULTIPLIER))


def _motet_job(name: str, model: str, samples: Samples) -> Job:
    made, few = model_of(model), _few(samples)
    must_agree(motet_update(name, copy.deepcopy(made), few, noise=0.0, steps=1), made, few)
    return lambda: motet_update(name, made, samples, noise=NOISE_MULTIPLIER)


def _few(samples: Samples) -> Samples:
    return samples.subset(torch.arange(CHECKED_ROWS))


def _times(step: Step) -> Job:
    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


def main() -> None:
    """Take turns and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--budget-s", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # for all contenders: else most of what the largest steps cost is asking the system for memory
    keep_freed_memory()
    made = preparing(options.model, batch=options.batch)
    tell_all(alternate(made, per_call=STEPS, budget_s=options.budget_s))


if __name__ == "__main__":
    main()
