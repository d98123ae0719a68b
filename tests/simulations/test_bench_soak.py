"""What a soak counts: a round that was used and not paid for is seen, and so is what was paid and not used."""

from server.records import RoundRecord, SiteRound
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import LedgerRow, State
from simulations.bench.soak import over_time, spend_of

USE = MechanismUse(noise_multiplier=2.0, sample_rate=1.0, steps=1)
RECORDS = [
    RoundRecord(round=1, seconds=1.0, sites=(SiteRound(site="a", outcome="used"), SiteRound(site="b", outcome="late"))),
    RoundRecord(round=2, seconds=1.0, sites=(SiteRound(site="a", outcome="late"), SiteRound(site="b", outcome="used"))),
    RoundRecord(round=3, seconds=1.0, sites=(SiteRound(site="a", outcome="used"), SiteRound(site="b", outcome="used"))),
]


def row(number: int, state: State = "released", *, attempt: int = 0) -> LedgerRow:
    return LedgerRow(number, "photos", "record", "gaussian", USE, "run", number, attempt, "2026-11-22", state, None)


def test_what_was_paid_and_not_used_is_overstated_and_the_other_way_round_is_understated() -> None:
    whole = spend_of("a", rows=[row(1), row(2, "reserved"), row(3)], records=RECORDS, told=1.0)
    assert (whole.used, whole.paid, whole.understated) == (2, 3, 0)

    lacking = spend_of("a", rows=[row(1), row(2), row(3, "void")], records=RECORDS, told=1.0)
    # as many rows as rounds, and one of those that were used is not among them
    assert (lacking.used, lacking.paid, lacking.understated) == (2, 2, 1)
    assert lacking.epsilon_ledger < whole.epsilon_ledger


def test_memory_over_time_is_in_parts_of_the_whole_time() -> None:
    samples = [(float(second), {"agent": (100 + second) * 2**20}) for second in range(101)]
    samples[50] = (50.0, {"agent": 150 * 2**20, "superlink": 7 * 2**20})
    found = over_time(samples, parts=2)
    assert found == {"agent": (124.5, 175.0), "superlink": (7.0,)}
    assert over_time([]) == {}
