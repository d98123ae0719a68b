"""Absence: nobody drawn, or a modality that nobody has, leaves exact zeros in the sum, and the noise all the same.

in        a Rehearsal
out       Outcomes of empty-batch, absent-modality and public-denominator
relies on nobody being drawn at a sampling rate of one in a billion, with eight rows
"""

from dataclasses import replace

import torch

from client.preflight.chance import FALSE_ALARM, scale_is_plausible
from client.preflight.noise import sum_noise
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import Rehearsal, copies, flat
from client.preflight.stand_in import stand_in
from shared.model.parameters import modality_of
from shared.privacy.mechanism import Clip

NEVER = 1e-9
STEPS = 3
ENOUGH = 3_000
"""numbers from which the noise of two steps is told from that of three"""
HUGE_NOISE = 1e6
STILL = 1e-4
"""relative to noise of HUGE_NOISE clip norms; the rows themselves can move it by a hundredth of this"""


def empty_batch(rehearsal: Rehearsal) -> Outcome:
    """No rows give exact zeros from the engine; in a round such a step is noised and counted like any other."""
    nobody = rehearsal.samples.take(torch.empty(0, dtype=torch.int64))
    sums = rehearsal.engine.clipped_sum(rehearsal.model, nobody, names=rehearsal.names, clip=Clip(1.0)).sums
    if tuple(sums) != rehearsal.names or any(bool(value.any()) for value in sums.values()):
        return Outcome(False, "the engine's sum over no rows is not exactly zero in every parameter")
    plan = rehearsal.plan(sample_rate=NEVER, steps=STEPS)
    for trained in (rehearsal, stand_in(rehearsal, num_weights=ENOUGH)):
        update = flat(trained.train(trained.samples, plan=plan, noise_seed=0).update)
        std = sum_noise(trained, plan) * STEPS**0.5 * rehearsal.step_size
        if not scale_is_plausible(update, std=std, false_alarm=FALSE_ALARM / 2):
            measured = float(update.square().mean().sqrt()) / std
            return Outcome(False, f"{STEPS} steps that drew nobody have {measured:.3g} of the noise of {STEPS} steps")
    return Outcome(True, f"exact zeros from the engine, and the noise of all {STEPS} steps that drew nobody")


def absent_modality(rehearsal: Rehearsal) -> Outcome:
    """Where no row has a modality, its encoder gets exactly no gradient, and its share of the noise."""
    modalities = rehearsal.run.modalities
    if len(modalities) == 1:
        return Outcome(True, f"the model has one modality, {modalities[0]}, and every row has it")
    plan, faults = rehearsal.plan(), []
    for column, modality in enumerate(modalities):
        present = rehearsal.samples.present.clone()
        present[:, column] = False
        has_other = present.any(dim=1).nonzero().flatten()
        samples = replace(rehearsal.samples, present=present).subset(has_other)
        names = [name for name in rehearsal.names if modality_of(rehearsal.model, name) == modality]
        sums = rehearsal.engine.clipped_sum(rehearsal.model, samples, names=rehearsal.names, clip=Clip(1.0)).sums
        faults += [f"{name} has a gradient without {modality}" for name in names if bool(sums[name].any())]
        update = rehearsal.train(samples, plan=plan, noise_seed=0).update
        std, rate = sum_noise(rehearsal, plan) * rehearsal.step_size, FALSE_ALARM / len(rehearsal.names)
        faults += [
            f"{name} has not the noise it should have without {modality}"
            for name in names
            if not scale_is_plausible(update[name].flatten(), std=std, false_alarm=rate)
        ]
    return Outcome(
        not faults,
        "; ".join(faults[:3]) or f"exact zeros for the encoder of each of {', '.join(modalities)}, and noise on top",
    )


def public_denominator(rehearsal: Rehearsal) -> Outcome:
    """With noise beside which rows do not count, twice as many rows leave the round as it was."""
    plan = rehearsal.plan(noise_multiplier=HUGE_NOISE)
    few, many = (copies(rehearsal.samples, times=(1,) * num) for num in (4, 8))
    first, second = (flat(rehearsal.train(samples, plan=plan, noise_seed=0).update) for samples in (few, many))
    moved = float((first - second).norm() / first.norm().clamp(min=1e-30))
    return Outcome(
        moved <= STILL,
        f"twice the rows scaled the noised sum by {moved:.1e}, allowed {STILL:g}: divided by a public number"
        if moved <= STILL
        else f"twice the rows changed the noised sum by {moved:.2g} of itself: it is divided by a count of rows",
    )
