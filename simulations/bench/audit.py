"""Power of the audit: what its gradient canaries prove about honest code and about code with a quarter of its noise.

in        nothing; `python -m simulations.bench.audit`
out       two Markdown tables on the screen: median lower bounds over the seeds for each claim and number of canaries;
          and which planted faults raise an alarm at claim 1 with 1000 canaries
relies on the generated data set `moods`, its first site, four rounds of one step over all records
"""

import statistics
import tempfile
from pathlib import Path

from client.site import read_site
from server.heldout import load_held_out
from server.settings import read_settings
from simulations.audit.alone import AuditedSite, audited_site
from simulations.audit.canaries import joined
from simulations.audit.run import AuditPlan, gradient_canaries
from simulations.planted_faults import FAULTS, planted
from simulations.scenario import find_scenario, motet_home, read_scenario
from simulations.simulate import prepare_run

CLAIMS = (1.0, 2.0, 8.0)
CANARIES = (300, 1000, 3000)
SEEDS = range(5)
FAULT = "noise-divided-by-four"


def measure() -> list[str]:
    """Lines of the first table, with how many of the seeds gave a bound above the claim."""
    lines = [
        "| claim | canaries | code | one run | Gaussian noise | one threshold | alarms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for claim in CLAIMS:
        audited = first_site(claim)
        for num in CANARIES:
            for fault in (None, FAULT):
                lines.append(_line(audited, claim=claim, num=num, fault=fault))
    return lines


def measure_faults() -> list[str]:
    """Lines of the second table: the highest of the three bounds under each fault."""
    lines = ["| fault | epsilon is at least | alarm |", "| --- | --- | --- |"]
    for fault in FAULTS:
        with planted(fault):
            audited = first_site(1.0)
            found = gradient_canaries(audited, how=AuditPlan())
        highest = max(attack.lower_bound for attack in found)
        lines.append(f"| `{fault}` | {highest:.2f} | {'yes' if highest > audited.plan.epsilon else 'no'} |")
    return lines


def first_site(claim: float) -> AuditedSite:
    """The first site of moods, in four rounds that claim so much."""
    changes = [f"run.privacy.epsilon={claim}", "run.federation.rounds=4"]
    scenario, data_set = read_scenario(find_scenario("moods"), changes=changes, home=motet_home())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        prepare_run(scenario, data_set=data_set, folder=folder, engine="local")
        file = min((folder / "sites").glob("*.toml"))
        held_out = load_held_out(read_settings(folder))
        return audited_site(
            scenario.run, read_site(file), sites=(file.stem,), strangers=joined(held_out.validation, held_out.test)
        )


def _line(audited: AuditedSite, *, claim: float, num: int, fault: str | None) -> str:
    bounds: list[list[float]] = []
    for seed in SEEDS:
        how = AuditPlan(num_canaries=num, seed=seed)
        if fault is None:
            attacks = gradient_canaries(audited, how=how)
        else:
            with planted(fault):
                attacks = gradient_canaries(audited, how=how)
        bounds.append([attack.lower_bound for attack in attacks])
    medians = [f"{statistics.median(column):.2f}" for column in zip(*bounds, strict=True)]
    alarms = sum(max(found) > audited.plan.epsilon for found in bounds)
    return f"| {claim:g} | {num} | {fault or 'honest'} | {' | '.join(medians)} | {alarms} of {len(bounds)} |"


if __name__ == "__main__":
    print("\n".join([*measure(), "", *measure_faults()]))
