"""Every part in the registries: it learns under clipping and noise, is bounded sample by sample, and takes absence.

A part is tried as soon as it is registered. What it needs for that is said in learning.py.
"""

from pathlib import Path

import pytest
import torch
from torch.nn.utils import vector_to_parameters

from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.choice import AutoEngine, choose_engine
from client.gradient.layers import Rows
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import Stacked, StackedClip, gathered, why_not_stacked
from client.preflight import preflight
from shared.model.multimodal import build_model
from shared.model.parameters import modality_of, trainable_names
from shared.privacy.mechanism import Clip
from tests.shared.learning import (
    HELD_OUT,
    ROWS,
    VALUE,
    accuracy,
    every_part,
    made_up_samples,
    run_with,
    trained_privately,
    without,
)

ENOUGH = 0.875
"""of 64 held-out rows in two classes: guesses reach it once in a billion times (binomial, 56 of 64)"""
GRADIENT_CHECKS = {"own-gradient", "independent"}
"""of the preflight, those that tell of a part; the others look at clipping, noise and draws, and are slow here"""
BY_TORCH_FUNC: dict[str, str] = {}
"""parts whose gradients book-keeping cannot follow, and why; the cohort engine takes their sites one after another"""

each_part = pytest.mark.parametrize(("kind", "name"), every_part())


@each_part
def test_it_learns_from_clipped_and_noised_gradients(kind: str, name: str, tmp_path: Path) -> None:
    run = run_with(kind, name, folder=tmp_path)
    samples, held_out = (made_up_samples(run, rows=rows, seed=rows + 1) for rows in (ROWS, HELD_OUT + 1))

    assert accuracy(trained_privately(run, samples), held_out) >= ENOUGH


@each_part
def test_its_gradients_pass_the_preflight(kind: str, name: str, tmp_path: Path) -> None:
    checks = preflight(run_with(kind, name, folder=tmp_path), only=GRADIENT_CHECKS)

    assert {check.name for check in checks} == GRADIENT_CHECKS
    assert [check for check in checks if not check.passed] == []


@pytest.mark.slow
@each_part
def test_a_run_with_it_passes_the_whole_preflight(kind: str, name: str, tmp_path: Path) -> None:
    assert [check for check in preflight(run_with(kind, name, folder=tmp_path)) if not check.passed] == []


@each_part
def test_where_its_modality_is_absent_it_gets_no_gradient_and_zeros_are_finite(
    kind: str, name: str, tmp_path: Path
) -> None:
    run = run_with(kind, name, folder=tmp_path)
    model, rows = build_model(run).train(), made_up_samples(run, rows=3, seed=0)
    names, engine = trainable_names(model, run.modalities), choose_engine("auto", model)

    absent = engine.clipped_sum(model, without(rows, run, VALUE), names=names, clip=Clip(1.0)).sums
    nothing = {key: torch.zeros_like(values) for key, values in rows.inputs.items()}
    zeros = engine.clipped_sum(
        model, type(rows)(nothing, rows.present, rows.targets, rows.subjects, rows.groups), names=names, clip=Clip(1.0)
    ).sums

    assert not any(bool(absent[key].any()) for key in names if modality_of(model, key) == VALUE)
    assert all(bool(values.isfinite().all()) for values in (*absent.values(), *zeros.values()))
    assert any(bool(values.any()) for values in zeros.values())


@each_part
def test_book_keeping_carries_it_or_it_is_known_why_not(kind: str, name: str, tmp_path: Path) -> None:
    run = run_with(kind, name, folder=tmp_path)
    model, rows = build_model(run).train(), made_up_samples(run, rows=3, seed=0)
    names, engine = trainable_names(model, run.modalities), choose_engine("auto", model)
    assert isinstance(engine, AutoEngine)

    engine.clipped_sum(model, rows, names=names, clip=Clip(1.0))

    followed = isinstance(engine.engine, BookkeepingEngine) and why_not_stacked(model, names=names) is None
    assert followed == (f"{kind} {name}" not in BY_TORCH_FUNC)


@each_part
def test_two_sites_side_by_side_have_the_sums_that_each_has_alone(kind: str, name: str, tmp_path: Path) -> None:
    if f"{kind} {name}" in BY_TORCH_FUNC:
        pytest.skip(f"trained one site after another: {BY_TORCH_FUNC[f'{kind} {name}']}")
    run = run_with(kind, name, folder=tmp_path)
    model, rows = build_model(run).train(), made_up_samples(run, rows=6, seed=0)
    names, clip = trainable_names(model, run.modalities), Clip(0.5)
    first = gathered(dict(model.named_parameters()), names=names)
    draws = torch.Generator().manual_seed(0)
    weights = torch.stack([first, first + 0.05 * torch.randn(first.shape, generator=draws)])

    together = Stacked(model, names=names).clipped_sums(
        weights,
        rows,
        rows=Rows(2, 3),
        real=torch.ones(2, 3, dtype=torch.bool),
        clip=StackedClip(torch.full((2,), clip.norm, dtype=torch.float64)),
    )

    for site, own in enumerate(weights):
        with torch.no_grad():
            vector_to_parameters(own, [model.get_parameter(key) for key in names])
        alone = ReferenceEngine().clipped_sum(
            model, rows.take(torch.arange(3 * site, 3 * site + 3)), names=names, clip=clip
        )
        torch.testing.assert_close(together.sums[site], gathered(alone.sums, names=names), atol=2e-5, rtol=1e-3)
