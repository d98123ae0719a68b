"""UCI-HAR: what thirty people did with a phone at the waist, as acceleration and gyroscope windows.

in        the official "UCI HAR Dataset" folder, or a windows.npz with the same channels
out       105 sites (21 training subjects x 5), a common validation part, the nine official test subjects
relies on partition.py for the Dirichlet label skew and on writer.py for the folder
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Int

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.writer import TEST, VALIDATION, BuiltDataset, DatasetWriter, File, NewRow, built, writing
from simulations.partition import dirichlet_shards

LABELS = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")
_STEPS = 128
_CHANNELS = (*(f"body_acc_{axis}" for axis in "xyz"), *(f"body_gyro_{axis}" for axis in "xyz"))
_TOTAL = tuple(f"total_acc_{axis}" for axis in "xyz")


@dataclass(frozen=True)
class _Windows:
    """N windows of 2.56 s at 50 Hz."""

    acceleration: Float[np.ndarray, "N 128 3"]
    """in units of g"""
    gyroscope: Float[np.ndarray, "N 128 3"]
    """rad/s"""
    labels: Int[np.ndarray, "N"]
    """index into LABELS"""
    subjects: Int[np.ndarray, "N"]
    is_test: Bool[np.ndarray, "N"]


def build_har(
    target: Path,
    *,
    source: Path,
    alpha: float = 5.0,
    shards: int = 5,
    acceleration: Literal["body", "total"] = "body",
    seed: int = 0,
) -> BuiltDataset:
    """Write UCI-HAR as site folders, parted as FedMultimodal parts it.

    Of each training subject's windows a fifth (rounded down, drawn at random) goes to the common validation part. The
    rest is dealt to `shards` sites by `dirichlet_shards`: at least 5 windows a site, and a site that has reached its
    equal share gets nothing of the classes still to come.

    Args:
        source: the official folder, or a windows.npz or the folder it lies in.
        alpha: of the Dirichlet label skew; FedMultimodal publishes 5 and 0.1.
        acceleration: `body` is without gravity, as FedMultimodal takes it; `total` is what the phone measured.

    Raises:
        ConfigError: `source` is not such data, `target` is taken, or no such deal exists.

    Source: FedMultimodal, Feng et al. 2023, arXiv:2306.09486, section 3.1. Ours differs: windows are written as they
    are, normalising them is left to preprocessing.
    """
    windows = _read(source, acceleration=acceleration)
    card = _card(acceleration=acceleration, source=source)
    with writing(target, card=card) as writer:
        for row in np.flatnonzero(windows.is_test):
            _add(writer, TEST, windows, int(row))
        for subject in np.unique(windows.subjects[~windows.is_test]):
            generator = np.random.default_rng([seed, int(subject)])
            rows = generator.permutation(np.flatnonzero((windows.subjects == subject) & ~windows.is_test))
            kept, rest = rows[: len(rows) // 5], rows[len(rows) // 5 :]
            for row in np.sort(kept):
                _add(writer, VALIDATION, windows, int(row))
            try:
                dealt = dirichlet_shards(windows.labels[rest], shards=shards, alpha=alpha, generator=generator)
            except ConfigError as error:
                raise ConfigError(f"{source}: subject {subject}: {error}") from None
            for shard, part in enumerate(dealt, start=1):
                for row in np.sort(rest[part]):
                    _add(writer, f"s{subject:02d}-{shard}", windows, int(row))
        writer.finish(
            how_it_was_made=_STORY.format(
                shards=shards, alpha=alpha, seed=seed, acceleration=acceleration, name=source.name
            )
        )
    return built(target, writer=writer)


def _add(writer: DatasetWriter, part: str, windows: _Windows, row: int) -> None:
    values = {
        "acceleration": File(".npy", _npy(windows.acceleration[row])),
        "gyroscope": File(".npy", _npy(windows.gyroscope[row])),
    }
    label, subject = LABELS[int(windows.labels[row])], f"{int(windows.subjects[row]):02d}"
    writer.add(part, NewRow(f"{row:05d}", values, targets={"label": label}, subject=subject))


def _npy(array: Float[np.ndarray, "128 3"]) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array, dtype=np.float32))
    return content.getvalue()


def _read(source: Path, *, acceleration: Literal["body", "total"]) -> _Windows:
    for folder in (source, source / "UCI HAR Dataset"):
        if (folder / "train" / "Inertial Signals").is_dir():
            return _read_official(folder, acceleration=acceleration)
    for path in (source, source / "windows.npz"):
        if path.is_file() and path.suffix == ".npz":
            return _read_windows(path, acceleration=acceleration)
    raise ConfigError(
        f"{source}: not UCI-HAR; allowed: the folder `UCI HAR Dataset` (with train/Inertial Signals in it), "
        "unpacked from https://archive.ics.uci.edu/dataset/240, or a windows.npz or its folder"
    )


def _read_official(folder: Path, *, acceleration: Literal["body", "total"]) -> _Windows:
    parts = list(_official_parts(folder, acceleration=acceleration))
    windows = _Windows(
        acceleration=np.concatenate([part.acceleration for part in parts]),
        gyroscope=np.concatenate([part.gyroscope for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        subjects=np.concatenate([part.subjects for part in parts]),
        is_test=np.concatenate([part.is_test for part in parts]),
    )
    return _checked(windows, place=folder)


def _official_parts(folder: Path, *, acceleration: Literal["body", "total"]) -> Iterator[_Windows]:
    channels = _CHANNELS if acceleration == "body" else (*_TOTAL, *_CHANNELS[3:])
    for part in ("train", "test"):
        labels = _table(folder / part / f"y_{part}.txt", columns=1)[:, 0].astype(np.int64) - 1
        subjects = _table(folder / part / f"subject_{part}.txt", columns=1)[:, 0].astype(np.int64)
        signals = np.stack(
            [_table(folder / part / "Inertial Signals" / f"{name}_{part}.txt", columns=_STEPS) for name in channels],
            axis=-1,
        )
        if not len(labels) == len(subjects) == len(signals):
            raise ConfigError(
                f"{folder / part}: {len(signals)} windows, {len(labels)} labels, {len(subjects)} subjects; allowed: as "
                "many of each; unpack the archive again"
            )
        yield _Windows(signals[..., :3], signals[..., 3:], labels, subjects, np.full(len(labels), part == "test"))


def _table(path: Path, *, columns: int) -> Float[np.ndarray, "N C"]:
    try:
        table = np.loadtxt(path, dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as a table of numbers: {error}; unpack the archive again") from None
    if table.shape[1] != columns:
        raise ConfigError(f"{path}: {table.shape[1]} numbers a line; allowed: {columns}")
    return table


def _read_windows(path: Path, *, acceleration: Literal["body", "total"]) -> _Windows:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            signals, names = arrays["X"].astype(np.float32), [str(name) for name in arrays["channels"]]
            labels, subjects = arrays["y"].astype(np.int64), arrays["subject"].astype(np.int64)
            is_test = arrays["is_test"].astype(np.bool_)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{path}: {error}; allowed: an .npz with X [N, 128, 9], channels, y, subject and is_test"
        ) from None
    aliases = {name: name.replace("body_gyro", "gyro") for name in _CHANNELS}
    wanted = [*(_CHANNELS[:3] if acceleration == "body" else _TOTAL), *_CHANNELS[3:]]
    columns = [next((names.index(n) for n in (name, aliases.get(name, name)) if n in names), None) for name in wanted]
    found = [column for column in columns if column is not None]
    if len(found) < len(wanted) or signals.ndim != 3 or signals.shape[1:] != (_STEPS, len(names)):
        raise ConfigError(
            f"{path}: X is {list(signals.shape)} with channels {names}; "
            f"allowed: [N, {_STEPS}, C] with channels {wanted}"
        )
    signals = signals[..., found]
    return _checked(_Windows(signals[..., :3], signals[..., 3:], labels, subjects, is_test), place=path)


def _checked(windows: _Windows, *, place: Path) -> _Windows:
    both = set(windows.subjects[windows.is_test]) & set(windows.subjects[~windows.is_test])
    faults = [
        (windows.is_test.all() or not windows.is_test.any(), "training and test subjects are both needed"),
        (bool(both), f"subjects {sorted(int(subject) for subject in both)} are in training and in the test"),
        (windows.labels.min() < 0 or windows.labels.max() >= len(LABELS), "a label is not one of the six activities"),
        (not all(np.isfinite(a).all() for a in (windows.acceleration, windows.gyroscope)), "a signal is not finite"),
    ]
    for is_there, text in faults:
        if is_there:
            raise ConfigError(f"{place}: {text}; unpack the archive again")
    return windows


def _card(*, acceleration: str, source: Path) -> DataCard:
    return DataCard(
        title=f"UCI-HAR: human activity from {acceleration} acceleration and gyroscope",
        generated=False,
        licence="CC BY 4.0",
        citation=(
            "D. Anguita, A. Ghio, L. Oneto, X. Parra, J. L. Reyes-Ortiz. A public domain dataset for human activity "
            "recognition using smartphones. ESANN 2013. Partition: T. Feng et al., FedMultimodal, KDD 2023"
        ),
        source=f"https://archive.ics.uci.edu/dataset/240, read from {source.name}",
        content=DataSchema(
            task="single-label",
            labels=LABELS,
            modalities={
                "acceleration": ModalitySchema(kind="signal", channels=3),
                "gyroscope": ModalitySchema(kind="signal", channels=3),
            },
        ),
    )


_STORY = """
Thirty people wore a phone at the waist. Each row is a window of 2.56 s (128 readings at 50 Hz): `acceleration`
({acceleration}, in g) and `gyroscope` (rad/s), written as they came and not normalised.

- Test: the official test subjects, of whom no site has anything.
- Validation: a fifth of each training subject's windows, drawn at random. Neighbouring windows overlap by half, so
  validation scores lie above test scores.
- Sites: the rest of each training subject's windows over {shards} sites, `sSUBJECT-SHARD`: each class in shares drawn
  from Dirichlet({alpha}), at least 5 windows a site; a site that has reached its equal share gets nothing of later
  classes. This is FedMultimodal's protocol.
- Seed {seed}, read from `{name}`. Where that is a `windows.npz`, its windows were cut anew from the raw recordings:
  counts and results differ a little from those on the official windows.
"""
