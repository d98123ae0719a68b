"""Preflight of both sides: what a site's code is tried out for, and where the server adds noise, the server's as well.

in        a RunConfig
out       PreflightChecks for `motet preflight`, `motet simulate` and RUN/preflight.json
relies on client/preflight/ for everything at a site, preflight_cohort.py for many sites in one pass; server/central.py
          and schedule.py are tried here

| check               | measures                                                                    |
| server-clip         | how far one site moves the noisy average, whatever it sends                 |
| server-noise-scale  | variance of the noise on every parameter, in a round that nobody answered   |
| server-noise-fresh  | noise and coins of two rounds, every seed that a program can set being equal |
| server-sampling     | who is drawn in each of hundreds of rounds, where sites are drawn in secret |
"""

import contextlib
import math
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from client.preflight import preflight
from client.preflight.chance import (
    ENOUGH,
    FALSE_ALARM,
    chi_square_is_plausible,
    coins_are_plausible,
    scale_is_plausible,
)
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import flat
from server import central, schedule
from server.central import CentralPlan
from shared.config import PrivacySettings, RunConfig
from shared.preflight import PreflightCheck
from shared.privacy.mechanism import split_noise
from shared.privacy.noise import reproducible_source
from shared.settings import Settings
from simulations.preflight_cohort import cohort_checks

SHAPES: dict[str, tuple[int, ...]] = {"scale": (), "layer.bias": (50,), "layer.weight": (ENOUGH // 100, 100)}
SIZES = (1e-3, 1.0, 1e4, 1e20, math.inf, math.nan)
ROUNDING = 1e-4
NUM_COUNTS = 5_000
NUM_SITES, NUM_ROUNDS = 30, 200
SITE_CHANCE = 0.3
NEXT_STEP = (
    "If the run has a part of your own (--parts), look there first: a part may not use other rows of the batch, and "
    'weights only through their layer; gradient_engine = "functional" or "reference" rules the engine out. With '
    "shipped parts alone this is a fault of Motet, worth a report with the table above."
)


def preflight_run(run: RunConfig, *, only: Collection[str] | None = None) -> tuple[PreflightCheck, ...]:
    """All checks that concern a run, or those named: of a site, of many in one pass, of the server.

    Raises:
        ModelError: the model cannot be built at all.
    """
    return (*preflight(run, only=only), *cohort_checks(run, only=only), *server_checks(run, only=only))


def server_checks(run: RunConfig, *, only: Collection[str] | None = None) -> tuple[PreflightCheck, ...]:
    """What the server does for whole sites; nothing where it adds no noise."""
    privacy = run.central_privacy
    if privacy is None:
        return ()
    checks: dict[str, Callable[[PrivacySettings], Outcome]] = {
        "server-clip": server_clip,
        "server-noise-scale": server_noise_scale,
        "server-noise-fresh": server_noise_fresh,
    }
    if run.federation.site_sample_rate is not None:
        checks["server-sampling"] = server_sampling
    found = []
    for name, check in checks.items():
        if only is not None and name not in only:
            continue
        try:
            passed, detail = check(privacy)
        except Exception as error:  # noqa: BLE001  whatever breaks a check, the run is not shown to be sound
            passed, detail = False, f"could not be carried out: {type(error).__name__}: {error}"
        found.append(PreflightCheck(name=name, passed=passed, detail=detail))
    return tuple(found)


class Preflight(Settings):
    """What `motet preflight` found."""

    run: str
    planted_fault: str | None
    checks: tuple[PreflightCheck, ...]
    passed: bool
    """every check did"""


def preflight_scenario(
    scenario: str, *, changes: Sequence[str], extensions: Sequence[Path], fault: str | None = None
) -> Preflight:
    """All checks of a scenario's run; with a fault, of code that is broken while they last.

    Raises:
        ConfigError: the scenario, a change or the fault is not allowed.
        ModelError: the model cannot be built at all.
    """
    # beside what a preflight in a simulation needs
    from shared.model.registry import load_extensions
    from simulations.planted_faults import planted
    from simulations.scenario import find_scenario, motet_home, read_scenario

    settings, _ = read_scenario(find_scenario(scenario), changes=changes, home=motet_home())
    for extension in extensions:
        load_extensions(extension)
    with planted(fault) if fault is not None else contextlib.nullcontext():
        checks = preflight_run(settings.run)
    passed = all(check.passed for check in checks)
    return Preflight(run=settings.run.name, planted_fault=fault, checks=checks, passed=passed)


def render_preflight(found: Preflight) -> Group:
    """A row a check, the verdict, and what to do next."""
    table = Table("check", "", "measured on made-up rows")
    for check in found.checks:
        table.add_row(check.name, "[green]passed[/]" if check.passed else "[red]FAILED[/]", escape(check.detail))
    failed = [check.name for check in found.checks if not check.passed]
    said = f"all {len(found.checks)} checks passed: {found.run} trains as its accountant assumes"
    if len(found.checks) == 1:
        said = f"passed; {found.run} asks for no privacy, so that only what leaves a site was looked at"
    if failed and found.planted_fault is not None:
        said = f"the planted fault {found.planted_fault} was caught by: {', '.join(failed)}"
    elif failed:
        said = (
            f"{len(failed)} of {len(found.checks)} checks failed: no site will train {found.run}, and none should. "
            f"{NEXT_STEP}"
        )
    elif found.planted_fault is not None:
        said = f"the planted fault {found.planted_fault} was NOT caught in this run, whose parts it may not touch"
    return Group(table, Text(said, style="red" if failed else "green"))


def server_clip(privacy: PrivacySettings) -> Outcome:
    """One site moves the sum by at most the clip norm, beside another one and whatever numbers it sends."""
    plan, draws, worst = _plan(privacy, noise_multiplier=0.0), torch.Generator().manual_seed(0), 0.0

    def update(size: float) -> dict[str, Tensor]:
        numbers = {name: size * torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}
        # much of the norm in the one number without a dimension
        return {**numbers, "scale": numbers["scale"] * 100}

    other = update(1.0)
    without = _average({"other": other}, plan=plan)
    for size in SIZES:
        moved = _average({"other": other, "one": update(size)}, plan=plan) - without
        worst = max(worst, float(moved.norm().nan_to_num(nan=math.inf)) * plan.denominator / privacy.clip_norm)
    return Outcome(
        worst <= 1 + ROUNDING, f"one site moved the sum by at most {worst:.4g} clip norms ({privacy.clipping})"
    )


def server_noise_scale(privacy: PrivacySettings) -> Outcome:
    """A round that nobody answered has noise of the plan's scale on every parameter; a noisy count likewise."""
    plan = _plan(privacy)
    for_sum, for_count = split_noise(plan.noise_multiplier) if plan.is_adaptive else (plan.noise_multiplier, 0.0)
    source = reproducible_source(0, purpose="preflight/server")
    noise = central.protect({}, plan=plan, clip_norm=privacy.clip_norm, source=source)
    std, rate = for_sum * privacy.clip_norm / plan.denominator, FALSE_ALARM / (len(SHAPES) + 2)
    whole = flat(noise)
    faults = [] if scale_is_plausible(whole, std=std, false_alarm=rate) else ["all of it"]
    faults += [name for name in SHAPES if not scale_is_plausible(noise[name].flatten(), std=std, false_alarm=rate)]
    if plan.is_adaptive:
        shares = [central.noisy_unclipped_share([], plan=plan, source=source) for _ in range(NUM_COUNTS)]
        energy = sum(((share - 0.5) * plan.denominator / for_count) ** 2 for share in shares)
        if not chi_square_is_plausible(energy, degrees=NUM_COUNTS, false_alarm=rate):
            faults.append("the count")
    measured = float(whole.square().mean().sqrt()) / std
    said = f"{whole.numel()} numbers have {measured:.4g} of the plan's standard deviation"
    return Outcome(not faults, f"{said}; off: {', '.join(faults)}" if faults else said)


def server_noise_fresh(privacy: PrivacySettings) -> Outcome:
    """Two sources of one round differ, though every seed that a program can set was the same."""
    plan, numbers = _plan(privacy), []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)  # the legacy one, which anybody can set
            random.seed(0)
            numbers.append(plan.source(1, purpose="noise").normal((4,), std=1.0))
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    fresh = not torch.equal(numbers[0], numbers[1])
    return Outcome(fresh, "noise differs with every seed set to the same" if fresh else "a seed gives the noise back")


def server_sampling(_: PrivacySettings) -> Outcome:
    """Over hundreds of rounds every site is drawn independently, at the stated rate."""
    sites = [f"site-{number:02}" for number in range(NUM_SITES)]
    source = reproducible_source(0, purpose="preflight/sites")
    drawn = [schedule.draw_sites(sites, sample_rate=SITE_CHANCE, source=source) for _ in range(NUM_ROUNDS)]
    entered = torch.tensor([[int(site in chosen) for site in sites] for chosen in drawn])
    fault = coins_are_plausible(entered, chance=SITE_CHANCE)
    return Outcome(
        not fault, fault or f"{NUM_ROUNDS} rounds of {NUM_SITES} sites: as of independent coins of {SITE_CHANCE}"
    )


def _plan(privacy: PrivacySettings, *, noise_multiplier: float = 1.3) -> CentralPlan:
    return CentralPlan(
        privacy=privacy,
        cap_epsilon=privacy.epsilon,
        noise_multiplier=noise_multiplier,
        sample_rate=1.0,
        denominator=10.0,
        shapes=SHAPES,
    )


def _average(updates: dict[str, dict[str, Tensor]], *, plan: CentralPlan) -> Tensor:
    source = reproducible_source(0, purpose="preflight/server")
    return flat(dict(central.protect(updates, plan=plan, clip_norm=plan.privacy.clip_norm, source=source)))
