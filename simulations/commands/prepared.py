"""Prepared: a scenario's name and the changes to it become a run folder; what several commands begin with.

in        what a person typed
out       the folder, made
relies on simulations/simulate.py, imported only when a command needs it
"""

from pathlib import Path


def prepared(
    scenario: str,
    *,
    out: Path | None,
    engine: str,
    seed: int | None,
    changes: list[str],
    parts: list[Path],
    num_sites: int | None = None,
    site_cap_epsilon: float | None = None,
    runs: Path = Path("runs"),
) -> Path:
    """The run folder: `out`, or NAME-TIME in `runs`.

    Raises:
        MotetError: the scenario is not allowed, or the folder is not empty.
    """
    from datetime import datetime

    from simulations.scenario import find_scenario, motet_home, read_scenario
    from simulations.simulate import prepare_run

    if seed is not None:
        changes = [*changes, f"run.seed={seed}"]
    settings, data_set = read_scenario(find_scenario(scenario), changes=changes, home=motet_home())
    folder = out or runs / f"{settings.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
    prepare_run(
        settings,
        data_set=data_set,
        folder=folder,
        engine=engine,
        extensions=parts,
        num_sites=num_sites,
        site_cap_epsilon=site_cap_epsilon,
    )
    return folder
