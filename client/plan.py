"""Plan: how one site protects its units in every round of one run, fixed before the first.

in        what the run asks, what the owner permits, what the ledger says was spent
out       a PrivacyPlan; or a refusal, where the owner's budget does not cover the run
relies on shared/privacy/accountant.py; the ledger is read here and never written
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.config import Clipping, NoiseKind, PrivacySettings, TrainingSettings, Unit
from shared.privacy.accountant import Accountant, MechanismUse, calibrate_noise, spent_epsilon


@dataclass(frozen=True)
class PrivacyPlan:
    """How one site protects its units in every round of one run; fixed before the first."""

    unit: Unit
    epsilon: float
    """bound on what all planned rounds together reveal, at `delta`"""
    delta: float
    clip_norm: float
    noise_multiplier: float
    """noise standard deviation divided by clip_norm"""
    sample_rate: float
    """chance that a unit enters a step"""
    expected_batch_size: float
    """public: sample_rate times the nominal size"""
    steps_per_round: int
    planned_rounds: int
    accountant: Accountant
    clipping: Clipping = "flat"
    records_per_unit: int = 1
    """records drawn of each sampled unit, averaged and clipped together; above 1 for subjects only"""
    noise: NoiseKind = "float64"

    def uses(self, rounds: int) -> MechanismUse:
        """The mechanism of so many rounds."""
        return MechanismUse(self.noise_multiplier, self.sample_rate, self.steps_per_round * rounds)


def make_plan(
    *,
    training: TrainingSettings,
    privacy: PrivacySettings,
    nominal_size: int,
    planned_rounds: int,
    site_epsilon: float,
    site_delta: float,
    before: Sequence[MechanismUse] = (),
    least_noise: float = 0.0,
    agreed_noise: float | None = None,
) -> PrivacyPlan:
    """The plan that keeps both the run's epsilon and the site's, calibrated once for all planned rounds.

    Promise: the run's rounds alone stay within the smaller epsilon at the smaller delta; together with `before` they
    stay within the site's epsilon.

    Args:
        before: what the ledger holds about this data set already.
        least_noise: the owner's floor under the noise multiplier.
        agreed_noise: the multiplier that the run's first round was given; it is kept, and nothing is calibrated.

    Raises:
        BudgetError: nothing, or too little, is left at the site.
    """
    delta = min(privacy.delta, site_delta)
    rate, steps = training.sampling(nominal_size), training.steps(nominal_size)

    def needed(epsilon: float, uses: Sequence[MechanismUse]) -> float:
        return calibrate_noise(
            epsilon=epsilon,
            delta=delta,
            sample_rate=rate,
            steps=steps * planned_rounds,
            accountant=privacy.accountant,
            before=uses,
        )

    # PRIVACY: the stricter of the run and the owner wins. test_the_stricter_budget_wins
    noise = agreed_noise or max(
        needed(min(privacy.epsilon, site_epsilon), ()),
        needed(site_epsilon, before) if before else 0.0,
        # PRIVACY: at tiny sampling rates a good epsilon needs almost no noise, and whoever is drawn once is shown.
        # test_the_owners_floor_under_the_noise_holds
        least_noise,
    )
    use = MechanismUse(noise, rate, steps * planned_rounds)
    return PrivacyPlan(
        unit=privacy.unit,
        epsilon=spent_epsilon([use], delta=delta, accountant=privacy.accountant),
        delta=delta,
        clip_norm=privacy.clip_norm,
        noise_multiplier=noise,
        sample_rate=rate,
        # PRIVACY: from the declared size, not from counting rows. test_denominator_is_public
        expected_batch_size=rate * nominal_size,
        steps_per_round=steps,
        planned_rounds=planned_rounds,
        accountant=privacy.accountant,
    )
