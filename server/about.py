"""About: what a trained model rests on, for whoever uses it without its report.

in        a TrainedModel and the report beside it
out       About, in GET /model and in the JSON beside an exported model
relies on report.json for what was spent; the bound named is the largest over all sites, for a whole run's data set
"""

from server.report.html import read_record
from server.report.levels import is_protected, levels
from server.report.promise import bound_of
from server.trained import TrainedModel
from shared.schema import Kind, TaskSchema
from shared.settings import Settings


class Promise(Settings):
    """What one unit of the training data was protected with."""

    unit: str
    epsilon: float | None
    """upper bound on all that was released; None: without bound"""
    delta: float
    trust: str
    """who had to be trusted for it"""


class About(Settings):
    """A model in a few words and numbers."""

    name: str
    tasks: dict[str, TaskSchema]
    modalities: dict[str, Kind]
    num_parameters: int
    trained: str
    """when the run began, UTC"""
    sites: int
    generated_data: bool
    """a program made the training data"""
    privacy: tuple[Promise, ...]
    """empty: nothing was protected"""
    reproducible_noise: bool
    """the noise came from a seed and hides nothing: the numbers under `privacy` do not hold"""
    scores: dict[str, float]
    """on the test part of the server's held-out data"""
    run_digest: str


def about(trained: TrainedModel) -> About:
    """What the run's report says of its model.

    Raises:
        RunError: the run folder has no report, or a damaged one.
    """
    run, record = trained.run, read_record(trained.folder)
    return About(
        name=run.name,
        tasks=run.data.parts,
        modalities={name: run.data.modalities[name].kind for name in run.modalities},
        num_parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        trained=record.started,
        sites=len(record.sites),
        generated_data=record.card is not None and record.card.generated,
        privacy=tuple(
            Promise(
                unit=level.unit,
                epsilon=bound_of(level),
                delta=level.delta,
                trust="server" if level.is_central else "nobody",
            )
            for level in levels(record)
        ),
        reproducible_noise=record.reproducible_noise and is_protected(record),
        scores={name: estimate.value for name, estimate in record.test.overall.metrics.items()},
        run_digest=run.digest,
    )
