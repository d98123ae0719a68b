"""What a soak counts: a round that was used and not paid for is seen, and so is what was paid and not used."""

from pathlib import Path

from server.records import RoundRecord, SiteRound
from shared import flower_commands
from shared.flower_commands import Tls
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import LedgerRow, State
from simulations.bench.soak import over_time, spend_of
from simulations.bench.soak_site import kind_of

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


def test_each_program_is_counted_as_what_it_is() -> None:
    """Their options name one another."""
    path = Path("/motet/agent/superlink/x")
    tls = Tls(ca=path, certificate=path, key=path)
    commands = {
        "supernode": flower_commands.supernode(
            server="localhost:1", ca=path, key=path, runtime_port=2, config={"agent": str(path)}
        ),
        "superlink": flower_commands.superlink(listen="localhost", port=1, tls=tls, database=path, secret=path),
        "superexec": flower_commands.superexec(address="localhost:1", ca=path, secret=path),
        "agent": ("python", "-m", "motet", "agent", "start", str(path)),
        "supervisor": ("python", "-m", "motet", "node", "start", str(path)),
        "serverapp": ("python", "/bin/flwr-serverapp", "--serverappio-api-address", "localhost"),
        "clientapp": ("python", "/bin/flwr-clientapp", "--clientappio-api-address", "localhost"),
    }
    assert {kind: kind_of(" ".join(command)) for kind, command in commands.items()} == {kind: kind for kind in commands}
