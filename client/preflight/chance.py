"""Chance: how unlikely a measurement is, if the code does what the accountant assumes.

in        noise that was measured, and the scale it should have; counts, and the rate they should have
out       plausible or not, with a stated rate of false alarms
relies on scipy's incomplete gamma function
"""

import math

from jaxtyping import Float, Int
from scipy.special import gammainc, gammaincc
from torch import Tensor

FALSE_ALARM = 1e-6
"""how often a check raises an alarm about code that is right; shared out where one check makes several tests"""
ENOUGH = 20_000
"""normal numbers from which a scale 5 % off is told with near certainty, either way"""


def scale_is_plausible(numbers: Float[Tensor, "N"], *, std: float, false_alarm: float = FALSE_ALARM) -> bool:
    """Whether independent normal numbers of mean 0 may have this standard deviation: chi-square of N, two-sided."""
    energy = float((numbers.double() / std).square().sum())
    return chi_square_is_plausible(energy, degrees=numbers.numel(), false_alarm=false_alarm)


def chi_square_is_plausible(
    statistic: float, *, degrees: int, false_alarm: float = FALSE_ALARM, can_be_small: bool = False
) -> bool:
    """Whether a sum of so many squared standard normal numbers may come out like this.

    Two-sided, half of the false alarms on either side; with `can_be_small` only the upper side is looked at.
    """
    if not math.isfinite(statistic):
        return False
    below, above = gammainc(degrees / 2, statistic / 2), gammaincc(degrees / 2, statistic / 2)
    return bool(above > false_alarm / 2 and (can_be_small or below > false_alarm / 2))


def coins_are_plausible(entered: Int[Tensor, "T N"], *, chance: float, false_alarm: float = FALSE_ALARM) -> str:
    """Nothing if each of N units may have entered each of T steps by a coin of its own; else what is wrong.

    Four chi-squares share the rate of false alarms: sizes of the batches (too even: a fixed size; too uneven: units
    that enter together), how often each unit entered (weights), how often two steps in a row (epochs), and the mean.
    """
    steps, units = entered.shape
    spread = chance * (1 - chance)
    centred = entered.double() - chance
    sizes = centred.sum(dim=1).square() / (units * spread)
    often = centred.sum(dim=0).square() / (steps * spread)
    in_a_row = (centred[1:] * centred[:-1]).sum().square() / (units * (steps - 1) * spread**2)
    mean = centred.sum().square() / (units * steps * spread)
    rate = false_alarm / 4
    for statistic, degrees, fault in (
        (sizes.sum(), steps, "sizes of the batches do not vary as those of independent coins"),
        (often.sum(), units, "some units enter more often than others, or all too equally often"),
        (in_a_row, 1, "who entered one step tells who enters the next"),
        (mean, 1, "units do not enter at the stated rate"),
    ):
        # a count may well be its mean exactly, so that one of them alone is never too close to it
        plausible = chi_square_is_plausible(
            float(statistic), degrees=degrees, false_alarm=rate if degrees > 1 else 2 * rate, can_be_small=degrees == 1
        )
        if not plausible:
            return f"{fault} (chi-square {float(statistic):.3g} of {degrees})"
    return ""
