"""Joint space: where any value of either modality of a matching run lies, so that near means "belongs together".

in        a trained model of a run that matches pairs; files, texts, or values that are prepared already
out       places [N, D], read by catalogue.py and naming.py
relies on given.py for what may come in; on the centres that the run kept with its weights
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from server.given import Readers
from server.trained import TrainedModel
from shared.errors import MediaFault, RunError
from shared.media import read_file
from shared.model.matching import Matching

ROWS_AT_ONCE = 64


class JointSpace:
    """A trained model of a matching run, ready for values."""

    def __init__(self, trained: TrainedModel) -> None:
        """Builds the run's preprocessors.

        Raises:
            RunError: the run does not match pairs.
        """
        task = trained.model.task
        if not isinstance(task, Matching):
            raise RunError(
                f'{trained.folder}: task = "{trained.run.data.task}", which has no joint space; allowed: a run with '
                'task = "matching", such as of the scenario tuxpaint-matching. For labels use: '
                f"motet predict {trained.folder}"
            )
        self.trained, self.task, self.readers = trained, task, Readers(trained.run)

    def other(self, modality: str) -> str:
        """The modality that one is matched with."""
        first, second = self.task.pair
        return second if modality == first else first

    def modality_of_kind(self, kind: str, *, option: str) -> str:
        """The only modality of a kind.

        Args:
            kind: such as image.
            option: what asked for it, for the error.

        Raises:
            RunError: the model matches none of that kind, or two of it.
        """
        schema = self.trained.run.data.modalities
        fitting = [name for name in self.task.pair if schema[name].kind == kind]
        if len(fitting) == 1:
            return fitting[0]
        listed = ", ".join(f"{name} ({schema[name].kind})" for name in self.task.pair)
        if not fitting:
            raise RunError(f"{option}: the model matches no {kind}; allowed: a value of {listed}")
        raise RunError(f"{option}: could be {' or '.join(fitting)}; say which with --value {fitting[0]}=...")

    def prepared(self, modality: str, value: Path | str) -> Tensor:
        """A text, or what a file holds, after the half of preprocessing that each value needs by itself.

        Raises:
            MediaFault: it is no sane value of the modality.
        """
        raw = value if isinstance(value, str) else self.readers.decoded(modality, read_file(value)[0], name=value.name)
        if isinstance(raw, str) and not raw.strip():
            raise MediaFault(field="text", came="empty", allowed="some text")
        return self.readers.prepared(modality, raw)

    @torch.no_grad()
    def places(self, modality: str, prepared: Sequence[Tensor]) -> Float[Tensor, "N D"]:
        """Where prepared values of a modality lie."""
        model, side, pieces = self.trained.model, self.task.pair.index(modality), []
        for start in range(0, len(prepared), ROWS_AT_ONCE):
            batch = self.readers.batch([{modality: value} for value in prepared[start : start + ROWS_AT_ONCE]])
            pieces.append(self.task.places_of(model(batch.inputs, batch.present))[side])
        return torch.cat(pieces) if pieces else torch.zeros(0, self.task.num_outputs)

    def place(self, modality: str, value: Path | str) -> Float[Tensor, "D"]:
        """Where one value lies.

        Raises:
            RunError: the model has no such modality, or the value cannot be used.
        """
        if modality not in self.task.pair:
            raise RunError(f"{modality}: the model has no such modality; allowed: {' or '.join(self.task.pair)}")
        try:
            return self.places(modality, [self.prepared(modality, value)])[0]
        except MediaFault as fault:
            shown = value.name if isinstance(value, Path) else value[:40]
            raise RunError(f"{modality} ({shown}): {fault}") from None
