"""Made contributions of modalities, for the records of made_records.py."""

from server.headline import headline_of
from server.records import Contribution, Contributions, Scores
from shared.config import RunConfig


def made_contributions(run: RunConfig, overall: Scores) -> Contributions | None:
    """The first modality brings most, the last a little less than nothing."""
    names, metric = run.modalities, headline_of(run.data)
    if len(names) < 2:
        return None
    everything = overall.metrics[metric.main].value
    nothing = 2.5 * everything if metric.is_error else 0.1 * everything
    parts = [abs(everything - nothing) * share for share in (0.7, *[0.4 / (len(names) - 1)] * (len(names) - 2), -0.1)]
    parts[0] += abs(everything - nothing) - sum(parts)
    return Contributions(
        metric=metric.main,
        everything=everything,
        nothing=nothing,
        by_modality={
            name: Contribution(shapley=part, drop_one=part * 0.6) for name, part in zip(names, parts, strict=True)
        },
    )
