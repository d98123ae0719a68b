"""EmoDB: one site a speaker, held-out speakers nowhere else."""

from pathlib import Path

import pytest

from shared.errors import ConfigError
from simulations.datasets.emodb import build_emodb
from tests.simulations.folders import digest_of, rows_of


@pytest.fixture(name="recordings")
def _recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "wav"
    folder.mkdir()
    for speaker in ("03", "08", "09", "10", "11", "13"):
        for name in ("a01Fa", "a01Na", "b02Wb", "b10Tc"):
            (folder / f"{speaker}{name}.flac").write_bytes(f"{speaker}{name}".encode())
    (folder / "readme.txt").write_text("not a recording")
    return tmp_path


def test_sites_are_speakers_and_held_out_ones_a_woman_and_a_man(recordings: Path, tmp_path: Path) -> None:
    built = build_emodb(tmp_path / "emodb", source=recordings)
    assert len(built.site_rows) == 2
    assert (sum(built.site_rows.values()), built.validation_rows, built.test_rows) == (8, 8, 8)
    assert built.card.content.labels == ("anger", "happiness", "sadness", "neutral")
    seen = []
    for folder in (*built.sites, built.folder / "held-out/validation", built.folder / "held-out/test"):
        rows = rows_of(folder)
        seen += [row["subject_id"] for row in rows]
        if not folder.name.startswith("speaker"):
            assert {row["gender"] for row in rows} == {"man", "woman"}
        for row in rows:
            name = (folder / row["audio_file_name"]).read_bytes().decode()
            assert name[:5] == row["subject_id"] + row["sentence"]
            assert row["label"] == {"F": "happiness", "N": "neutral", "W": "anger", "T": "sadness"}[name[5]]
    assert sorted(set(seen)) == ["03", "08", "09", "10", "11", "13"]
    assert all(seen.count(speaker) == 4 for speaker in seen)


def test_seeds_test_other_speakers_until_all_had_their_turn(recordings: Path, tmp_path: Path) -> None:
    tested = []
    for seed in range(3):
        built = build_emodb(tmp_path / str(seed), source=recordings / "wav", seed=seed)
        rows = rows_of(built.folder / "held-out/test")
        assert {row["gender"] for row in rows} == {"man", "woman"}
        tested += sorted({row["subject_id"] for row in rows})
    assert sorted(tested) == ["03", "08", "09", "10", "11", "13"]


def test_a_recording_can_be_given_to_two_encoders(recordings: Path, tmp_path: Path) -> None:
    once, twice = (
        build_emodb(tmp_path / str(twice), source=recordings / "wav", twice=twice).card.content.modalities
        for twice in (False, True)
    )
    assert (list(once), list(twice)) == (["audio", "text"], ["audio", "voice", "text"])
    for row in rows_of(tmp_path / "True/held-out/test"):
        folder = tmp_path / "True/held-out/test"
        assert (folder / row["voice_file_name"]).read_bytes() == (folder / row["audio_file_name"]).read_bytes()


def test_umlauts_of_the_sentences_survive(recordings: Path, tmp_path: Path) -> None:
    (recordings / "wav/03b01Fa.wav").write_bytes(b"x")
    built = build_emodb(tmp_path / "emodb", source=recordings)
    texts = {row["text"] for folder in built.folder.rglob("metadata.jsonl") for row in rows_of(folder.parent)}
    assert "Was sind denn das für Tüten, die da unter dem Tisch stehen?" in texts


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(recordings: Path, tmp_path: Path) -> None:
    digests = [
        digest_of(build_emodb(tmp_path / str(n), source=recordings / "wav", seed=seed).folder)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_what_is_not_emodb_is_refused(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recordings; allowed: .* such as 03a01Fa\.wav"):
        build_emodb(tmp_path / "emodb", source=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="fewer than 6 together"):
        build_emodb(tmp_path / "emodb", source=recordings, test_speakers=4)
    (recordings / "03a01Fa.wav").write_bytes(b"twice")
    with pytest.raises(ConfigError, match="one of each"):
        build_emodb(tmp_path / "emodb", source=recordings)
    (recordings / "03a01Fa.wav").rename(recordings / "99a01Fa.wav")
    with pytest.raises(ConfigError, match="speaker 99"):
        build_emodb(tmp_path / "emodb", source=recordings)
