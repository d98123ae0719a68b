"""TensorBoard: the numbers of every round as events beside the run, for those who watch a run there.

in        a RoundRecord after every round
out       RUN/tensorboard/events.out.tfevents.*
relies on torch's SummaryWriter, imported when the first round is written and not before
"""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from server.records import RoundRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER_NAME = "tensorboard"


class EventWriter:
    """Writes rounds as scalars, the round being the step; used as a context around them.

    A resumed run adds a second file to the same folder; TensorBoard shows both as one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER_NAME
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, record: RoundRecord) -> None:
        """One round, on disk when this returns: a run that is killed leaves all rounds before."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        # PRIVACY: an event bears the time it was written at, and so how long a round with this many sites took.
        # test_events_do_not_tell_who_was_drawn
        walltime = float(record.round) if is_withheld(record) else None
        for tag, value in round_scalars(record).items():
            self._writer.add_scalar(tag, value, global_step=record.round, walltime=walltime)
        self._writer.flush()


def round_scalars(record: RoundRecord) -> dict[str, float]:
    """Tag -> value; what a round did not measure is left out."""
    epsilons = [site.epsilon for site in record.sites if site.epsilon is not None]
    scalars = {}
    if not is_withheld(record):
        scalars = {
            "round/seconds": record.seconds,
            "sites/asked": float(sum(site.outcome != "not-asked" for site in record.sites)),
            "sites/used": float(sum(site.outcome == "used" for site in record.sites)),
        }
    for name, setting in (("clip_norm", record.clip_norm), ("site_clip_norm", record.site_clip_norm)):
        if setting is not None:
            scalars[f"round/{name}"] = setting
    if record.update_norm is not None:
        scalars["round/update_norm"] = record.update_norm
    if epsilons:
        scalars |= {"privacy/epsilon_highest": max(epsilons), "privacy/epsilon_mean": sum(epsilons) / len(epsilons)}
    if record.site_epsilon is not None:
        scalars["privacy/site_epsilon"] = record.site_epsilon
    if record.validation is not None:
        scalars |= {f"validation/{name}": estimate.value for name, estimate in record.validation.named.items()}
    return scalars


def is_withheld(record: RoundRecord) -> bool:
    """Whether it stays with the server who took part."""
    return any(site.outcome == "withheld" for site in record.sites)
