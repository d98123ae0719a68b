"""Rehearsal: what a run would train with, set up on made-up rows: its model, samples, engine, and a throw-away site.

in        a RunConfig
out       a Rehearsal, which each check looks at from its side
relies on the parts being those of a real run: build_model, load_samples, choose_engine, train_round, the agent
"""

import contextlib
import random
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tomli_w
import torch
from jaxtyping import Float
from torch import Tensor, nn

from client import private_training
from client.gradient import GradientEngine, choose_engine
from client.plan import PrivacyPlan
from client.preflight.made_up import write_folder
from client.private_training import TrainedRound
from shared.batch import Samples
from shared.config import RunConfig, TrainingSettings
from shared.dataset import load_samples
from shared.errors import PermissionRefused, PrivacyError
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, TrainReply
from shared.model.encoders.checkpoint import named_folders
from shared.model.exchange import exchange_of
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import tensor_of, trainable_names
from shared.privacy.noise import reproducible_source

ROUNDS = 3
SITES = ("first", "second")
NOMINAL_UNITS = 100
UNITS_MOVE = 30.0
"""how far the clip norm moves the weights: beside such steps the rounding of float32 weights does not show"""
SMALL_SITE_CLIP_NORM = 1e-3
"""unit site: so small that every rehearsed update has to be clipped"""
MOST_ROWS_OF_A_UNIT = 4
"""records of a subject that are rehearsed with; a run may average more, by the same code"""
UNDER_WAY: ContextVar[bool] = ContextVar("rehearsal_under_way", default=False)
"""whether the agent is being rehearsed, which then asks for no preflight of its own"""


@dataclass(frozen=True)
class Rehearsal:
    """One run, ready to be tried out; nothing in it is anybody's."""

    run: RunConfig
    """as asked, but with plain steps of known size, so that what a round adds can be read off its update"""
    model: nn.Module
    names: tuple[str, ...]
    samples: Samples
    engine: GradientEngine
    folder: Path

    @property
    def rows_per_unit(self) -> int:
        """Records of a unit that are averaged and clipped together."""
        return min(self.run.training.records_per_subject, MOST_ROWS_OF_A_UNIT)

    @property
    def num_weights(self) -> int:
        """Numbers in an update."""
        parameters = dict(self.model.named_parameters())
        return sum(parameters[name].numel() for name in self.names)

    @property
    def step_size(self) -> float:
        """What a sum is multiplied with to become a change of the weights: learning rate over denominator."""
        return self.run.training.learning_rate / NOMINAL_UNITS

    def plan(self, *, sample_rate: float = 1.0, steps: int = 1, noise_multiplier: float = 1.3) -> PrivacyPlan:
        """A plan as a site would make it, with numbers that suit a check."""
        privacy = self.run.local_privacy
        if privacy is None:
            raise PrivacyError("the run asks no site for noise of its own; allowed: a unit of record or subject")
        return PrivacyPlan(
            unit=privacy.unit,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            clip_norm=privacy.clip_norm,
            noise_multiplier=noise_multiplier,
            sample_rate=sample_rate,
            expected_batch_size=float(NOMINAL_UNITS),
            steps_per_round=steps,
            planned_rounds=1,
            accountant=privacy.accountant,
            clipping=privacy.clipping,
            records_per_unit=self.rows_per_unit,
        )

    def train(self, samples: Samples, *, plan: PrivacyPlan, noise_seed: int) -> TrainedRound:
        """A real round of plain steps; draws of batches are always the same, noise follows its seed."""
        # by its module, so that what is rehearsed is what the agent calls
        return private_training.train_round(
            self.model,
            samples,
            names=self.names,
            training=self.run.training,
            plan=plan,
            nominal_size=NOMINAL_UNITS,
            round_number=1,
            rounds=1,
            modality_dropout=0.0,
            noise=reproducible_source(noise_seed, purpose="preflight/noise"),
            sampling=reproducible_source(0, purpose="preflight/sampling"),
        )

    @cached_property
    def replies(self) -> tuple[TrainReply, ...]:
        """Replies of the throw-away sites through the real agent: all rounds of the first site, round 1 of the second.

        Every one has the same rows, the same weights and steps over all units, and every seed that a program can set
        is set anew before it: so replies may differ by their noise, and by nothing else.
        """
        asked = [(SITES[0], number) for number in range(1, ROUNDS + 1)] + [(SITES[1], 1)]
        return tuple(self._ask(site, round_number=number) for site, number in asked)

    def _ask(self, site: str, *, round_number: int) -> TrainReply:
        # the agent calls for a preflight, and a preflight for the agent
        from client import agent

        privacy, central = self.run.local_privacy, self.run.central_privacy
        header = RequestHeader(
            protocol_version=PROTOCOL_VERSION,
            run=self.run,
            run_id="preflight",
            round_number=round_number,
            planned_rounds=ROUNDS,
            clip_norm=privacy.clip_norm if privacy is not None and privacy.clipping == "adaptive" else None,
            site_clip_norm=SMALL_SITE_CLIP_NORM if central is not None else None,
        )
        sent = exchange_of(self.model, self.run.modalities).sent
        weights = {name: tensor_of(self.model, name).detach().clone() for name in sent}
        with _known_seeds():
            reply = agent.answer_train(header, lambda _: weights, site_file=self.folder / f"{site}.toml")
        if isinstance(reply, Refusal):
            raise PermissionRefused(f"the throw-away site refused round {round_number} with the code {reply.code}")
        return reply


@contextlib.contextmanager
def rehearse(run: RunConfig) -> Iterator[Rehearsal]:
    """A Rehearsal, whose folder is there while it lasts.

    Raises:
        MotetError: the run's model cannot be built, or its preprocessing fails on random values.
    """
    plain = _with_plain_steps(run)
    with tempfile.TemporaryDirectory(prefix="motet-preflight-") as name, _under_way():
        folder = Path(name)
        write_folder(folder / "data", run=plain)
        for site in SITES:
            _write_site(folder, run=plain, site=site)
        model = build_model(plain)
        names = trainable_names(model, plain.modalities)
        _move_off_zero(model, names)
        training = plain.training
        yield Rehearsal(
            run=plain,
            model=model.train(),
            names=names,
            samples=load_samples(folder / "data", run=plain, cache=folder / "cache"),
            # fewer units at once than a batch has, so that what is carried from piece to piece is looked at too
            engine=choose_engine(
                training.gradient_engine, model, microbatch_size=min(training.microbatch_size, 2), always=True
            ),
            folder=folder,
        )


def flat(update: dict[str, Tensor]) -> Float[Tensor, "P"]:
    """All numbers of an update as one vector, in float64."""
    return torch.cat([value.reshape(-1).double() for value in update.values()])


def copies(samples: Samples, *, times: tuple[int, ...]) -> Samples:
    """The first rows of some samples as units of their own, each so many times over under one subject's name."""
    rows = [row for row, count in enumerate(times) for _ in range(count)]
    return replace(samples.subset(torch.tensor(rows, dtype=torch.int64)), subjects=tuple(f"unit-{row}" for row in rows))


def _with_plain_steps(run: RunConfig) -> RunConfig:
    local = run.local_privacy
    training = TrainingSettings(
        optimizer="sgd",
        learning_rate=min(1e6, UNITS_MOVE * NOMINAL_UNITS / (local.clip_norm if local is not None else 1.0)),
        sample_rate=1.0,
        local_steps=1,
        gradient_engine=run.training.gradient_engine,
        microbatch_size=run.training.microbatch_size,
        records_per_subject=min(run.training.records_per_subject, MOST_ROWS_OF_A_UNIT),
    )
    federation = run.federation.model_copy(update={"rounds": ROUNDS})
    # what training draws for a sample would make replies differ by more than their noise
    encoders = {name: encoder.model_copy(update={"augment": {}}) for name, encoder in run.model.encoders.items()}
    model = run.model.model_copy(update={"modality_dropout": 0.0, "dropout": 0.0, "encoders": encoders, "personal": ()})
    changes = {"training": training, "federation": federation, "model": model, "statistics": None}
    return run.model_copy(update=changes)


def _write_site(folder: Path, *, run: RunConfig, site: str) -> None:
    local = run.local_privacy
    values: dict[str, object] = {
        "name": site,
        "data": str(folder / "data"),
        "data_set": site,
        "nominal_size": NOMINAL_UNITS,
        "nominal_subjects": NOMINAL_UNITS,
        "modalities": list(run.modalities),
        "ledger": str(folder / "ledger.sqlite"),
        "cache": str(folder / "cache"),
        "max_parameters": 10**12,
        "checkpoints": [str(Path(path).resolve()) for path in named_folders(run).values()],
        "privacy": {
            "epsilon": 2 * local.epsilon if local else 1.0,
            "delta": min(local.delta if local else 1.0, 1 / NOMINAL_UNITS),
            "unit": local.unit if local else "record",
            "allow_non_private": local is None,
            "trust_server": run.central_privacy is not None,
        },
    }
    (folder / f"{site}.toml").write_text(tomli_w.dumps(values), encoding="utf-8")


def _move_off_zero(model: MultimodalModel, names: tuple[str, ...]) -> None:
    """Shifts every weight a little: from zeros many a gradient is zero, and a fault in it would not show."""
    source = reproducible_source(0, purpose="preflight/weights")
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(name)
            weight.add_(source.normal(tuple(weight.shape), std=0.1).to(weight.dtype))


@contextlib.contextmanager
def _under_way() -> Iterator[None]:
    token = UNDER_WAY.set(True)
    try:
        yield
    finally:
        UNDER_WAY.reset(token)


@contextlib.contextmanager
def _known_seeds() -> Iterator[None]:
    """Every seed that a program can set is 0 at the start; afterwards all generators are where they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # the legacy one, which anybody can set
        random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
