"""One clock: what happened at one moment is at one place in the tensors of sound, sensors and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from server.given import Readers, read_folder
from shared.batch import Samples
from shared.card import infer_schema
from shared.check import check_folder
from shared.clock import Clock
from shared.config import AlignSettings, RunConfig
from shared.dataset import load_samples
from shared.errors import ManifestError, MediaFault, ModelError
from shared.manifest import read_manifest
from shared.media import TimedSignal, Waveform, decode_timed
from shared.media.array import decode_signal
from shared.model.encoders import preprocessor
from shared.preprocess.align import Cut, aligned, cuts_of, duration_s
from shared.preprocess.signal import SignalPreprocessor
from shared.schema import DataSchema, ModalitySchema
from shared.settings import parse_settings
from tests.shared.clips import video_bytes
from tests.shared.media_samples import write_rows

WINDOW_S, EVENT_S = 2.0, 101.25
STARTS_S: Mapping[str, float] = {"sound": 99.5, "motion": 100.5, "clip": 100.25}
LENGTH_S: Mapping[str, float] = {"sound": 4.0, "motion": 1.5, "clip": 3.0}
MOTION_HZ, FRAMES_HZ, SOUND_HZ = 50.0, 20, 8000
SCHEMA = DataSchema(
    task="single-label",
    labels=("a", "b"),
    modalities={
        "sound": ModalitySchema(kind="audio"),
        "motion": ModalitySchema(kind="signal", channels=2),
        "clip": ModalitySchema(kind="video"),
        "words": ModalitySchema(kind="text"),
    },
)


def run_of(*, align: Mapping[str, object] | None = None, **preprocess: Mapping[str, object]) -> RunConfig:
    of_kind: dict[str, dict[str, object]] = {
        "sound": {"hop_ms": 10.0, "window_ms": 20.0, "sample_rate_hz": 8000},
        "motion": {"rate_hz": MOTION_HZ},
        "clip": {"frames": 40, "size": 8},
        "words": {},
    }
    names = {"sound": "mel-cnn", "motion": "conv1d", "clip": "video", "words": "embedding-mean"}
    table = {
        "name": "clock",
        "seed": 0,
        "data": SCHEMA.model_dump(),
        "model": {
            "embedding_width": 4,
            "encoders": {
                name: {"name": names[name], "preprocess": {**of_kind[name], **preprocess.get(name, {})}}
                for name in names
            },
            "fusion": {"name": "mean"},
            "align": {"window_s": WINDOW_S, "rate_hz": 100.0, **(align or {})},
        },
        "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": 1},
        "privacy": "none",
        "federation": {"rounds": 1},
    }
    return parse_settings(RunConfig, table, place="clock")


def write_event(folder: Path, row: int = 0, *, in_csv: bool = False) -> dict[str, object]:
    """A click, a step and a flash at EVENT_S in files that begin at STARTS_S; their cells."""
    folder.mkdir(exist_ok=True)
    since = {name: EVENT_S - start for name, start in STARTS_S.items()}
    sound = np.random.default_rng(row).normal(0, 1e-4, round(LENGTH_S["sound"] * SOUND_HZ))
    sound[round(since["sound"] * SOUND_HZ) :][:80] = 0.9
    soundfile.write(folder / f"{row}.wav", sound, SOUND_HZ)
    times = np.arange(round(LENGTH_S["motion"] * MOTION_HZ)) / MOTION_HZ
    steps = np.stack([times >= since["motion"] - 1e-9, times + row], axis=1).astype(np.float32)
    if in_csv:
        lines = ["time_s,x,y", *(f"{5 + time},{x},{y}" for time, (x, y) in zip(times, steps, strict=True))]
        (folder / f"{row}.csv").write_text("\n".join(lines))
    else:
        np.save(folder / f"{row}.npy", steps)
    frames = np.full((round(LENGTH_S["clip"] * FRAMES_HZ), 16, 16, 3), 10 + row, dtype=np.uint8)
    frames[round(since["clip"] * FRAMES_HZ) :] = 250
    (folder / f"{row}.mkv").write_bytes(video_bytes(list(frames), suffix=".mkv", rate_hz=FRAMES_HZ))
    return {
        "label": "a",
        "sound_file_name": f"{row}.wav",
        "motion_file_name": f"{row}.csv" if in_csv else f"{row}.npy",
        "clip_file_name": f"{row}.mkv",
        "words": f"row {row}",
        **{f"{name}_start_s": start for name, start in STARTS_S.items()},
    }


def loaded(folder: Path, rows: list[dict[str, object]], *, run: RunConfig) -> Samples:
    write_rows(folder, rows)
    return load_samples(folder, run=run, cache=folder.parent / "cache")


def places(samples: Samples, row: int = 0) -> dict[str, float]:
    """Where in each tensor the event is, as a share of its length."""
    sound = samples.inputs["sound"][row].mean(dim=0)
    motion = samples.inputs["motion"][row, 0]
    clip = samples.inputs["clip"][row].mean(dim=(1, 2, 3))
    return {
        "sound": float(sound.argmax()) / (len(sound) - 1),
        "motion": float((motion > 0.5).nonzero()[0, 0]) / len(motion),
        "clip": float((clip > 0.5).nonzero()[0, 0]) / len(clip),
    }


@pytest.mark.parametrize("in_csv", [False, True])
@pytest.mark.parametrize(("how", "begins_s"), [("window", 99.5), ("intersection", 100.5)])
def test_one_event_is_at_one_place_in_all_tensors(how: str, begins_s: float, in_csv: bool, tmp_path: Path) -> None:
    samples = loaded(tmp_path / "site", [write_event(tmp_path / "site", in_csv=in_csv)], run=run_of(align={"how": how}))
    wanted = (EVENT_S - begins_s) / WINDOW_S

    assert {name: tuple(values.shape[1:]) for name, values in samples.inputs.items() if name != "words"} == {
        "sound": (40, 201),
        "motion": (2, 200),
        "clip": (40, 3, 8, 8),
    }
    # no finer than a frame of the clip
    assert places(samples) == {name: pytest.approx(wanted, abs=0.026) for name in STARTS_S}
    assert samples.present.tolist() == [[True] * 4]


def test_without_a_clock_the_event_is_at_three_places(tmp_path: Path) -> None:
    """What the test above would say if alignment did nothing."""
    cells = {name: cell for name, cell in write_event(tmp_path / "site").items() if not name.endswith("_start_s")}
    found = sorted(places(loaded(tmp_path / "site", [cells], run=run_of())).values())

    assert found[1] - found[0] > 0.1
    assert found[2] - found[1] > 0.1


def test_the_seconds_that_a_row_is_about_are_those_that_are_seen(tmp_path: Path) -> None:
    cells = {**write_event(tmp_path / "site"), "start_s": 101.0, "end_s": 101.5}
    samples = loaded(tmp_path / "site", [cells], run=run_of())
    motion, clip = samples.inputs["motion"][0, 0], samples.inputs["clip"][0].mean(dim=(1, 2, 3))

    assert places(samples) == {name: pytest.approx(0.25 / WINDOW_S, abs=0.026) for name in STARTS_S}
    assert bool((motion[26:50] == 1).all())
    assert not bool(motion[50:].any())
    assert bool((clip[11:] < -0.99).all())


@pytest.mark.parametrize(("outside", "before", "after"), [("zero", 0.0, 0.0), ("hold", 0.0, 1.0)])
def test_outside_a_file_is_what_the_run_asks_for(outside: str, before: float, after: float, tmp_path: Path) -> None:
    """The motion lasts from 100.5 to 102.0; the window from 100.25 to 102.25."""
    cells = {**write_event(tmp_path / "site"), "start_s": 100.25}
    motion = loaded(tmp_path / "site", [cells], run=run_of(align={"outside": outside})).inputs["motion"][0]

    assert motion[0, :20].tolist() == [before] * 20
    assert motion[0, -20:].tolist() == [after] * 20


def test_a_modality_that_covers_nothing_of_the_window_is_absent(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    rows = [write_event(folder, row) for row in range(3)]
    rows[1]["motion_start_s"] = 500.0
    rows[2] |= {"start_s": 0.0, "end_s": 1.0}
    samples = loaded(folder, rows, run=run_of())

    assert samples.present.tolist() == [[True] * 4, [True, False, True, True], [False, False, False, True]]
    assert not bool(samples.inputs["motion"][1].any())
    assert bool(samples.inputs["motion"][0].any())


def test_values_that_share_no_moment_are_all_absent_where_only_shared_time_counts(tmp_path: Path) -> None:
    cells = {**write_event(tmp_path / "site"), "motion_start_s": 500.0}
    samples = loaded(tmp_path / "site", [cells], run=run_of(align={"how": "intersection"}))

    assert samples.present.tolist() == [[False, False, False, True]]


def test_a_second_look_opens_no_file_and_another_time_makes_another_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = tmp_path / "site", run_of()
    rows = [write_event(folder, row) for row in range(2)]
    first = loaded(folder, rows, run=run)
    monkeypatch.setattr("shared.loader.read_file", lambda *_: pytest.fail("a file was opened"))
    again = load_samples(folder, run=run, cache=tmp_path / "cache")
    monkeypatch.undo()
    later = loaded(folder, [{**rows[0], "start_s": 100.75}, rows[1]], run=run)
    back = loaded(folder, rows, run=run)

    for name in STARTS_S:
        assert torch.equal(first.inputs[name], again.inputs[name])
        assert torch.equal(first.inputs[name], back.inputs[name])
        assert torch.equal(first.inputs[name][1], later.inputs[name][1])
        assert not torch.equal(first.inputs[name][0], later.inputs[name][0])


def test_predictions_see_what_training_saw(tmp_path: Path) -> None:
    folder, run = tmp_path / "site", run_of()
    rows = [write_event(folder, row) for row in range(2)]
    rows[1]["motion_start_s"] = 500.0
    trained = loaded(folder, rows, run=run)
    (given,) = read_folder(folder, readers=Readers(run))

    assert torch.equal(given.batch.present, trained.present)
    for name in run.modalities:
        assert torch.equal(given.batch.inputs[name], trained.inputs[name])


@pytest.mark.parametrize(
    ("cells", "field", "came"),
    [
        ({"sound_start_s": "soon"}, "sound_start_s", "'soon'"),
        ({"motion_start_s": float("inf")}, "motion_start_s", "inf"),
        ({"clip_start_s": 1e300}, "clip_start_s", "1e+300"),
        ({"clip_start_s": True}, "clip_start_s", "True"),
        ({"start_s": "nan"}, "start_s", "'nan'"),
        ({"start_s": 3.0, "end_s": 3.0}, "end_s", "3"),
        ({"start_s": 3.0, "end_s": 2.0}, "end_s", "2"),
        ({"words_start_s": 1.0}, "'words_start_s'", "an unknown column"),
    ],
)
def test_times_that_are_none_are_named_with_line_and_field(
    cells: dict[str, object], field: str, came: str, tmp_path: Path
) -> None:
    write_rows(
        tmp_path / "site", [{"words": "one", "label": "a"}, {"words": "two", "label": "a", **cells}], suffix=".csv"
    )
    if any(isinstance(cell, bool) for cell in cells.values()):
        (tmp_path / "site/metadata.csv").unlink()
        write_rows(tmp_path / "site", [{"words": "one", "label": "a"}, {"words": "two", "label": "a", **cells}])
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "site", schema=SCHEMA)

    faults = [(fault.field, fault.came.split(" (")[0].strip("'")) for fault in caught.value.faults]
    assert faults == [(field, came.strip("'"))]


def test_times_stand_beside_values_and_do_no_harm_where_no_clock_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    write_rows(
        folder, [{**write_event(folder, row, in_csv=True), "start_s": 100.0, "label": "ab"[row]} for row in range(2)]
    )
    row = read_manifest(folder, schema=SCHEMA).rows[0]
    inferred = infer_schema(folder)

    assert row.clock == Clock(starts_s=dict(STARTS_S), start_s=100.0)
    assert check_folder(folder, schema=SCHEMA).num_rows == 2
    assert inferred.modalities["motion"] == ModalitySchema(kind="signal", channels=2)
    assert inferred.modalities["clip"] == ModalitySchema(kind="video")
    assert not {*inferred.groups, *inferred.ignored} & {"start_s", *(f"{name}_start_s" for name in STARTS_S)}


def test_a_column_of_another_meaning_is_no_clock(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"ignored": ("start_s",), "groups": ("sound_start_s",)})
    write_rows(tmp_path / "site", [{"words": "one", "label": "a", "start_s": "x", "sound_start_s": "y"}])
    row = read_manifest(tmp_path / "site", schema=schema).rows[0]

    assert (row.clock, row.groups) == (Clock(), {"sound_start_s": "y"})


@pytest.mark.parametrize("times", [(0.0, 1.0, 1.0), (0.0, 1.0, 0.5), (0.0, "nan", 2.0)])
def test_times_of_a_signal_must_rise(times: tuple[object, ...]) -> None:
    data = "\n".join(["time_s,x", *(f"{time},1.0" for time in times)]).encode()
    with pytest.raises(MediaFault, match=r"time_s, step 3|row 3, column 1"):
        decode_signal(data, suffix=".csv", channels=1)


def test_a_signal_with_times_of_its_own_is_interpolated_between_them() -> None:
    made = decode_timed(
        b"x,time_s\n0,10\n1,10.1\n5,10.5\n", path=Path("a.csv"), schema=ModalitySchema(kind="signal", channels=1)
    )
    assert isinstance(made, TimedSignal)
    align = AlignSettings(window_s=0.5, rate_hz=20.0)
    values = aligned(made, cut=Cut(0.0, 0.0, 0.6), align=align, rate_hz=1.0)

    assert duration_s(made, rate_hz=1.0) == pytest.approx(0.75)
    assert np.asarray(values)[:, 0] == pytest.approx(np.arange(10) / 2)


def test_a_recording_is_moved_by_whole_samples_and_silent_around() -> None:
    samples = np.arange(1, 9, dtype=np.float32)[None]
    align = AlignSettings(window_s=1.0, rate_hz=1.0)
    cut = cuts_of({"sound": 0.8}, clock=Clock(starts_s={"sound": 0.3}, start_s=0.0), align=align)["sound"]
    moved = aligned(Waveform(samples=samples, sample_rate_hz=10), cut=cut, align=align, rate_hz=1.0)

    assert isinstance(moved, Waveform)
    assert moved.samples[0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("modality", "options"),
    [
        ("sound", {"seconds": 3.0}),
        ("sound", {"trim": "ends"}),
        ("motion", {"length": 30}),
        ("motion", {"part": "end"}),
        ("clip", {"pick": "start"}),
    ],
)
def test_options_that_alignment_decides_are_refused(modality: str, options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(options))}.* beside model.align"):
        preprocessor(run_of(**{modality: options}), modality)


def test_filters_find_the_rate_of_the_clock_and_not_that_of_the_files() -> None:
    door = preprocessor(run_of(motion={"low_pass": 40.0}), "motion")
    assert isinstance(door, SignalPreprocessor)
    assert (door.options.rate_hz, door.options.length) == (100.0, 200)


def test_a_signal_needs_the_rate_of_its_files() -> None:
    run = run_of()
    table = json.loads(run.model_dump_json())
    table["model"]["encoders"]["motion"]["preprocess"] = {}
    with pytest.raises(ModelError, match="needs rate_hz"):
        preprocessor(parse_settings(RunConfig, table, place="clock"), "motion")


def test_a_value_that_alignment_breaks_on_is_blank_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Tensor:
        raise ValueError("the server's settings do not suit this value")

    folder = tmp_path / "site"
    cells = write_event(folder)
    monkeypatch.setattr("shared.loader.aligned", broken)
    samples = loaded(folder, [cells], run=run_of())

    assert samples.present.tolist() == [[True] * 4]
    assert not bool(samples.inputs["motion"].any())
