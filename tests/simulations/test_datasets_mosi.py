"""CMU-MOSI: one site a video, official test videos held out."""

from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from simulations.datasets.mosi import build_mosi
from tests.simulations.folders import digest_of, rows_of


def _npz(path: Path, **changes: np.ndarray) -> Path:
    count = 40
    arrays = {
        "text": np.arange(count * 4, dtype=np.float32).reshape(count, 4),
        "audio": np.ones((count, 3), np.float32),
        "video": np.ones((count, 2), np.float32),
        "transcript": np.array([f"SEGMENT  {n} WAS\tFINE" for n in range(count)]),
        "y": np.arange(count, dtype=np.int8) % 2,
        "segment": np.array([f"v{n // 5}_{n % 5}" for n in range(count)]),
        "video_id": np.array([f"-_v{n // 5}" for n in range(count)]),
        "is_test": np.arange(count) >= 30,
    }
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]
    return path


def test_sites_are_videos_and_each_segment_lands_once(tmp_path: Path) -> None:
    built = build_mosi(tmp_path / "mosi", source=_npz(tmp_path / "mosi.npz"), validation_videos=2)
    assert built.site_rows == dict.fromkeys(built.site_rows, 5)
    assert (len(built.site_rows), built.validation_rows, built.test_rows) == (4, 10, 10)
    segments = []
    for folder in (*built.sites, built.folder / "held-out/validation", built.folder / "held-out/test"):
        for row in rows_of(folder):
            text = np.load(folder / row["text_features_file_name"])
            assert text.dtype == np.float32
            number = int(text[0]) // 4
            assert row["text"] == f"segment {number} was fine"
            assert row["segment"] == f"v{number // 5}_{number % 5}"
            assert row["label"] == ("negative", "positive")[number % 2]
            assert folder.name in {f"video-{row['subject_id']}", "validation", "test"}
            assert (folder.name == "test") == (number >= 30)
            segments.append(number)
    assert sorted(segments) == list(range(40))
    assert built.card.content.modalities["audio"].width == 3
    assert "research only" in (built.folder / "README.md").read_text("utf-8")


def test_the_readme_warns_of_vectors_that_hold_training_labels(tmp_path: Path) -> None:
    built = build_mosi(tmp_path / "mosi", source=_npz(tmp_path / "mosi.npz"), validation_videos=2)
    assert "**Warning: `text_features` and `video` hold the labels" in (built.folder / "README.md").read_text("utf-8")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    source = _npz(tmp_path / "mosi.npz")
    digests = [
        digest_of(build_mosi(tmp_path / str(n), source=source, validation_videos=3, seed=seed).folder)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": np.ones(40)}, "allowed: .segments, width. each"),
        ({"audio": np.ones((3, 3))}, "different numbers"),
        ({"y": np.full(40, 2)}, "something else than 0"),
        ({"is_test": np.arange(40) >= 32}, "in training and in the test"),
        ({"is_test": np.zeros(40, np.bool_)}, "is_test"),
        ({"video": np.full((40, 2), np.inf)}, "not finite"),
        ({"transcript": np.array(["A", " "] * 20)}, "a transcript is empty"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_mosi(tmp_path / "mosi", source=_npz(tmp_path / "mosi.npz", **changes))


def test_no_file_another_file_and_too_many_validation_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"allowed: an \.npz with audio, text, video, transcript"):
        build_mosi(tmp_path / "mosi", source=tmp_path)
    np.savez(tmp_path / "other.npz", a=np.ones(1))
    with pytest.raises(ConfigError, match="transcript is not a file in the archive"):
        build_mosi(tmp_path / "mosi", source=tmp_path)
    with pytest.raises(ConfigError, match="validation_videos is 6; allowed: 1 to 5"):
        build_mosi(tmp_path / "mosi", source=_npz(tmp_path / "mosi.npz"), validation_videos=6)
