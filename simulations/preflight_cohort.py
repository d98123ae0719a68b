"""Preflight of cohorts: sites that are trained in one pass get what each would have been given by itself.

in        a RunConfig
out       the PreflightCheck cohort-gives-the-same, for `motet preflight` and for `motet simulate` where cohorts train
relies on train_round with the reference engine, one backward pass a row, which other checks look at

| check                 | measures                                                                               |
| cohort-gives-the-same | rounds of three sites trained together against a round of each alone, noise included   |
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from client import cohort_training, private_training
from client.cohort_training import Member
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import Rehearsal, flat, rehearse
from client.private_training import TrainedRound
from shared.config import RunConfig, TrainingSettings
from shared.errors import ModelError
from shared.preflight import PreflightCheck
from shared.privacy.noise import reproducible_source

NAME = "cohort-gives-the-same"
TOLERANCE = 1e-3
"""of an update's length; float32 gradients by two ways differ by 1e-6 to 1e-4"""
COUNTED_ALIKE = 1e-6
"""of the share within the clip norm; one contribution moves it by 1/1000 or more"""
ROWS = ((0, 1), (1, 2, 3, 4, 5, 6), (4, 5, 6, 7))
"""made-up rows of each site; sites of one size would hide whose rows pad"""
SCALES = (1.0, 0.5, 3.0)
"""clip norms, in the run's own"""
DENOMINATORS = (4.0, 10.0, 7.0)
STEPS = (2, 3, 2)
"""more than one, for weights that differ; one site makes more than the others"""
CHANCE = 0.6
NOISE = (2.0, 5.0, 9.0)
"""length of a step's noise over all weights, in clip norms: neither it nor the contributions hide in the other"""
STEP_LENGTH = 0.1
"""about how far a contribution of the run's clip norm moves the weights"""


def cohort_checks(run: RunConfig, *, only: Collection[str] | None = None) -> tuple[PreflightCheck, ...]:
    """What cohorts are tried out for; nothing if it is not among those named."""
    if only is not None and NAME not in only:
        return ()
    try:
        with rehearse(run) as rehearsal:
            outcome = cohort_gives_the_same(rehearsal, modality_dropout=run.model.modality_dropout)
    except Exception as error:  # noqa: BLE001  whatever breaks a check, the run is not shown to be sound
        outcome = Outcome(False, f"could not be carried out: {type(error).__name__}: {error}")
    return (PreflightCheck(name=NAME, passed=outcome.passed, detail=outcome.detail),)


def cohort_gives_the_same(rehearsal: Rehearsal, *, modality_dropout: float = 0.0) -> Outcome:
    """Three sites that differ in all they may differ in get together what each gets alone from the reference."""
    training, members = _training(rehearsal), _members(rehearsal)
    why = cohort_training.why_apart(rehearsal.model, names=rehearsal.names, training=training, plan=members[0].plan)
    if why is not None:
        return Outcome(True, f"sites are trained one by one: {why}")
    try:
        # by its module, so that what is tried out is what the cohort engine calls
        together = cohort_training.train_cohort(
            rehearsal.model,
            members,
            names=rehearsal.names,
            training=training,
            round_number=1,
            rounds=1,
            modality_dropout=modality_dropout,
        )
    except ModelError as error:
        return Outcome(True, f"sites are trained one by one: {error}")
    worst, fault = _compared(rehearsal, together, training=training, modality_dropout=modality_dropout)
    return Outcome(
        not fault and worst <= TOLERANCE,
        fault
        or f"updates of {len(members)} sites differ from those of each site alone by {worst:.1e} of their length, "
        f"allowed {TOLERANCE:g}",
    )


def _compared(
    rehearsal: Rehearsal, together: Sequence[TrainedRound], *, training: TrainingSettings, modality_dropout: float
) -> tuple[float, str]:
    """The largest relative difference from a round of each site by itself, and what else is wrong."""
    worst, reference = 0.0, training.model_copy(update={"gradient_engine": "reference"})
    for number, (member, found) in enumerate(zip(_members(rehearsal), together, strict=True), start=1):
        wanted = private_training.train_round(
            rehearsal.model,
            member.samples,
            names=rehearsal.names,
            training=reference,
            plan=member.plan,
            nominal_size=member.nominal_size,
            round_number=1,
            rounds=1,
            modality_dropout=modality_dropout,
            noise=member.noise,
            sampling=member.sampling,
        )
        whole = flat(wanted.update)
        moved = float((flat(found.update) - whole).norm() / whole.norm().clamp(min=1e-30))
        worst = max(worst, moved if math.isfinite(moved) else math.inf)
        shares = [math.nan if each.unclipped_share is None else each.unclipped_share for each in (found, wanted)]
        if not math.isclose(*shares, rel_tol=0, abs_tol=COUNTED_ALIKE) and not all(map(math.isnan, shares)):
            return worst, f"site {number} says that {shares[0]:.4g} were within the norm; alone it says {shares[1]:.4g}"
    return worst, ""


def _training(rehearsal: Rehearsal) -> TrainingSettings:
    """Steps with a memory of those before, small enough for the model to stay what it is."""
    privacy = rehearsal.run.local_privacy
    return TrainingSettings(
        optimizer="momentum",
        learning_rate=STEP_LENGTH * DENOMINATORS[0] / (privacy.clip_norm if privacy is not None else 1.0),
        sample_rate=CHANCE,
        local_steps=max(STEPS),
        proximal_mu=0.01,
        gradient_engine=rehearsal.run.training.gradient_engine,
        records_per_subject=rehearsal.run.training.records_per_subject,
    )


def _members(rehearsal: Rehearsal) -> list[Member]:
    """The three sites at the start of their round."""
    members, private = [], rehearsal.run.local_privacy is not None
    for site, rows in enumerate(ROWS):
        plan = None
        if private:
            plan = rehearsal.plan(sample_rate=CHANCE, steps=STEPS[site])
            plan = replace(
                plan,
                clip_norm=plan.clip_norm * SCALES[site],
                expected_batch_size=DENOMINATORS[site],
                noise_multiplier=NOISE[site] / math.sqrt(rehearsal.num_weights),
            )
        noise, sampling = (
            reproducible_source(site, purpose=f"preflight/cohort/{purpose}") for purpose in ("noise", "sampling")
        )
        size = int(DENOMINATORS[site])
        members.append(Member(rehearsal.samples.subset(torch.tensor(rows)), plan, size, noise, sampling))
    return members
