"""Tests of client/gradient/layers/ and stacked.py: each layer is the reference's, alone and for many sites at once."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.engine import sample_losses
from client.gradient.layers import KINDS, Rows
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import Stacked, StackedClip, gathered
from shared.batch import Batch
from shared.model.parts import as_parts, as_rows, mark_parts
from shared.privacy.mechanism import Clip
from tests.client.layered import Chain, Twice, batch_of, names_of

NUM = 12


def rows(*shape: int) -> Tensor:
    return torch.randn(NUM, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 5, (NUM, *shape), generator=torch.Generator().manual_seed(6))


class Places(nn.Module):
    """The numbers of the places, the same for every row and spread over them without a copy; some come twice."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.table, self.numbers = nn.Embedding(5, 3), torch.tensor(numbers)

    def forward(self, values: Tensor) -> Tensor:
        vectors: Tensor = self.table(self.numbers.expand(len(values), -1))
        return (vectors * values[..., None]).tanh()


class Clips(nn.Module):
    """Layers that see the three parts of each sample as rows."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)
        mark_parts(self.inner, parts=3)

    def forward(self, values: Tensor) -> Tensor:
        return as_parts(self.inner(as_rows(values)), parts=3)


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, ...]], Tensor]] = {
    "linear": (lambda: (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), rows(4)),
    "linear on parts": (lambda: (Clips(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)), rows(3, 4)),
    "conv2d on parts": (
        lambda: (
            Clips(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)),
            nn.Tanh(),
            nn.Linear(3, 2),
        ),
        rows(3, 2, 4, 4),
    ),
    "embedding on parts": (lambda: (Clips(nn.Embedding(5, 3)), nn.Linear(3, 2)), tokens(3, 4)),
    "linear without bias": (lambda: (nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)), rows(4)),
    "linear on positions": (lambda: (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), rows(7, 4)),
    "linear on a plane": (lambda: (nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 2)), rows(3, 2, 4)),
    "linear called twice": (lambda: (Twice(nn.Linear(4, 4)), nn.Linear(4, 2)), rows(4)),
    "linear called twice on positions": (lambda: (Twice(nn.Linear(4, 4)), nn.Linear(4, 2)), rows(3, 4)),
    "linear changed in place": (lambda: (nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), rows(4)),
    "conv1d": (lambda: (nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 3, 2, bias=False)), rows(2, 8)),
    "conv1d with everything": (
        lambda: (
            nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
            nn.Tanh(),
            nn.Conv1d(6, 6, 2, groups=3),
        ),
        rows(4, 11),
    ),
    "conv1d called twice": (lambda: (Twice(nn.Conv1d(3, 3, 3, padding=1)),), rows(3, 6)),
    "conv1d changed in place": (lambda: (nn.Conv1d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv1d(4, 3, 2)), rows(2, 8)),
    "conv2d": (lambda: (nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, (1, 2), bias=False)), rows(2, 5, 6)),
    "conv2d with everything": (
        lambda: (
            nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
            nn.Tanh(),
            nn.Conv2d(4, 2, 1),
        ),
        rows(4, 6, 5),
    ),
    "conv2d of many channels": (
        lambda: (
            nn.Conv2d(9, 8, (3, 2), stride=(1, 2), padding=(1, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 2, 2, dilation=2),
        ),
        rows(9, 4, 6),
    ),
    "embedding": (lambda: (nn.Embedding(5, 3), nn.Linear(3, 2)), tokens(6)),
    "embedding with padding": (lambda: (nn.Embedding(5, 3, padding_idx=0), nn.Tanh()), tokens(6)),
    "embedding of one token": (lambda: (nn.Embedding(5, 3), nn.Linear(3, 2)), tokens()),
    "embedding of a plane": (lambda: (nn.Embedding(5, 3), nn.Tanh()), tokens(2, 3)),
    "embedding of places": (lambda: (Places((0, 1, 2, 3)), nn.Linear(3, 2)), rows(4)),
    "embedding of places that come twice": (lambda: (Places((4, 1, 4, 0, 1)), nn.Linear(3, 2)), rows(5)),
    "layer norm": (lambda: (nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), rows(4)),
    "layer norm on positions": (lambda: (nn.LayerNorm(4), nn.Linear(4, 3)), rows(5, 4)),
    "layer norm over two dimensions": (lambda: (nn.Linear(4, 4), nn.LayerNorm((5, 4))), rows(5, 4)),
    "layer norm without bias": (lambda: (nn.LayerNorm(4, bias=False), nn.Linear(4, 3)), rows(5, 4)),
    "layer norm without weights": (lambda: (nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3)), rows(4)),
    "layer norm changed in place": (lambda: (nn.LayerNorm(4), nn.ReLU(inplace=True)), rows(5, 4)),
    "group norm": (lambda: (nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv1d(4, 1, 1)), rows(2, 6)),
    "group norm on a plane": (lambda: (nn.GroupNorm(2, 4),), rows(4, 3, 2)),
    "conv2d between group norms": (
        lambda: (nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 2), nn.GroupNorm(2, 4)),
        rows(1, 5, 6),
    ),
    "group norm without places": (lambda: (nn.Linear(4, 6), nn.GroupNorm(3, 6), nn.Linear(6, 2)), rows(4)),
}
EVERY = pytest.mark.parametrize("case", CASES)


def of_case(case: str) -> tuple[Chain, Batch]:
    layers, inputs = CASES[case]
    return Chain(*layers()).double(), batch_of(inputs)


def part(batch: Batch, chosen: list[int]) -> Batch:
    return batch.take(torch.tensor(chosen, dtype=torch.int64))


def assert_alike(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@EVERY
@pytest.mark.parametrize(("clip", "rows_per_unit"), [(Clip(0.5), 1), (Clip(0.5, per_layer=True), 3), (Clip(1e9), 2)])
def test_a_layer_gives_what_the_reference_gives(case: str, clip: Clip, rows_per_unit: int) -> None:
    model, batch = of_case(case)
    wanted, found = (
        engine.clipped_sum(model, batch, names=names_of(model), clip=clip, rows_per_unit=rows_per_unit)
        for engine in (ReferenceEngine(), BookkeepingEngine(microbatch_size=6))
    )

    assert found.unclipped == wanted.unclipped
    for name in names_of(model):
        assert float(wanted.sums[name].norm()) > 1e-3
        assert_alike(found.sums[name], wanted.sums[name])


@EVERY
def test_only_the_trained_parameters_of_a_layer_count(case: str) -> None:
    model, batch = of_case(case)
    for name in names_of(model):
        wanted, found = (
            engine.clipped_sum(model, batch, names=[name], clip=Clip(0.3))
            for engine in (ReferenceEngine(), BookkeepingEngine())
        )
        assert_alike(found.sums[name], wanted.sums[name])
        assert found.unclipped == wanted.unclipped


class Sites:
    """Three sites with weights of their own, clip norms of their own, and other numbers of units."""

    def __init__(self, case: str, *, rows_per_unit: int) -> None:
        self.model, whole = of_case(case)
        self.names, self.each = names_of(self.model), rows_per_unit
        self.stacked = Stacked(self.model, names=self.names)
        self.weights = torch.stack([self._weights(site) for site in range(3)])
        self.counts, self.units = [2, 0, 3], 3
        self.norms = [0.2, 0.5, 3.0]
        # rows of a site beyond those it has pad, and are another site's
        self.batch = part(whole, [(5 * place) % NUM for place in range(3 * self.units * self.each)])
        self.real = torch.arange(self.units) < torch.tensor(self.counts)[:, None]
        self.rows = Rows(3, self.units, self.each)

    def _weights(self, site: int) -> Tensor:
        start = gathered(dict(self.model.named_parameters()), names=self.stacked.names)
        return start + 0.3 * torch.randn(len(start), generator=torch.Generator().manual_seed(site)).double()

    def at(self, site: int) -> tuple[nn.Module, Batch]:
        """A site's own model and rows."""
        with torch.no_grad():
            for name, value in self.stacked.views(self.weights).items():
                self.model.get_parameter(name).copy_(value[site])
        first = site * self.units * self.each
        return self.model, part(self.batch, list(range(first, first + self.counts[site] * self.each)))

    def reference(self, site: int, *, per_layer: bool) -> tuple[Tensor, float]:
        model, batch = self.at(site)
        found = ReferenceEngine().clipped_sum(
            model, batch, names=self.names, clip=Clip(self.norms[site], per_layer=per_layer), rows_per_unit=self.each
        )
        return gathered(found.sums, names=self.stacked.names), found.unclipped

    def clipped(self, *, per_layer: bool) -> tuple[Tensor, Tensor]:
        clip = StackedClip(torch.tensor(self.norms, dtype=torch.float64), per_layer)
        found = self.stacked.clipped_sums(self.weights, self.batch, rows=self.rows, real=self.real, clip=clip)
        return found.sums.clone(), found.unclipped


@EVERY
@pytest.mark.parametrize("rows_per_unit", [1, 2])
def test_padding_contributes_exactly_nothing(case: str, rows_per_unit: int) -> None:
    """Every site is what the reference gives it alone; whatever pads may change, not a bit of a sum does."""
    sites = Sites(case, rows_per_unit=rows_per_unit)
    sums, unclipped = sites.clipped(per_layer=False)
    for site in range(3):
        wanted, within = sites.reference(site, per_layer=False)
        assert_alike(sums[site], wanted)
        assert float(unclipped[site]) == within
    assert not sums[1].any()

    pads = (~sites.real).repeat_interleave(rows_per_unit, dim=1).flatten()
    values = sites.batch.inputs["x"].clone()
    values[pads] = 1 if values.dtype == torch.int64 else float("nan")
    sites.batch = replace(sites.batch, inputs={"x": values})
    assert torch.equal(sites.clipped(per_layer=False)[0], sums)


@EVERY
def test_padding_is_left_out_of_the_sum_even_where_its_loss_would_count(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two guards, of which each is enough: a loss that counts for nothing, and a factor of zero."""
    sites = Sites(case, rows_per_unit=1)
    wanted, within = sites.clipped(per_layer=False)
    monkeypatch.setattr(Stacked, "_of_rows", lambda _, shares, **__: torch.ones(shares.numel(), dtype=torch.float64))
    sums, unclipped = sites.clipped(per_layer=False)

    assert_alike(sums, wanted)
    assert torch.equal(unclipped, within)


@EVERY
def test_sites_that_start_from_the_same_weights_are_computed_as_one_and_clipped_apart(case: str) -> None:
    sites = Sites(case, rows_per_unit=2)
    sites.weights = sites.weights[:1].expand(3, -1)
    sums, unclipped = sites.clipped(per_layer=False)
    for site in range(3):
        wanted, within = sites.reference(site, per_layer=False)
        assert_alike(sums[site], wanted)
        assert float(unclipped[site]) == within


@EVERY
def test_stacked_per_layer_clipping_is_the_references(case: str) -> None:
    sites = Sites(case, rows_per_unit=1)
    sums, unclipped = sites.clipped(per_layer=True)
    for site in range(3):
        wanted, within = sites.reference(site, per_layer=True)
        assert_alike(sums[site], wanted)
        assert float(unclipped[site]) == within


@EVERY
def test_sums_without_clipping_are_those_of_autograd_divided(case: str) -> None:
    sites = Sites(case, rows_per_unit=1)
    denominators = torch.tensor([[2.0], [3.0], [7.0]], dtype=torch.float64)
    found = sites.stacked.plain_sums(
        sites.weights, sites.batch, rows=sites.rows, real=sites.real, denominators=denominators
    ).clone()

    for site, denominator in enumerate(denominators[:, 0]):
        model, batch = sites.at(site)
        if not len(batch):
            assert not found[site].any()
            continue
        gradients = torch.autograd.grad(sample_losses(model, batch).sum(), list(model.parameters()))
        assert_alike(found[site], torch.cat([each.reshape(-1) for each in gradients]) / denominator)


@EVERY
def test_a_step_of_plain_descent_is_the_weights_minus_the_sums(case: str) -> None:
    """Written to memory of its own or to the weights themselves, of sites with the same weights or each its own."""
    for alike in (False, True):
        sites = Sites(case, rows_per_unit=1)
        start = sites.weights[:1].expand(3, -1) if alike else sites.weights
        denominators = torch.tensor([[2.0], [3.0], [7.0]], dtype=torch.float64)
        sums = sites.stacked.plain_sums(
            start, sites.batch, rows=sites.rows, real=sites.real, denominators=denominators
        ).clone()
        wanted, room = start - 0.3 * sums, torch.empty(3, start.shape[1], dtype=torch.float64)
        targets = (room,) if alike else (room, start)
        for into in targets:
            sites.stacked.descend(
                start, sites.batch, rows=sites.rows, real=sites.real, denominators=denominators, rate=0.3, into=into
            )
            assert_alike(into, wanted)


@EVERY
def test_a_broken_unit_of_one_site_leaves_nothing_there_and_the_others_alone(case: str) -> None:
    sites = Sites(case, rows_per_unit=1)
    if sites.batch.inputs["x"].dtype == torch.int64:
        with torch.no_grad():  # token 4 has a broken row at the first site alone
            sites.stacked.views(sites.weights)[sites.stacked.names[0]][0, 4, 0] = float("nan")
    else:
        sites.batch.inputs["x"][0].view(-1)[0] = float("nan")
    sums, unclipped = sites.clipped(per_layer=False)

    assert sums.isfinite().all()
    for site in range(3):
        wanted, within = sites.reference(site, per_layer=False)
        assert_alike(sums[site], wanted)
        assert float(unclipped[site]) == within


def test_a_site_alone_and_among_others_draws_on_its_own_weights() -> None:
    sites = Sites("linear", rows_per_unit=1)
    sums, _ = sites.clipped(per_layer=False)
    sites.weights = sites.weights[[0, 2, 2]]
    again, _ = sites.clipped(per_layer=False)

    assert torch.equal(sums[[0, 2]], again[[0, 2]])


def test_every_kind_of_layer_is_tried_here() -> None:
    tried = {type(module) for case in CASES for module in of_case(case)[0].modules()}

    assert set(KINDS) <= tried


def test_parts_of_a_sample_are_clipped_together() -> None:
    """Three parts of one sample move the sum by at most the clip norm, and those of two samples by their own."""
    model = Chain(Clips(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)).double()
    large = 1e3 * rows(3, 4)[:2]
    each = [
        BookkeepingEngine().clipped_sum(model, batch_of(one), names=names_of(model), clip=Clip(0.5)).sums
        for one in (large[:1], large[1:], large)
    ]
    lengths = [float(torch.cat([value.reshape(-1) for value in sums.values()]).norm()) for sums in each]

    assert lengths[0] == pytest.approx(0.5)
    assert lengths[1] == pytest.approx(0.5)
    for name in names_of(model):
        torch.testing.assert_close(each[0][name] + each[1][name], each[2][name])
