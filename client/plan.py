"""Plan: how one site protects its units in every round of one run, fixed before the first.

in        what the run asks, what the owner permits, what the ledger says was spent
out       a PrivacyPlan, read by agent.py and private_training.py; or a refusal, where the budget does not cover the run
relies on shared/privacy/accountant.py; nothing is read or written here
"""

from collections.abc import Sequence
from dataclasses import dataclass

from client.site import ShortBudget
from shared.config import Clipping, NoiseKind, PrivacySettings, StatisticsSettings, TrainingSettings, Unit
from shared.errors import BudgetError
from shared.privacy.accountant import Accountant, MechanismUse, calibrate_noise, spent_epsilon


@dataclass(frozen=True)
class PrivacyPlan:
    """How one site protects its units in every round of one run; fixed before the first."""

    unit: Unit
    epsilon: float
    """bound on what all planned rounds, and the counts where the run asks for them, together reveal at `delta`"""
    delta: float
    clip_norm: float
    noise_multiplier: float
    """noise standard deviation divided by clip_norm"""
    sample_rate: float
    """chance that a unit enters a step"""
    expected_batch_size: float
    """public: sample_rate times the nominal number of units"""
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


@dataclass(frozen=True)
class _Terms:
    """What a run's rounds cost at one site, for any noise."""

    epsilon: float
    """the stricter of the run's and the owner's, for this run alone"""
    cap: float
    """the owner's, for all runs together"""
    delta: float
    sample_rate: float
    steps: int
    """of one round"""
    rounds: int
    counts: tuple[MechanismUse, ...]
    """the run's noisy counts, paid for out of the same epsilon"""
    accountant: Accountant

    def spent(self, multiplier: float, *, rounds: int, before: Sequence[MechanismUse] = ()) -> float:
        """Bound on epsilon of what was before, the counts, and so many rounds."""
        use = MechanismUse(multiplier, self.sample_rate, self.steps * rounds)
        return spent_epsilon([*before, *self.counts, use], delta=self.delta, accountant=self.accountant)

    def calibrated(self, epsilon: float, *, before: Sequence[MechanismUse] = ()) -> float:
        """The least noise with which all planned rounds, the counts and what was before stay within an epsilon."""
        return calibrate_noise(
            epsilon=epsilon,
            delta=self.delta,
            sample_rate=self.sample_rate,
            steps=self.steps * self.rounds,
            accountant=self.accountant,
            before=[*before, *self.counts],
        )


def make_plan(
    *,
    training: TrainingSettings,
    privacy: PrivacySettings,
    unit: Unit,
    nominal_units: int,
    planned_rounds: int,
    site_epsilon: float,
    site_delta: float,
    before: Sequence[MechanismUse] = (),
    statistics: StatisticsSettings | None = None,
    counted: Sequence[MechanismUse] = (),
    on_short_budget: ShortBudget = "refuse",
    least_noise: float = 0.0,
    noise: NoiseKind = "float64",
    agreed_noise: float | None = None,
) -> PrivacyPlan:
    """The plan that keeps both the run's epsilon and the site's, calibrated once for all planned rounds.

    Promise: the run's counts and rounds alone stay within the smaller epsilon at the smaller delta. Together with
    `before` they stay within the site's epsilon, but with "fewer-rounds" it is the ledger's cap that ends the run.

    Args:
        unit: what is protected here; it may be stricter than the run's.
        nominal_units: the owner's public number of those units; nothing follows from counting rows.
        before: what other runs have spent on this data set, as it protects `unit`.
        counted: what the run's requests for counts have cost; nothing as long as it has not asked.
        least_noise: the owner's floor under the noise multiplier.
        agreed_noise: the multiplier that the run's first round was given; it is kept, and nothing is calibrated.

    Raises:
        BudgetError: nothing, or too little, is left at the site; or the run was calibrated for fewer rounds.
    """
    # PRIVACY: the counts are paid for whether or not they were asked yet. test_counts_are_paid_out_of_the_runs_epsilon
    counts = tuple(counted) or ((counts_use(statistics, least_noise=least_noise),) if statistics else ())
    site = (site_epsilon, site_delta)
    terms = _terms(training, privacy=privacy, units=nominal_units, rounds=planned_rounds, site=site, counts=counts)
    # PRIVACY: from the declared number, not from counting rows. test_denominator_is_public
    expected = terms.sample_rate * nominal_units
    if agreed_noise is not None:
        multiplier = _kept_noise(terms, agreed=agreed_noise, least=least_noise)
    else:
        multiplier = _fitting_noise(terms, before=before, least=least_noise, short=on_short_budget, most=expected)
    return PrivacyPlan(
        unit=unit,
        epsilon=terms.spent(multiplier, rounds=planned_rounds),
        delta=terms.delta,
        clip_norm=privacy.clip_norm,
        noise_multiplier=multiplier,
        sample_rate=terms.sample_rate,
        expected_batch_size=expected,
        steps_per_round=terms.steps,
        planned_rounds=planned_rounds,
        accountant=terms.accountant,
        clipping=privacy.clipping,
        records_per_unit=training.records_per_subject if unit == "subject" else 1,
        noise=noise,
    )


def counts_use(statistics: StatisticsSettings, *, least_noise: float) -> MechanismUse:
    """What one answer with noisy counts costs: one sum over all units, which each of them moves by at most 1."""
    return MechanismUse(max(statistics.noise_multiplier, least_noise), 1.0, 1)


def _terms(
    training: TrainingSettings,
    *,
    privacy: PrivacySettings,
    units: int,
    rounds: int,
    site: tuple[float, float],
    counts: tuple[MechanismUse, ...],
) -> _Terms:
    """The terms of a run at a site with so many units and its own epsilon and delta."""
    return _Terms(
        # PRIVACY: the stricter of the run and the owner wins. test_the_stricter_budget_wins
        epsilon=min(privacy.epsilon, site[0]),
        cap=site[0],
        delta=min(privacy.delta, site[1]),
        sample_rate=training.sampling(units),
        steps=training.steps(units),
        rounds=rounds,
        counts=counts,
        accountant=privacy.accountant,
    )


def _fitting_noise(
    terms: _Terms, *, before: Sequence[MechanismUse], least: float, short: ShortBudget, most: float
) -> float:
    """The noise multiplier of a run that begins; with "more-noise" at most `most`, above which nothing is learned.

    That the run's epsilon or the owner's is the smaller one is no shortage; that other runs have left too little is.
    """
    # PRIVACY: at tiny sampling rates a good epsilon needs almost no noise, and whoever is drawn once is shown.
    # test_the_owners_floor_under_the_noise_holds
    own = max(terms.calibrated(terms.epsilon), least)
    # PRIVACY: what other runs spent counts. test_whatever_the_owner_chose_the_total_stays_within_the_cap
    if terms.spent(own, rounds=terms.rounds, before=before) <= terms.cap:
        return own
    if short == "fewer-rounds" and terms.spent(own, rounds=1, before=before) <= terms.cap:
        return own
    if short == "more-noise" and (more := terms.calibrated(terms.cap, before=before)) <= most:
        return max(own, more)
    raise BudgetError(
        f"too little of epsilon {terms.cap:.4g} is left for {terms.rounds} rounds with noise multiplier {own:.4g}; "
        f'privacy.on_short_budget is "{short}"'
    )


def _kept_noise(terms: _Terms, *, agreed: float, least: float) -> float:
    """The noise multiplier of a run that goes on, if all its rounds still keep what was promised of them."""
    # PRIVACY: more rounds than were calibrated for would pass the run's epsilon.
    # test_agreed_noise_buys_no_further_rounds
    if agreed < least or terms.spent(agreed, rounds=terms.rounds) > terms.epsilon:
        raise BudgetError(
            f"the run's first round was given noise multiplier {agreed:.4g}: too little for {terms.rounds} rounds at "
            f"epsilon {terms.epsilon:.4g} and the owner's floor of {least:g}; start another run"
        )
    return agreed
