"""Sampling: whoever enters a step was drawn by a coin of its own, of the stated rate, however many rows it has.

in        a Rehearsal, whose plan says what a unit is and how many of its records are drawn
out       Outcome of poisson-sampling
relies on train_round taking every batch from its Samples by `take`, where stand_in.py watches it
"""

from collections import Counter
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from client.plan import PrivacyPlan
from client.preflight.chance import coins_are_plausible
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import Rehearsal
from client.preflight.stand_in import stand_in, watched_samples

NUM_UNITS = 40
STEPS = 100
CHANCE = 0.3
MOST_ROWS = 4
"""of a subject; the first has one, the next two, and so on, round and round"""


def poisson_sampling(rehearsal: Rehearsal) -> Outcome:
    """In a long round every unit enters every step independently, at the plan's rate; at rate 1, always."""
    plan = rehearsal.plan(sample_rate=CHANCE, steps=STEPS)
    entered, fault = _entered(rehearsal, plan=plan)
    fault = fault or coins_are_plausible(entered, chance=CHANCE)
    always, more = _entered(rehearsal, plan=replace(plan, sample_rate=1.0, steps_per_round=2))
    fault = fault or more or ("" if bool(always.all()) else "at sampling rate 1 somebody was left out")
    return Outcome(
        not fault,
        fault
        or f"{STEPS} steps over {NUM_UNITS} {plan.unit}s: sizes, shares and neighbours as of independent coins of "
        f"{CHANCE}",
    )


def _entered(rehearsal: Rehearsal, *, plan: PrivacyPlan) -> tuple[Int[Tensor, "T N"], str]:
    """Which unit entered which step of a round, and what was wrong with its rows."""
    subjects = plan.unit == "subject"
    owners = [unit for unit in range(NUM_UNITS) for _ in range(1 + unit % MOST_ROWS if subjects else 1)]
    samples = watched_samples(owners)
    stand_in(rehearsal, num_weights=1).train(samples, plan=plan, noise_seed=0)
    entered = torch.zeros(plan.steps_per_round, NUM_UNITS, dtype=torch.int64)
    if len(samples.taken) != len(entered):
        return entered, f"{len(samples.taken)} batches in a round of {len(entered)} steps"
    fault = ""
    for step, rows in enumerate(samples.taken):
        units = Counter(owners[row] for row in rows.tolist())
        if any(count != plan.records_per_unit for count in units.values()):
            fault = f"a {plan.unit} entered with another number of rows than {plan.records_per_unit}"
        entered[step, list(units)] = 1
    return entered, fault
