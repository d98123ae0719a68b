"""Noise: of the scale that the accountant assumes, new at every step, and given back by no seed.

in        a Rehearsal
out       Outcomes of noise-scale and noise-fresh
relies on two rounds with equal draws of batches differing by their noise alone
"""

import math
from dataclasses import replace
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from client.plan import PrivacyPlan
from client.preflight.chance import ENOUGH, FALSE_ALARM, chi_square_is_plausible, scale_is_plausible
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import NOMINAL_UNITS, Rehearsal, flat
from client.preflight.stand_in import stand_in
from shared.config import NoiseKind
from shared.privacy.mechanism import GRIDS_PER_NORM, split_noise, whole_number_sensitivity

NEVER = 1e-9
COUNT_ROUNDS = 200
"""adaptive clipping: rounds whose noisy counts are measured; they tell a scale that is off by a half"""


def sum_noise(rehearsal: Rehearsal, plan: PrivacyPlan) -> float:
    """Standard deviation of the noise in each number of a step's sum, as the accountant is told."""
    multiplier = split_noise(plan.noise_multiplier)[0] if plan.clipping == "adaptive" else plan.noise_multiplier
    if plan.noise != "discrete":
        return multiplier * plan.clip_norm
    grid = plan.clip_norm / GRIDS_PER_NORM
    sensitivity = whole_number_sensitivity(clip_norm=plan.clip_norm, grid=grid, num_parameters=rehearsal.num_weights)
    return multiplier * sensitivity * grid


def noise_scale(rehearsal: Rehearsal) -> Outcome:
    """Whole rounds with every kind of noise, and replies through the agent, have noise of the scale in their plan."""
    kinds: tuple[NoiseKind, ...] = get_args(NoiseKind)
    wide = stand_in(rehearsal, num_weights=ENOUGH)
    tests = (2 * len(kinds) + 1) * (len(rehearsal.names) + 2)
    faults = []
    for kind in kinds:
        plan = replace(rehearsal.plan(), noise=kind)
        for trained in (rehearsal, wide):
            std = sum_noise(trained, plan) * rehearsal.step_size
            faults += _faults(_noise_of_rounds(trained, plan), std=std, where=f"{kind} noise", of=tests)
    faults += _faults_of_replies(rehearsal, tests=tests)
    if rehearsal.plan().clipping == "adaptive":
        faults += _faults_of_counts(rehearsal, tests=tests)
    numbers = ENOUGH + rehearsal.num_weights
    return Outcome(
        not faults,
        "; ".join(faults[:3])
        or f"chi-square of {numbers} numbers: as the plan says, in kinds {', '.join(kinds)} and in replies",
    )


def noise_fresh(rehearsal: Rehearsal) -> Outcome:
    """Two steps, two rounds and two sites have other noise, though every seed that a program can set was the same."""
    one, two = (rehearsal.plan(sample_rate=NEVER, steps=steps) for steps in (1, 2))
    step, both = (flat(rehearsal.train(rehearsal.samples, plan=plan, noise_seed=0).update) for plan in (one, two))
    faults = ["two steps of a round have the same noise"] if _same(step, both - step) else []
    first, second, *_, elsewhere = (flat(reply.update) for reply in rehearsal.replies)
    if _same(first, second):
        faults.append("two rounds of a site have the same noise, or torch.manual_seed gives it back")
    if _same(first, elsewhere):
        faults.append("two sites have the same noise, or torch.manual_seed gives it back")
    return Outcome(
        not faults, "; ".join(faults) or "two steps, two rounds and two sites differ, with every seed set to the same"
    )


def _noise_of_rounds(rehearsal: Rehearsal, plan: PrivacyPlan) -> dict[str, Float[Tensor, "N"]]:
    """Noise of each parameter: that of two rounds with equal draws of batches, whose sums are therefore equal."""
    first, second = (rehearsal.train(rehearsal.samples, plan=plan, noise_seed=seed).update for seed in (0, 1))
    return {name: ((first[name] - second[name]) / math.sqrt(2)).flatten() for name in first}


def _faults(noise: dict[str, Float[Tensor, "N"]], *, std: float, where: str, of: int) -> list[str]:
    """Which noise has not the scale: all of it together, or that of one parameter."""
    whole = torch.cat(list(noise.values()))
    rate = FALSE_ALARM / of
    if not scale_is_plausible(whole, std=std, false_alarm=rate):
        measured = float(whole.double().square().mean().sqrt()) / std
        return [f"{where} has {measured:.3g} of the standard deviation in the plan"]
    return [
        f"{where} of {name} has not the standard deviation in the plan"
        for name, values in noise.items()
        if not scale_is_plausible(values, std=std, false_alarm=rate)
    ]


def _faults_of_replies(rehearsal: Rehearsal, *, tests: int) -> list[str]:
    """Two sites with the same rows and weights, every row in each step: what differs is noise, by the statement's size.

    Only where the whole update leaves as it is: one that is clipped for the server's noise has lost its scale.
    """
    if rehearsal.run.central_privacy is not None:
        return []
    first, *_, elsewhere = rehearsal.replies
    statement = first.header.privacy
    if statement is None:
        return ["a reply of a run with privacy says that it has none"]
    plan = replace(rehearsal.plan(noise_multiplier=statement.noise_multiplier), noise=statement.noise)
    size = rehearsal.run.training.learning_rate / (statement.sample_rate * NOMINAL_UNITS)
    differences = {
        name: ((first.update[name] - elsewhere.update[name]) / math.sqrt(2)).flatten() for name in first.update
    }
    return _faults(differences, std=sum_noise(rehearsal, plan) * size, where="the noise in a reply", of=tests)


def _faults_of_counts(rehearsal: Rehearsal, *, tests: int) -> list[str]:
    """Adaptive clipping: the noise of the count of contributions within the norm."""
    plan = rehearsal.plan(sample_rate=NEVER)
    std = split_noise(plan.noise_multiplier)[1] / plan.expected_batch_size
    one = stand_in(rehearsal, num_weights=1)
    shares = [one.train(one.samples, plan=plan, noise_seed=seed).unclipped_share for seed in range(COUNT_ROUNDS)]
    energy = sum(((share - 0.5) / std) ** 2 if share is not None else math.inf for share in shares)
    if chi_square_is_plausible(energy, degrees=COUNT_ROUNDS, false_alarm=FALSE_ALARM / tests):
        return []
    return [f"noise of the counts has {math.sqrt(energy / COUNT_ROUNDS):.3g} of the standard deviation in the plan"]


def _same(first: Float[Tensor, "P"], second: Float[Tensor, "P"]) -> bool:
    """Alike in every number, to a millionth of their size: by chance once in a million where there is but one."""
    scale = max(float(first.abs().max()), float(second.abs().max()), 1e-30)
    return bool(((first - second).abs() <= 1e-6 * scale).all())
