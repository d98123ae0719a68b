"""Faulty code: how each planted fault is done; never used but through planted_faults.py.

in        nothing
out       one context manager a fault, which breaks the real modules while it lasts
relies on every module that could hold a broken name being imported before it is broken
"""

import contextlib
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from unittest import mock

import torch
from flwr.app import RecordDict
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

# a module that is imported only while a fault lasts would keep it for ever
import client.app
import client.cohort  # noqa: F401
import server.app  # noqa: F401
import simulations.preflight  # noqa: F401
from client import cohort_training, gradient, private_training, sampling
from client.cohort_training import Member
from client.gradient.choice import EngineName
from client.gradient.engine import only_trained, sample_losses
from client.gradient.functional import FunctionalEngine
from client.gradient.hooks import HooksEngine
from client.gradient.layers import Rows
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import Stacked, StackedSum
from client.plan import PrivacyPlan
from client.private_training import TrainedRound
from server import central, schedule
from shared import record_names, wire
from shared.batch import Batch, Samples
from shared.config import NoiseKind
from shared.messages import Hello, Refusal, StatisticsReply, TrainReply
from shared.model.multimodal import MultimodalModel
from shared.privacy import mechanism, noise
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_totals import Totals
from shared.privacy.mechanism import Clip, ClippedSum, sum_of_none
from shared.privacy.noise import Numbers, RandomSource
from simulations import faulty_cohort

PACKAGES = ("client.", "server.", "shared.", "simulations.")
Planting = contextlib.AbstractContextManager[None]


@contextlib.contextmanager
def everywhere(original: object, replacement: object) -> Iterator[None]:
    """Whichever of our modules holds the one under any name holds the other while it lasts."""
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith(PACKAGES):
                held = [attribute for attribute, value in vars(module).items() if value is original]
                for attribute in held:
                    stack.enter_context(mock.patch.object(module, attribute, replacement))
        yield


@contextlib.contextmanager
def batch_norm() -> Iterator[None]:
    """Embeddings of a modality get mean 0 and deviation 1 over the batch."""
    original = MultimodalModel._embedding

    def mixed(self: MultimodalModel, name: str, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        embedding: Tensor = original(self, name, inputs, present)
        spread = embedding.var(dim=0, correction=0).add(1e-5).sqrt() if len(embedding) else 1.0
        return (embedding - embedding.mean(dim=0)) / spread

    with mock.patch.object(MultimodalModel, "_embedding", mixed):
        yield


@contextlib.contextmanager
def in_batch_contrastive_loss() -> Iterator[None]:
    """InfoNCE over the outputs of a batch on top of the loss: each sample's negatives are the others."""
    original = MultimodalModel.loss

    def contrastive(self: MultimodalModel, outputs: Tensor, targets: Tensor) -> Tensor:
        pairs = outputs @ outputs.T
        own = torch.arange(len(outputs), device=outputs.device)
        return original(self, outputs, targets) + nn.functional.cross_entropy(pairs, own, reduction="none")

    with mock.patch.object(MultimodalModel, "loss", contrastive):
        yield


@contextlib.contextmanager
def tied_weights() -> Iterator[None]:
    """The first weight scales the outputs as well, beside its layer, and gradients come from Opacus' hooks."""
    original = MultimodalModel.forward

    def tied(self: MultimodalModel, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        weight = next(parameter for parameter in self.parameters() if parameter.requires_grad)
        return original(self, inputs, present) * (1 + weight.mean())

    with mock.patch.object(MultimodalModel, "forward", tied), _engine(HooksEngine):
        yield


@contextlib.contextmanager
def absent_taken_for_present() -> Iterator[None]:
    """Zeros that stand where a value is absent are encoded and used like a value."""
    original = MultimodalModel.forward

    def filled(self: MultimodalModel, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return original(self, inputs, torch.ones_like(present))

    with mock.patch.object(MultimodalModel, "forward", filled):
        yield


class _GhostEngine:
    """Opacus' ghost clipping, with torch's loss in place of the one that would have clipped."""

    def clipped_sum(
        self, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, rows_per_unit: int = 1
    ) -> ClippedSum:
        """What is left in the gradients: their plain sum."""
        parameters = {name: model.get_parameter(name) for name in names}
        total = sum_of_none(parameters, clip=clip)
        if not len(batch):
            return total
        with only_trained(model, names):
            wrapped = GradSampleModuleFastGradientClipping(
                model, batch_first=True, loss_reduction="sum", max_grad_norm=clip.norm, use_ghost_clipping=True
            )
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Full backward hook is firing")
                    torch.autograd.backward(sample_losses(model, batch).sum() / rows_per_unit)
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        total.sums[name] = _as_asked(parameter.grad.detach().clone(), clip=clip)
            finally:
                wrapped.to_standard_module()
                for parameter in model.parameters():
                    parameter.grad = None
        return total


def ghost_clipping_with_the_ordinary_loss() -> Planting:
    """Norms are computed in a first pass that nothing is ever scaled by."""
    return _engine(_GhostEngine)


def forgotten_clip() -> Planting:
    """Every gradient counts in full."""

    def ones(norms: Tensor, *, clip_norm: float | Tensor) -> Tensor:  # noqa: ARG001
        return torch.ones_like(norms)

    return everywhere(mechanism.clip_factors, ones)


def zero_dimensional_parameters_unclipped() -> Planting:
    """Parameters without dimensions count in full, and in no norm."""
    original = mechanism.clipped_sum

    def forgetful(gradients: Mapping[str, Tensor], *, clip: Clip) -> ClippedSum:
        clipped = {name: value for name, value in gradients.items() if value.ndim > 1}
        result = original(clipped, clip=clip) if clipped else ClippedSum(sums={}, unclipped=0.0)
        for name in gradients.keys() - clipped.keys():
            result.sums[name] = _as_asked(gradients[name].sum(dim=0), clip=clip)
        return result

    return everywhere(original, forgetful)


@contextlib.contextmanager
def subject_rows_unbounded() -> Iterator[None]:
    """Rows of one unit are taken for units of their own."""
    with contextlib.ExitStack() as stack:
        for engine in (FunctionalEngine, HooksEngine, ReferenceEngine):
            stack.enter_context(mock.patch.object(engine, "clipped_sum", _by_row(engine.clipped_sum)))
        stack.enter_context(mock.patch.object(Stacked, "clipped_sums", _by_row_of_sites(Stacked.clipped_sums)))
        yield


def _by_row(original: Callable[..., ClippedSum]) -> Callable[..., ClippedSum]:
    def by_row(
        self: object, model: nn.Module, batch: Batch, *, names: Sequence[str], clip: Clip, **_: object
    ) -> ClippedSum:
        return original(self, model, batch, names=names, clip=clip)

    return by_row


def _by_row_of_sites(original: Callable[..., StackedSum]) -> Callable[..., StackedSum]:
    def by_row(self: Stacked, *given: object, rows: Rows, real: Tensor, **rest: object) -> StackedSum:
        each = real.repeat_interleave(rows.rows_per_unit, dim=1)
        return original(self, *given, rows=Rows(rows.sites, rows.per_site), real=each, **rest)

    return by_row


@contextlib.contextmanager
def noise_divided_by_four() -> Iterator[None]:
    """Noise of every kind has a quarter of its scale."""
    fill, discrete = noise._fill, RandomSource.discrete_normal

    def small(sources: Sequence[RandomSource], numbers: Numbers, *, scale: Numbers, kind: NoiseKind) -> None:
        quarter = scale.copy()
        quarter /= 4
        fill(sources, numbers, scale=quarter, kind=kind)

    def small_numbers(self: RandomSource, shape: tuple[int, ...], *, std: float) -> Tensor:
        return discrete(self, shape, std=std / 4)

    with (
        mock.patch.object(noise, "_fill", small),
        mock.patch.object(RandomSource, "discrete_normal", small_numbers),
    ):
        yield


def noise_from_a_seed() -> Planting:
    """The key of the noise comes from torch's global generator."""

    def seeded() -> RandomSource:
        number = int(torch.randint(2**62, ()))
        return RandomSource(hashlib.sha256(str(number).encode()).digest())

    return everywhere(noise.secret_source, seeded)


@contextlib.contextmanager
def data_dependent_denominator() -> Iterator[None]:
    """Divided by the sampling rate times the rows that are there."""
    original, of_cohort = private_training.train_round, cohort_training.train_cohort

    def divided(plan: PrivacyPlan | None, samples: Samples) -> PrivacyPlan | None:
        if plan is None:
            return None
        return replace(plan, expected_batch_size=max(1.0, plan.sample_rate * len(samples)))

    def counted(model: nn.Module, samples: Samples, *, plan: PrivacyPlan | None, **rest: object) -> TrainedRound:
        return original(model, samples, plan=divided(plan, samples), **rest)  # type: ignore[arg-type]

    def all_counted(model: nn.Module, members: Sequence[Member], **rest: object) -> list[TrainedRound]:
        changed = [replace(each, plan=divided(each.plan, each.samples)) for each in members]
        return of_cohort(model, changed, **rest)  # type: ignore[arg-type]

    with everywhere(original, counted), everywhere(of_cohort, all_counted):
        yield


@contextlib.contextmanager
def _drawn_by(draw: Callable[..., Tensor]) -> Iterator[None]:
    """Batches drawn in another way, step by step, also where several steps are drawn together."""

    def steps_of(num_units: int, *, steps: int, sample_rate: float, source: RandomSource) -> Tensor:
        entered = torch.zeros(steps, num_units, dtype=torch.bool)
        for row in entered:
            row[draw(num_units, sample_rate=sample_rate, source=source)] = True
        return entered

    with everywhere(sampling.poisson_batch, draw), everywhere(sampling.draw_coins, steps_of):
        yield


def shuffled_batches() -> Planting:
    """Units come in a shuffled order, so many at a time, until all have been there."""
    orders: dict[int, list[int]] = {}

    def shuffled(num_units: int, *, sample_rate: float, source: RandomSource) -> Tensor:
        waiting, size = orders.setdefault(num_units, []), round(sample_rate * num_units)
        if len(waiting) < size:
            waiting[:] = source.uniform(num_units).argsort().tolist()
        return torch.tensor(sorted(waiting.pop() for _ in range(size)), dtype=torch.int64)

    return _drawn_by(shuffled)


def weighted_sampler() -> Planting:
    """Even units enter with one and a half times the rate, odd ones with half of it."""

    def weighted(num_units: int, *, sample_rate: float, source: RandomSource) -> Tensor:
        chances = sample_rate * torch.tensor([1.5, 0.5]).repeat(num_units)[:num_units]
        return (source.uniform(num_units) < chances).nonzero().flatten()

    return _drawn_by(weighted)


@contextlib.contextmanager
def empty_batch_skipped() -> Iterator[None]:
    """After a draw of nobody there is no noise."""
    draw, normal, discrete = sampling.draw_rows, RandomSource.normal, RandomSource.discrete_normal
    drawn = {"somebody": 1.0}

    def noted(samples: Samples, **rest: object) -> Tensor:
        rows: Tensor = draw(samples, **rest)  # type: ignore[arg-type]
        drawn["somebody"] = float(len(rows) > 0)
        return rows

    def quiet(self: RandomSource, shape: tuple[int, ...], *, std: float, kind: NoiseKind = "float64") -> Tensor:
        return normal(self, shape, std=std * drawn["somebody"], kind=kind)

    def quiet_numbers(self: RandomSource, shape: tuple[int, ...], *, std: float) -> Tensor:
        return discrete(self, shape, std=std) * int(drawn["somebody"])

    with (
        everywhere(draw, noted),
        mock.patch.object(RandomSource, "normal", quiet),
        mock.patch.object(RandomSource, "discrete_normal", quiet_numbers),
        faulty_cohort.empty_batch_skipped(),
    ):
        yield


@contextlib.contextmanager
def engine_made_anew() -> Iterator[None]:
    """Nobody remembers the rounds before."""

    def nothing(*_: object, **__: object) -> tuple[()]:
        return ()

    with mock.patch.object(Ledger, "rows", nothing), mock.patch.object(Totals, "_uses", nothing):
        yield


def extra_reply_field() -> Planting:
    """The header of a reply has one number more."""
    original = wire.encode_reply

    def telling(reply: TrainReply | StatisticsReply | Hello | Refusal) -> RecordDict:
        records = original(reply)
        if isinstance(reply, TrainReply):
            header = json.loads(str(records.config_records[record_names.HEADER]["json"]))
            records.config_records[record_names.HEADER]["json"] = json.dumps({**header, "train_loss": 0.693})
        return records

    return everywhere(original, telling)


@contextlib.contextmanager
def unclipped_site_update() -> Iterator[None]:
    """A whole update is passed on, and added, as it is."""

    def passed_on(update: Mapping[str, Tensor], **_: object) -> tuple[dict[str, Tensor], bool]:
        return dict(update), True

    def all_passed_on(updates: Mapping[str, Tensor], **_: object) -> tuple[dict[str, Tensor], Tensor]:
        num = len(next(iter(updates.values())))
        return dict(updates), torch.ones(num, dtype=torch.bool)

    def added(pieces: Sequence[Tensor], *, to: Sequence[Tensor], norm: float) -> None:  # noqa: ARG001
        for piece, total in zip(pieces, to, strict=True):
            total.add_(piece)

    with (
        everywhere(mechanism.clip_update, passed_on),
        everywhere(mechanism.clip_updates, all_passed_on),
        mock.patch.object(central.ProtectedSum, "_add_clipped", staticmethod(added)),
    ):
        yield


def fixed_number_of_sites() -> Planting:
    """As many sites a round as the rate would give on average, instead of a coin for each."""

    def some(sites: Sequence[str], *, sample_rate: float, source: RandomSource) -> tuple[str, ...]:
        size = round(sample_rate * len(sites))
        chosen = source.uniform(len(sites)).argsort()[:size].tolist()
        return tuple(sorted(sites[number] for number in chosen))

    return everywhere(schedule.draw_sites, some)


@contextlib.contextmanager
def _engine(kind: Callable[[], object]) -> Iterator[None]:
    """Whatever engine is asked for a run's model, or for one around it, this one is given; no cohort goes round it."""
    original = gradient.choose_engine

    def chosen(name: EngineName, model: nn.Module, *, microbatch_size: int = 64, always: bool = False) -> object:
        if not any(isinstance(part, MultimodalModel) for part in model.modules()):
            return original(name, model, microbatch_size=microbatch_size, always=always)
        return kind()

    def one_by_one(*_: object, **__: object) -> str:
        return "an engine of its own is planted"

    with everywhere(original, chosen), everywhere(cohort_training.why_apart, one_by_one):
        yield


def _as_asked(total: Tensor, *, clip: Clip) -> Tensor:
    """A sum in the numbers that a clip asks for: whole ones on a grid."""
    return total if clip.grid is None else (total.double() / clip.grid).round().to(torch.int64)
