"""Announcement: what a run is going to do and to cost, printed before a site is asked to open its data.

in        the Plan, the run's settings, the protection of whole sites where there is one
out       lines for the terminal
relies on public numbers alone; a site whose owner allows less, or that has spent before, adds more noise or refuses
"""

from server.plan import Central, Plan
from server.report.numbers import count_text, delta_text
from shared.config import RunConfig
from shared.privacy.accountant import MechanismUse, calibrate_noise


def announcement(plan: Plan, *, run: RunConfig, central: Central | None) -> list[str]:
    """Sites and rounds, then for each unit that is protected: epsilon, delta, noise multiplier, sampling rate."""
    asked = "each drawn in secret, round by round" if plan.rounds is None else _asked(plan)
    lines = [f"plan: {count_text(len(plan.sites), 'site')}, {count_text(run.federation.rounds, 'round')}, {asked}"]
    if run.local_privacy is not None:
        lines.append(_local(plan, run=run))
    if central is not None:
        privacy = central.plan.privacy
        lines.append(
            f"each site: epsilon {privacy.epsilon:g} at delta {delta_text(privacy.delta)}; noise "
            f"{central.plan.noise_multiplier:.3g} on the sum of updates, rate {central.plan.sample_rate:g}"
        )
    if run.privacy == "none":
        lines.append("NOT PRIVATE: no update will be protected")
    return lines


def _asked(plan: Plan) -> str:
    fewest, most = min(plan.planned.values()), max(plan.planned.values())
    return f"each asked {most if fewest == most else f'{fewest} or {most}'} time{'' if most == 1 else 's'}"


def _local(plan: Plan, *, run: RunConfig) -> str:
    """The mechanism at the sites; where they differ, the range between the smallest site's and the largest's."""
    privacy = run.local_privacy
    sizes = sorted((site.nominal_size, site.site) for site in plan.sites if site.nominal_size is not None)
    if privacy is None or not sizes:
        return "each site protects its records by what its owner declares"
    uses = [_use(size, run=run, rounds=plan.planned[name]) for size, name in dict.fromkeys((sizes[0], sizes[-1]))]
    noise = _range([f"{use.noise_multiplier:.3g}" for use in uses])
    rate, steps = _range([f"{use.sample_rate:.3g}" for use in uses]), _range([f"{use.steps}" for use in uses])
    return (
        f"each {privacy.unit}: epsilon {privacy.epsilon:g} at delta {delta_text(privacy.delta)}; "
        f"noise {noise} or more, rate {rate}, {steps} steps"
    )


def _use(nominal_size: int, *, run: RunConfig, rounds: int) -> MechanismUse:
    """What a site comes to whose owner allows all that is asked."""
    privacy, rate = run.local_privacy, run.training.sampling(nominal_size)
    steps = run.training.steps(nominal_size) * rounds
    if privacy is None:
        return MechanismUse(0.0, rate, steps)
    counts = () if run.statistics is None else (MechanismUse(run.statistics.noise_multiplier, 1.0, 1),)
    noise = calibrate_noise(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=rate,
        steps=steps,
        accountant=privacy.accountant,
        before=counts,
    )
    return MechanismUse(noise, rate, steps)


def _range(values: list[str]) -> str:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else " to ".join(sorted(distinct, key=float))
