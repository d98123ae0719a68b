"""Cohort draws: which rows enter a step at each of many sites, as one padded batch; drawn as each would draw alone.

in        sites' Samples, public numbers and sampling sources
out       Drawn: a batch of K*U units, and which of them are there
relies on sampling.py for the draws, private_training.py for what hiding a modality means
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from client.private_training import PublicNumbers, keep_one
from client.sample_store import PackedSamples
from client.sampling import draw_coins
from shared.batch import Batch, Samples
from shared.errors import ModelError
from shared.model.sample_draws import KEYS
from shared.privacy.noise import RandomSource


@dataclass(frozen=True)
class Drawn:
    """One step's rows of K sites, each padded to as many units as the largest draw."""

    batch: Batch
    """K*U*m rows, site by site and unit by unit"""
    real: Bool[Tensor, "K U"]
    """units that were drawn; the others pad, with the site's own first row"""
    counts: Int[Tensor, "K"]
    """units that each site drew"""

    def to(self, device: torch.device) -> "Drawn":
        """The same on a device; counts stay on the processor."""
        if device.type == "cpu":
            return self
        batch = Batch(
            inputs={name: values.to(device) for name, values in self.batch.inputs.items()},
            present=self.batch.present.to(device),
            targets=self.batch.targets.to(device),
        )
        return Drawn(batch, self.real.to(device), self.counts)


class CohortDraws:
    """The draws of one round at some sites, step by step."""

    def __init__(
        self,
        samples: Sequence[Samples],
        *,
        public: Sequence[PublicNumbers],
        sources: Sequence[RandomSource],
        modality_dropout: float,
        draws_keys: bool,
    ) -> None:
        """Takes the sites, those with more steps first."""
        self._samples, self._public, self._sources = samples, public, sources
        self._modality_dropout, self._draws_keys = modality_dropout, draws_keys
        self._rows_per_unit = public[0].rows_per_unit
        sizes = [len(each) for each in samples]
        self._starts = torch.tensor([0, *accumulate(sizes)])
        self._data, first_rows = _rows_of_all(samples)
        # of a site without rows, which draws none, any row
        firsts = self._starts[:-1] if first_rows is None else first_rows
        self._firsts = firsts.clamp(max=len(self._data) - 1)
        self._shifts = None if first_rows is None else first_rows - self._starts[:-1]
        self._coins: Tensor | None = None
        """[S, N] bool: who enters each step, where nothing else is drawn in between"""
        draws_more = bool(modality_dropout) or draws_keys
        if public[0].unit == "record" and self._rows_per_unit == 1 and not draws_more:
            self._coins = torch.zeros(public[0].steps, sum(sizes), dtype=torch.bool)
            for each, source, start, size in zip(public, sources, self._starts.tolist(), sizes, strict=False):
                self._coins[: each.steps, start : start + size] = draw_coins(
                    size, steps=each.steps, sample_rate=each.sample_rate, source=source
                )

    def step(self, number: int, *, active: int) -> Drawn | None:
        """What the first `active` sites draw in a step, from 0 on; None where nobody draws anybody."""
        rows, counts = self._rows(number, active=active)
        units = int(counts.max())
        if not units:
            return None
        each = self._rows_per_unit
        real = torch.arange(units) < counts[:, None]
        places = real.repeat_interleave(each, dim=1) if each > 1 else real
        index = self._firsts[:active, None].expand(places.shape).clone()
        index[places] = rows if self._shifts is None else rows + self._shifts[:active].repeat_interleave(counts * each)
        batch = self._data.take(index.flatten())
        if self._modality_dropout:
            batch = self._with_hidden(batch, counts=counts * each, places=places)
        if self._draws_keys:
            batch = self._with_keys(batch, counts=counts * each, places=places)
        return Drawn(batch, real, counts)

    def _rows(self, number: int, *, active: int) -> tuple[Int[Tensor, "N"], Int[Tensor, "K"]]:
        """Rows drawn, site by site, among the rows of all; and how many units each site drew."""
        starts = self._starts[: active + 1]
        if self._coins is not None:
            rows = self._coins[number, : int(starts[-1])].nonzero()[:, 0]
            return rows, torch.searchsorted(rows, starts).diff()
        drawn = [
            public.draw(samples, source=source)
            for public, samples, source in zip(
                self._public[:active], self._samples[:active], self._sources[:active], strict=True
            )
        ]
        lengths = torch.tensor([len(rows) for rows in drawn])
        return torch.cat(drawn) + starts[:-1].repeat_interleave(lengths), lengths // self._rows_per_unit

    def _with_hidden(self, batch: Batch, *, counts: Int[Tensor, "K"], places: Bool[Tensor, "K R"]) -> Batch:
        """Modalities hidden as each site's own numbers say."""
        modalities = batch.present.shape[1]
        numbers = [
            source.uniform(count * modalities) for source, count in zip(self._sources, counts.tolist(), strict=False)
        ]
        draws = torch.ones(batch.present.shape, dtype=torch.float64)
        draws[places.flatten()] = torch.cat(numbers).view(-1, modalities)
        kept = keep_one(batch.present, draws=draws, chance=self._modality_dropout)
        return Batch(inputs=batch.inputs, present=kept, targets=batch.targets)

    def _with_keys(self, batch: Batch, *, counts: Int[Tensor, "K"], places: Bool[Tensor, "K R"]) -> Batch:
        """A key for each row of a site, from the site's own numbers; rows that pad need none."""
        drawn = [source.integers(count) for source, count in zip(self._sources, counts.tolist(), strict=False)]
        keys = torch.zeros(len(batch), dtype=torch.int64)
        keys[places.flatten()] = torch.cat(drawn)
        return Batch(inputs={**batch.inputs, KEYS: keys}, present=batch.present, targets=batch.targets)


def _rows_of_all(samples: Sequence[Samples]) -> tuple[Batch, Int[Tensor, "K"] | None]:
    """A batch that holds the rows of all sites, and where each begins; None where they lie one after another."""
    packed = [each for each in samples if isinstance(each, PackedSamples)]
    if len(packed) == len(samples) and len({id(each.pack) for each in packed}) == 1:
        return packed[0].pack, torch.tensor([each.first_row for each in packed])
    joined = Batch(
        inputs={name: torch.cat([each.inputs[name] for each in samples]) for name in samples[0].inputs},
        present=torch.cat([each.present for each in samples]),
        targets=torch.cat([each.targets for each in samples]),
    )
    return joined, None


@contextmanager
def without_draws(place: torch.device) -> Iterator[None]:
    """Refuses a model that moves torch's generator: which site got which numbers would be the threads' affair."""
    before = _drawn_from(place)
    yield
    if any(not torch.equal(one, two) for one, two in zip(before, _drawn_from(place), strict=True)):
        raise ModelError("the model draws from torch's generator, which sites trained side by side cannot share")


def _drawn_from(place: torch.device) -> list[Tensor]:
    """States of the generators that a model there would move."""
    states = [torch.default_generator.get_state()]
    return states if place.type == "cpu" else [*states, torch.cuda.get_rng_state(place)]
