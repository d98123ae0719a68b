"""What a run writes down about each site's protection follows from what the site stated, and from nothing else."""

import pytest

from server.plan import Plan
from server.privacy_summary import summarise_privacy
from server.records import Outcome, RoundRecord, SitePrivacy, SiteRound
from shared.config import RunConfig
from shared.messages import PROTOCOL_VERSION, Hello, PrivacyStatement, ReplyHeader, StatisticsReply
from shared.model.exchange import Exchange
from shared.privacy.accountant import Accountant, MechanismUse, spent_epsilon
from tests.server.conftest import RECORD, SITE, protected_run

RUN = protected_run(changes={"privacy": RECORD})
HELLO = Hello(protocol_version=PROTOCOL_VERSION, site="a", modalities=("left",), nominal_size=30)
PLAN = Plan(sites=(HELLO,), rounds=(("a",),) * 4, planned={"a": 4}, exchanges={"a": Exchange(("w",), ())})


def statement(*, epsilon: float, accountant: str = "rdp", noise: float = 5.0, **changes: object) -> PrivacyStatement:
    said = {
        "unit": "record", "epsilon": epsilon, "delta": 1e-3, "clip_norm": 1.0, "noise_multiplier": noise,
        "sample_rate": 0.5, "steps_per_round": 2, "accountant": accountant, "reproducible_noise": False, **changes,
    }  # fmt: skip
    return PrivacyStatement.model_validate(said)


def a_round(number: int, outcome: Outcome, privacy: PrivacyStatement | None = None) -> RoundRecord:
    header = ReplyHeader(
        protocol_version=PROTOCOL_VERSION, run_id="r", round_number=number, nominal_size=30, privacy=privacy
    )
    site = SiteRound(site="a", outcome=outcome, header=header if outcome == "used" else None)
    return RoundRecord(round=number, seconds=1.0, sites=(site,))


def summary(
    *rounds: RoundRecord, counts: StatisticsReply | None = None, run: RunConfig = RUN, plan: Plan = PLAN
) -> tuple[SitePrivacy, ...]:
    return summarise_privacy(rounds, run=run, plan=plan, statistics={"a": counts} if counts else {})


@pytest.mark.parametrize(("own", "other"), [("pld", "prv"), ("prv", "pld"), ("rdp", "pld")])
def test_what_came_back_is_composed_by_the_sites_accountant_and_by_another(own: Accountant, other: Accountant) -> None:
    said = [statement(epsilon=9.0 + number, accountant=own, epsilon_before=4.0, cap_epsilon=20.0) for number in (1, 2)]
    (site,) = summary(a_round(1, "used", said[0]), a_round(2, "late"), a_round(3, "used", said[1]))
    uses = [MechanismUse(5.0, 0.5, 4)]
    assert site.epsilon == 11.0
    assert site.steps == 4
    assert site.run_epsilon == spent_epsilon(uses, delta=1e-3, accountant=own)
    assert (site.second_epsilon, site.second_accountant) == (spent_epsilon(uses, delta=1e-3, accountant=other), other)
    assert (site.epsilon_before, site.cap_epsilon) == (4.0, 20.0)


def test_what_an_owner_does_not_tell_is_not_in_the_summary() -> None:
    (site,) = summary(a_round(1, "used", statement(epsilon=1.0)))
    assert (site.epsilon_before, site.cap_epsilon) == (None, None)


def test_counts_are_part_of_what_a_run_has_cost() -> None:
    counts = StatisticsReply(
        protocol_version=PROTOCOL_VERSION, run_id="r", counts=(1.0,), privacy=statement(epsilon=1.0, noise=4.0)
    )
    one = a_round(1, "used", statement(epsilon=2.0))
    (without,), (with_counts,) = summary(one), summary(one, counts=counts)
    uses = [MechanismUse(5.0, 0.5, 2), MechanismUse(4.0, 1.0, 1)]
    assert with_counts.run_epsilon == spent_epsilon(uses, delta=1e-3, accountant="rdp")
    assert without.run_epsilon is not None
    assert with_counts.run_epsilon > without.run_epsilon
    assert with_counts.steps == without.steps


@pytest.mark.parametrize(
    ("outcomes", "left"),
    [
        (["used", "used", "used"], None),
        (["used", "refused", "refused"], 1),
        (["used", "not-asked", "refused"], 1),
        (["used", "refused", "used"], None),
        (["used", "late", "refused"], None),
        (["used", "not-asked"], None),
    ],
)
def test_a_site_that_refuses_all_that_follows_has_left(outcomes: list[Outcome], left: int | None) -> None:
    said = statement(epsilon=1.0)
    rounds = [a_round(number, outcome, said) for number, outcome in enumerate(outcomes, start=1)]
    assert summary(*rounds)[0].left_after_round == left


def test_a_secret_draw_shows_what_was_planned_for_each_site_and_never_what_was_drawn() -> None:
    run = protected_run(changes={"privacy": RECORD, "site_privacy": SITE}, site_sample_rate=0.5)
    plan = Plan(sites=(HELLO,), rounds=None, planned={"a": 4}, exchanges={"a": Exchange(("w",), ())})
    withheld = [a_round(number, "withheld") for number in (1, 2)]
    (site,) = summary(*withheld, run=run, plan=plan)
    assert summary(run=run, plan=plan) == (site,)
    assert (site.steps, site.nominal_size, site.unit) == (4, 30, "record")
    assert site.epsilon == site.run_epsilon
    assert 7.9 < site.epsilon <= 8.0
    assert spent_epsilon([MechanismUse(site.noise_multiplier, 1.0, 4)], delta=1e-3, accountant="rdp") == site.epsilon


def test_a_run_whose_sites_add_no_noise_has_no_summary_of_theirs() -> None:
    assert summary(a_round(1, "used"), run=protected_run(changes={"privacy": SITE})) == ()
