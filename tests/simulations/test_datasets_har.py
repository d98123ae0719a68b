"""UCI-HAR: read from either form, parted by subject, the same each time."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from simulations.datasets.har import LABELS, build_har
from tests.simulations.folders import digest_of, rows_of

TRAIN, HELD_OUT = (1, 3), (2,)


@pytest.fixture(name="official")
def _official(tmp_path: Path) -> Path:
    """The official folder in small: 60 windows a subject, a constant signal that tells window and channel."""
    folder = tmp_path / "UCI HAR Dataset"
    for part, subjects in (("train", TRAIN), ("test", HELD_OUT)):
        (folder / part / "Inertial Signals").mkdir(parents=True)
        count = 60 * len(subjects)
        (folder / part / f"y_{part}.txt").write_text("".join(f"{row % 6 + 1}\n" for row in range(count)))
        (folder / part / f"subject_{part}.txt").write_text("".join(f"{s}\n" for s in subjects for _ in range(60)))
        for channel, name in enumerate(("total_acc", "body_acc", "body_gyro")):
            for axis in "xyz":
                values = np.full((count, 128), float(channel)) + np.arange(count)[:, None] / 1024
                np.savetxt(folder / part / "Inertial Signals" / f"{name}_{axis}_{part}.txt", values, fmt="%.8e")
    return folder


def test_every_window_lands_once_and_test_subjects_at_no_site(official: Path, tmp_path: Path) -> None:
    built = build_har(tmp_path / "har", source=official.parent)

    assert sorted(built.site_rows) == [f"s{subject:02d}-{shard}" for subject in TRAIN for shard in range(1, 6)]
    assert (sum(built.site_rows.values()), built.validation_rows, built.test_rows) == (96, 24, 60)
    assert min(built.site_rows.values()) >= 5
    seen = []
    for site in built.sites:
        for row in rows_of(site):
            assert row["subject_id"] == site.name[1:3]
            signal = np.load(site / row["acceleration_file_name"])
            assert (signal.shape, signal.dtype) == ((128, 3), np.float32)
            window = round((float(signal[0, 0]) - 1) * 1024)
            assert row["label"] == LABELS[window % 6]
            assert float(np.load(site / row["gyroscope_file_name"])[0, 0]) == pytest.approx(2 + window / 1024)
            seen.append(window)
    for row in rows_of(built.folder / "held-out/validation"):
        seen.append(
            round(
                (float(np.load(built.folder / "held-out/validation" / row["acceleration_file_name"])[0, 0]) - 1) * 1024
            )
        )
    assert sorted(seen) == list(range(120))
    assert {row["subject_id"] for row in rows_of(built.folder / "held-out/test")} == {"02"}


def test_total_acceleration_on_request(official: Path, tmp_path: Path) -> None:
    built = build_har(tmp_path / "har", source=official, acceleration="total")
    first = rows_of(built.folder / "held-out/test")[0]
    assert float(np.load(built.folder / "held-out/test" / first["acceleration_file_name"])[0, 0]) == 0.0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(official: Path, tmp_path: Path) -> None:
    digests = [
        digest_of(build_har(tmp_path / str(n), source=official, seed=seed).folder) for n, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def _npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {
        "X": np.zeros((120, 128, 9), np.float16),
        "channels": np.array([f"{name}_{axis}" for name in ("body_acc", "gyro", "total_acc") for axis in "xyz"]),
        "y": np.arange(120, dtype=np.int8) % 6,
        "subject": np.repeat(np.array([1, 2], np.int8), 60),
        "is_test": np.repeat([False, True], 60),
    }
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]
    return path


def test_a_windows_file_is_read_too(tmp_path: Path) -> None:
    built = build_har(tmp_path / "har", source=_npz(tmp_path / "windows.npz"), shards=2)
    assert (len(built.sites), built.validation_rows, built.test_rows) == (2, 12, 60)
    assert build_har(tmp_path / "again", source=tmp_path, shards=2).site_rows == built.site_rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.zeros((120, 64, 9), np.float16)}, r"X is \[120, 64, 9\]"),
        ({"channels": np.array(list("abcdefghi"))}, "allowed: .*body_acc_x"),
        ({"y": np.full(120, 6)}, "six activities"),
        ({"subject": np.ones(120)}, "in training and in the test"),
        ({"is_test": np.zeros(120, np.bool_)}, "both needed"),
        ({"X": np.full((120, 128, 9), np.nan, np.float16)}, "not finite"),
    ],
)
def test_a_wrong_windows_file_is_refused_by_name(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_har(tmp_path / "har", source=_npz(tmp_path / "windows.npz", **changes))
    assert not (tmp_path / "har").exists()


def test_a_folder_that_is_something_else_is_refused_with_where_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(ConfigError, match=r"archive\.ics\.uci\.edu"):
        build_har(tmp_path / "har", source=tmp_path)


def test_an_official_folder_with_a_short_file_is_refused(official: Path, tmp_path: Path) -> None:
    path = official / "train" / "y_train.txt"
    path.write_text("1\n2\n")
    with pytest.raises(ConfigError, match="120 windows, 2 labels"):
        build_har(tmp_path / "har", source=official)
    path.unlink()
    with pytest.raises(ConfigError, match=r"y_train\.txt"):
        build_har(tmp_path / "har", source=official)


def test_the_readme_names_licence_protocol_and_counts(official: Path, tmp_path: Path) -> None:
    text = (build_har(tmp_path / "har", source=official, alpha=0.5).folder / "README.md").read_text("utf-8")
    assert all(word in text for word in ("CC BY 4.0", "Anguita", "Dirichlet(0.5)", "| held-out/test | 60 |"))
    assert "generated" not in text
    assert json.dumps(str(official.parent))[1:-1] not in text
