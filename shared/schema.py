"""Schema: what the data folders of a run look like: their task, their modalities, their columns.

in        `content` of a dataset.toml, or `data` of a run
out       DataSchema and its parts, frozen
relies on settings.py; what a run does with the data is config.py
"""

from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from shared.settings import Name, Settings

Kind = Literal["image", "text", "audio", "signal", "video", "features"]
TaskKind = Literal["single-label", "multi-label", "rating"]
RESERVED_COLUMNS = ("label", "labels", "rating", "subject_id", "file_name")
TARGET_COLUMNS: dict[TaskKind, str] = {"single-label": "label", "multi-label": "labels", "rating": "rating"}
"""where the answer stands in a row of a data set with one task; with several, in a column of the task's name"""


class ModalitySchema(Settings):
    """What one modality's values look like in a data folder.

    An image, audio, signal, video or features value is a file named in the column `<modality>_file_name`; a text
    stands in the column `<modality>` itself.
    """

    kind: Kind
    channels: int | None = Field(default=None, ge=1, le=4096, description="signal only: values per time step")
    width: int | None = Field(default=None, ge=1, le=65536, description="features only: length of the vector")

    @model_validator(mode="after")
    def _fits_kind(self) -> "ModalitySchema":
        for field, kind in (("channels", "signal"), ("width", "features")):
            if (getattr(self, field) is not None) != (self.kind == kind):
                need = "needs" if self.kind == kind else "does not take"
                raise ValueError(f"a modality of kind {self.kind} {need} {field}")
        return self


class TaskSchema(Settings):
    """What one task asks of a row."""

    kind: TaskKind
    labels: tuple[str, ...] = Field(default=(), description="all classes, in the order of their index; not of a rating")
    rating_range: tuple[float, float] | None = Field(default=None, description="rating: lowest and highest value")

    @model_validator(mode="after")
    def _is_complete(self) -> "TaskSchema":
        if (self.kind == "rating") == bool(self.labels):
            raise ValueError("labels: needed for a single-label or multi-label task, and for no other")
        least = 1 if self.kind == "multi-label" else 2
        if self.labels and (len(self.labels) < least or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels: {list(self.labels)}; allowed: {least} or more, all different")
        if (self.kind == "rating") != (self.rating_range is not None):
            raise ValueError("rating_range: needed for a rating task, and for no other")
        if self.rating_range is not None and not self.rating_range[0] < self.rating_range[1]:
            raise ValueError(f"rating_range: {self.rating_range}; allowed: lowest, then a higher highest")
        return self

    @property
    def num_targets(self) -> int:
        """Numbers that a row's answer is: one for each label of a multi-label task, else one."""
        return len(self.labels) if self.kind == "multi-label" else 1


class DataSchema(Settings):
    """What every data folder of a run must look like: its task, its modalities in order, its group columns."""

    task: Literal["single-label", "multi-label", "rating", "several", "matching"]
    labels: tuple[str, ...] = Field(default=(), description="all classes, in the order of their index")
    rating_range: tuple[float, float] | None = Field(default=None, description="rating: lowest and highest value")
    tasks: dict[Name, TaskSchema] = Field(
        default={}, description="several: each has a column of its name, which may be empty"
    )
    pair: tuple[Name, Name] | None = Field(default=None, description="matching: the two modalities that are matched")
    item: str | None = Field(
        default=None,
        description="matching: the group column, or subject_id, whose equal values show the same thing; no two rows do "
        "if not set",
    )
    modalities: dict[Name, ModalitySchema] = Field(min_length=1)
    groups: tuple[str, ...] = Field(default=(), description="columns by which the evaluation is broken down")
    ignored: tuple[str, ...] = Field(default=(), description="columns that may be there and are not read")

    @model_validator(mode="after")
    def _task_is_complete(self) -> "DataSchema":
        if (self.task == "several") != bool(self.tasks):
            raise ValueError('tasks: needed with task = "several", and with no other')
        if (self.task == "matching") != (self.pair is not None):
            raise ValueError('pair: needed with task = "matching", and with no other')
        if self.task != "several" and self.task != "matching":  # noqa: PLR1714  which mypy does not follow
            TaskSchema(kind=self.task, labels=self.labels, rating_range=self.rating_range)
        elif self.labels or self.rating_range is not None:
            raise ValueError(f'labels and rating_range: not with task = "{self.task}"')
        if self.item is not None and (self.task != "matching" or self.item not in ("subject_id", *self.groups)):
            raise ValueError(f'item: {self.item!r}; allowed with task = "matching" alone: subject_id, or one of groups')
        if self.pair is not None and (self.pair[0] == self.pair[1] or not set(self.pair) <= set(self.modalities)):
            raise ValueError(f"pair: {list(self.pair)}; allowed: two different ones of {list(self.modalities)}")
        return self

    @property
    def parts(self) -> dict[str, TaskSchema]:
        """Column -> what is asked there; empty for matching."""
        if self.task == "several":
            return dict(self.tasks)
        if self.task == "matching":
            return {}
        only = TaskSchema(kind=self.task, labels=self.labels, rating_range=self.rating_range)
        return {TARGET_COLUMNS[self.task]: only}

    def may_hold_pairs(self, modalities: Collection[str]) -> bool:
        """Whether rows that have these modalities at most can be trained on: a matching needs both of a pair."""
        return self.pair is None or set(self.pair) <= set(modalities)

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> "DataSchema":
        columns = [*RESERVED_COLUMNS, *self.tasks, *self.groups, *self.ignored]
        columns += [self.column(name) for name in self.modalities]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"columns {twice} have more than one meaning; allowed: one each")
        return self

    def column(self, modality: str) -> str:
        """Name of the manifest column that holds a modality: the text itself, or the name of its file."""
        return modality if self.modalities[modality].kind == "text" else f"{modality}_file_name"


class DataCard(Settings):
    """Where a data set comes from and what may be done with it; `dataset.toml` beside its folders."""

    title: str
    generated: bool = Field(description="made by a program from a seed; called so wherever it is reported")
    licence: str
    citation: str
    source: str
    content: DataSchema
