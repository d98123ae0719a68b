"""Given: values that a person hands to a trained model, one sample or a folder of them, on their way to tensors.

in        files, texts and the rows of a manifest, none of which is kept or written anywhere
out       Batch, and what each of its samples is called
relies on media/ and manifest.py for what may come in, and on the run's preprocessors, the same as in training
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.batch import Batch
from shared.clock import TIMED_KINDS, Clock
from shared.config import RunConfig
from shared.dataset import preprocessors_of
from shared.errors import MediaFault, RunError
from shared.findings import Findings
from shared.manifest import Row, scan_manifest
from shared.media import SUFFIXES, TimedSignal, decode_timed, read_file
from shared.preprocess import RawValue
from shared.preprocess.align import Cut, aligned, cuts_of, duration_s, own_rate_hz
from shared.settings import Settings

ROWS_AT_ONCE = 64
TEXT_SUFFIX = ".txt"
MAX_TEXT_BYTES = 400_000


class Readers:
    """The run's way from raw values to a batch; values are prepared as in training, and nothing is cached on disk."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self._ways = preprocessors_of(run, names=run.modalities)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality -> shape of one prepared value."""
        return {name: way.shape for name, way in self._ways.items()}

    @property
    def digests(self) -> dict[str, str]:
        """Modality -> digest of its preprocessing: equal digest, equal tensors."""
        return {name: way.digest for name, way in self._ways.items()}

    def options(self, modality: str) -> dict[str, object]:
        """A modality's preprocessing options, defaults included where the preprocessor tells them."""
        options = getattr(self._ways[modality], "options", None)
        asked: dict[str, object] = dict(self.run.model.encoders[modality].preprocess)
        return options.model_dump(mode="json") if isinstance(options, Settings) else asked

    def decoded(self, modality: str, data: bytes, *, name: str) -> RawValue | TimedSignal:
        """What the bytes of one file hold; signals with their times.

        Raises:
            MediaFault: they are not a whole, sane value of the modality's kind.
        """
        schema = self.run.data.modalities[modality]
        if schema.kind != "text":
            return decode_timed(data, path=Path(name), schema=schema)
        if len(data) > MAX_TEXT_BYTES:
            raise MediaFault(field="text", came=f"{len(data)} bytes long", allowed=f"at most {MAX_TEXT_BYTES}")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise MediaFault(field="text", came="not UTF-8", allowed="a text in UTF-8") from None

    def prepared_together(
        self, values: Mapping[str, RawValue | TimedSignal], *, clock: Clock | None = None
    ) -> tuple[dict[str, Tensor], dict[str, MediaFault]]:
        """The values of one sample, each prepared; and what is wrong with those that cannot be.

        Args:
            values: by modality, as decoded.
            clock: when they were taken, for a run that has one clock for them: a value with nothing in the window is
                left out. All at once, if not given.
        """
        cuts = self._cuts(values, clock=clock or Clock())
        made, faults = dict[str, Tensor](), dict[str, MediaFault]()
        for modality, value in values.items():
            if modality in cuts:
                try:
                    made[modality] = self.prepared(modality, value, cut=cuts[modality])
                except MediaFault as fault:
                    faults[modality] = fault
        return made, faults

    def _cuts(self, values: Mapping[str, RawValue | TimedSignal], *, clock: Clock) -> dict[str, Cut | None]:
        """What is seen of each value; None: all of it. One of which nothing is seen is not in it."""
        align, kinds = self.run.model.align, self.run.data.modalities
        if align is None:
            return dict.fromkeys(values)
        timed = [name for name in values if kinds[name].kind in TIMED_KINDS]
        lengths = {name: duration_s(values[name], rate_hz=own_rate_hz(self.run, name)) for name in timed}
        cuts = cuts_of(lengths, clock=clock, align=align)
        return {name: cuts.get(name) for name in values if name not in timed or name in cuts}

    def prepared(self, modality: str, value: RawValue | TimedSignal, *, cut: Cut | None = None) -> Tensor:
        """One value after the first, per-value half of preprocessing.

        Args:
            modality: its name.
            value: as decoded.
            cut: what of it the model sees; if not given in a run with one clock, what it would see of it alone.

        Raises:
            MediaFault: the preprocessing breaks on it.
        """
        align = self.run.model.align
        if cut is None:
            cut = self._cuts({modality: value}, clock=Clock()).get(modality)
        try:
            if align is not None and cut is not None:
                value = aligned(value, cut=cut, align=align, rate_hz=own_rate_hz(self.run, modality))
            return self._ways[modality].read(value.values if isinstance(value, TimedSignal) else value)
        except MediaFault:
            raise
        except Exception as error:  # noqa: BLE001  the options are the run's, and a value may break any of them
            came = f"a value that the run's preprocessing breaks on ({type(error).__name__}: {str(error)[:80]})"
            raise MediaFault(field="value", came=came, allowed="one like those of the training") from None

    def batch(self, samples: Sequence[Mapping[str, Tensor]]) -> Batch:
        """Prepared values of each sample, stacked and finished; zeros where a sample lacks a modality."""
        names, count = self.run.modalities, len(samples)
        inputs = {}
        for name in names:
            rows = [row for row, sample in enumerate(samples) if name in sample]
            if not rows:
                continue
            with torch.no_grad():
                values = self._ways[name].finish(torch.stack([samples[row][name] for row in rows]))
            # as dataset.py does for training
            values = values.nan_to_num(0.0, 0.0, 0.0) if values.is_floating_point() else values
            whole = torch.zeros((count, *values.shape[1:]), dtype=values.dtype)
            whole[torch.tensor(rows)] = values
            inputs[name] = whole
        present = torch.tensor([[name in sample for name in names] for sample in samples], dtype=torch.bool)
        targets = torch.zeros(count, dtype=torch.int64)
        return Batch(inputs=inputs, present=present.reshape(count, len(names)), targets=targets)


@dataclass(frozen=True)
class Named:
    """Some samples, each with what it is called."""

    names: tuple[str, ...]
    batch: Batch


def read_folder(folder: Path, *, readers: Readers) -> Iterator[Named]:
    """All rows of a data folder that have a modality of the model, a few at a time; answers are not looked at.

    Raises:
        ManifestError: with every fault of every row and file, after the last of them was looked at.
        RunError: no row has a modality of the model.
    """
    run = readers.run
    manifest, findings = scan_manifest(folder, schema=run.data, needs_answers=False)
    rows = [row for row in manifest.rows if any(name in row.values for name in run.modalities)]
    if not rows and not findings:
        raise RunError(f"{folder}: no row has a modality of the model; allowed: at least one of {_listed(run)}")
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        samples = [_read_row(row, readers=readers, findings=findings) for row in some]
        # from the first fault on, rows are looked into only for further ones
        if findings:
            continue
        # a row may have nothing in the window of the run's clock
        there = [(row, sample) for row, sample in zip(some, samples, strict=True) if sample]
        if there:
            names = tuple(f"{findings.unit} {row.line}" for row, _ in there)
            yield Named(names, readers.batch([sample for _, sample in there]))
    findings.raise_if_any()


def _read_row(row: Row, *, readers: Readers, findings: Findings) -> dict[str, Tensor]:
    raws = dict[str, RawValue | TimedSignal]()

    def note(modality: str, fault: MediaFault) -> None:
        value = row.values[modality]
        file = value.name if isinstance(value, Path) else None
        findings.add(row.line, field=f"{modality}.{fault.field}", came=fault.came, allowed=fault.allowed, file=file)

    for modality in readers.run.modalities:
        value = row.values.get(modality)
        if value is None:
            continue
        try:
            raws[modality] = (
                value if isinstance(value, str) else readers.decoded(modality, read_file(value)[0], name=value.name)
            )
        except MediaFault as fault:
            note(modality, fault)
    made, faults = readers.prepared_together(raws, clock=row.clock)
    for modality, found in faults.items():
        note(modality, found)
    return made


def read_sample(values: Mapping[str, Path | str], *, readers: Readers) -> Named:
    """One sample of files and texts.

    Args:
        values: modality -> the file, or the text itself.
        readers: of the run.

    Raises:
        RunError: a modality that the model has not, a file that is no sane value, or no value at all; every fault.
    """
    faults, raws = [], dict[str, RawValue | TimedSignal]()

    def note(modality: str, fault: MediaFault) -> None:
        place = f"{modality} ({values[modality]})" if isinstance(values[modality], Path) else modality
        faults.append(f"  {place}: {fault}")

    for modality, value in values.items():
        if modality not in readers.run.modalities:
            faults.append(f"  {modality}: the model has no such modality; allowed: {_listed(readers.run)}")
            continue
        try:
            raw = value if isinstance(value, str) else readers.decoded(modality, read_file(value)[0], name=value.name)
            if isinstance(raw, str) and not raw.strip():
                raise MediaFault(field="text", came="empty", allowed="some text, or leave it away")
            raws[modality] = raw
        except MediaFault as fault:
            note(modality, fault)
    made, broken = readers.prepared_together(raws)
    for modality, found in broken.items():
        note(modality, found)
    if faults:
        raise RunError("\n".join([f"{len(faults)} of {len(values)} values cannot be used", *faults]))
    if not made:
        raise RunError(f"nothing was given to go by; allowed: at least one of {_listed(readers.run)}")
    name = ", ".join(str(value.name) if isinstance(value, Path) else modality for modality, value in values.items())
    return Named((name,), readers.batch([made]))


def modality_for(name: str, *, run: RunConfig, taken: Sequence[str] = ()) -> str:
    """The modality that a file must be of by its ending, the only one of the model's that is not taken.

    Raises:
        RunError: there is none, or more than one.
    """
    suffix = Path(name).suffix.lower()
    fitting = [modality for modality in run.modalities if suffix in _suffixes(run, modality)]
    free = [modality for modality in fitting if modality not in taken]
    if len(free) == 1:
        return free[0]
    if not fitting:
        raise RunError(f"{name}: no modality of the model has files ending in {suffix!r}; allowed: {_listed(run)}")
    if not free:
        raise RunError(f"{name}: {', '.join(fitting)} has a value already; allowed: one value a modality")
    raise RunError(f"{name}: could be {' or '.join(free)}; say which: {free[0]}={name}")


def _suffixes(run: RunConfig, modality: str) -> tuple[str, ...]:
    kind = run.data.modalities[modality].kind
    return (TEXT_SUFFIX,) if kind == "text" else SUFFIXES[kind]


def _listed(run: RunConfig) -> str:
    """The model's modalities, each with what its values look like."""
    kinds = {name: run.data.modalities[name].kind for name in run.modalities}
    said = {
        name: "a text" if kind == "text" else f"{kind}: {', '.join(SUFFIXES[kind])}" for name, kind in kinds.items()
    }
    return "; ".join(f"{name} ({how})" for name, how in said.items())
