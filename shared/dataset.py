"""Dataset: the rows of a folder become samples: every modality a tensor, zero-filled where a row has none.

in        a data folder, the run's settings, the cache of preprocessed values
out       Samples, read by the two trainers and by evaluation.py; or one ManifestError with every fault
relies on manifest.py (rows), loader.py (each modality), and preprocess/align.py where the run has one clock for them
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from shared.batch import Samples
from shared.cache import FolderCache
from shared.card import find_card, infer_schema
from shared.check import check_folder
from shared.clock import TIMED_KINDS
from shared.config import AlignSettings, RunConfig
from shared.findings import WHOLE_MANIFEST
from shared.loader import ModalityLoader, Timing
from shared.manifest import Row, scan_manifest
from shared.preprocess import Preprocessor
from shared.preprocess.align import cuts_of, own_rate_hz
from shared.targets import stacked_targets

__all__ = ["check_folder", "find_card", "infer_schema", "load_samples", "preprocessors_of"]


def load_samples(
    folder: Path,
    *,
    run: RunConfig,
    cache: Path,
    modalities: tuple[str, ...] | None = None,
    preprocessors: Mapping[str, Preprocessor] | None = None,
    needs_subjects: bool = False,
    most_cache_bytes: int | None = None,
) -> Samples:
    """All rows of a folder that have a modality of the run; files are opened only where the cache lacks them.

    Args:
        folder: with one manifest.
        run: says which modalities, how they are preprocessed, and what rows must look like.
        cache: folder for preprocessed values, as private as the data.
        modalities: those that rows may have here; others are not looked into. None: all of the run.
        preprocessors: modality -> preprocessor, where the caller has those of the run at hand (`preprocessors_of`) or
            wants others.
        needs_subjects: rows that do not say who they are about are a fault, because subjects are what is protected.
        most_cache_bytes: as for `FolderCache.close`.

    Raises:
        ManifestError: the folder has faults, all of which are named; nothing was loaded.
        ConfigError: the cache cannot be written.
    """
    names = tuple(name for name in run.modalities if modalities is None or name in modalities)
    manifest, findings = scan_manifest(folder, schema=run.data)
    if needs_subjects and all(row.subject is None for row in manifest.rows):
        # PRIVACY: each row would be taken for a person of its own. test_subjects_that_nobody_names_are_a_fault
        allowed = 'a value in every row, because the owner\'s settings say privacy.unit = "subject"'
        findings.add(WHOLE_MANIFEST, field="subject_id", came="absent", allowed=allowed)
    store = FolderCache(cache, folder=folder)
    ways = preprocessors_of(run, names=names) if preprocessors is None else preprocessors
    loaders = {
        name: ModalityLoader(
            name,
            schema=run.data.modalities[name],
            way=ways[name],
            store=store,
            findings=findings,
            timing=_timing(run, name),
        )
        for name in names
    }
    _look_through(manifest.rows, loaders=loaders, align=run.model.align)
    findings.raise_if_any()
    rows = [row for row in manifest.rows if any(loader.has(row) for loader in loaders.values())]
    inputs = {name: loader.tensor(rows) for name, loader in loaders.items()}
    for loader in loaders.values():
        loader.keep_lengths()
    store.close(named=_files(manifest.rows), most_bytes=most_cache_bytes)
    has = [[name in loaders and loaders[name].has(row) for name in run.modalities] for row in rows]
    return Samples(
        inputs=inputs,
        present=torch.tensor(has, dtype=torch.bool).reshape(len(rows), len(run.modalities)),
        targets=stacked_targets([row.target for row in rows], schema=run.data),
        subjects=tuple(row.subject if row.subject is not None else str(row.line) for row in rows),
        groups={column: tuple(row.groups.get(column, "") for row in rows) for column in run.data.groups},
    )


def _files(rows: tuple[Row, ...]) -> list[Path]:
    return [value for row in rows for value in row.values.values() if isinstance(value, Path)]


def preprocessors_of(run: RunConfig, *, names: tuple[str, ...]) -> dict[str, Preprocessor]:
    """Those of the run's encoders; whoever loads many folders one after another makes them once.

    Raises:
        ModelError: a part or an option does not exist, or frozen weights are missing.
    """
    from shared.model.encoders import preprocessor

    return {name: preprocessor(run, name) for name in names}


def _timing(run: RunConfig, name: str) -> Timing | None:
    if run.model.align is None or run.data.modalities[name].kind not in TIMED_KINDS:
        return None
    return Timing(run.model.align, rate_hz=own_rate_hz(run, name))


def _look_through(rows: tuple[Row, ...], *, loaders: Mapping[str, ModalityLoader], align: AlignSettings | None) -> None:
    """Reads and checks what the cache lacks; where modalities are aligned, all of one row before the next."""
    if align is None:
        for loader in loaders.values():
            loader.look_through(rows)
        return
    for row in rows:
        lengths = {name: length for name, loader in loaders.items() if (length := loader.length_s(row)) is not None}
        cuts = cuts_of(lengths, clock=row.clock, align=align)
        for name, loader in loaders.items():
            # with nothing in the window, the row has no such value
            if loader.timing is None or name in cuts:
                loader.look_at(row, cut=cuts.get(name))
    for loader in loaders.values():
        loader.end()
