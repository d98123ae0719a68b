"""Aggregation: the updates of one round, by parameter, become one step of the global model.

in        one update after the other, each with the parameters that this site trained, already checked by wire.py
out       one update, then new weights through the server optimiser
relies on every update being finite and of the model's shapes

A mean, and one of updates cut to a fixed norm, is a running sum: an update can be dropped as soon as it is added. All
other rules compare the updates and keep them to the end of the round: as many float32 numbers as all sites have sent.

| rule | file | hostile sites that it bears, of n | memory |
| --- | --- | --- | --- |
| mean | running_mean.py | none | one update |
| median, trimmed-mean | coordinate_wise.py | fewer than n/2; trim_share of n | n updates |
| krum, multi-krum | krum.py | f, where n >= 2f + 3 | n updates and n^2 distances |
| norm-bound | norm_bound.py | each moves the mean by bound / n at most | one update; n for the round's own bound |
"""

from collections.abc import Mapping

from server.coordinate_wise import CoordinateWise
from server.krum import Krum
from server.norm_bound import FixedNormBound, MedianNormBound
from server.running_mean import Average, RunningMean, RunningRow, Weight, Weights
from server.server_optimizer import ServerOptimizer
from shared.config import FederationSettings

__all__ = ["Average", "RunningMean", "RunningRow", "ServerOptimizer", "Weight", "Weights", "aggregate", "start_average"]


def start_average(settings: FederationSettings) -> Average:
    """The average of a round that has just begun."""
    match settings.aggregation:
        case "mean":
            return RunningMean()
        case "median" | "trimmed-mean":
            return CoordinateWise(settings)
        case "krum" | "multi-krum":
            return Krum(settings)
        case "norm-bound" if settings.norm_bound is not None:
            return FixedNormBound(settings.norm_bound)
        case "norm-bound":
            return MedianNormBound(settings.norm_bound_factor)


def aggregate(
    updates: Mapping[str, Weights], *, weights: Mapping[str, Weight], settings: FederationSettings
) -> Weights:
    """One update out of many, each parameter from the sites that trained it; a parameter nobody trained is not in it.

    Args:
        updates: site -> parameter name -> change.
        weights: site -> how much its update, or each parameter of it, counts in a mean, above 0; all other rules count
            sites alike.
        settings: which aggregation.
    """
    average = start_average(settings)
    # sorted by site: sums of floats depend on their order
    for site in sorted(updates):
        average.add(updates[site], weight=weights[site], site=site)
    return average.result()
