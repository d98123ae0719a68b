"""Dataset: the faults of a folder come all together, each with its place, and leave nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.batch import Samples
from shared.errors import ManifestError, MediaFault, ModelError
from shared.preprocess import RawValue
from tests.shared.dataset_samples import Way, Ways, equal, rewrite
from tests.shared.media_samples import audio_bytes, image_bytes, npy_bytes, vector_bytes


def break_everything(site: Path) -> None:
    (site / "img/0.png").write_bytes(image_bytes(seed=0)[:60])
    (site / "img/1.png").write_bytes(image_bytes(seed=2))
    (site / "wav/1.wav").write_bytes(audio_bytes(rate=2000))
    (site / "npy/3.npy").write_bytes(npy_bytes(np.full((4, 3), np.nan)))
    (site / "npy/v4.npy").write_bytes(vector_bytes(width=9))
    (site / "wav/5.wav").unlink()
    rewrite(site, lambda rows: rows[2].update(label="anger"))


EXPECTED = (
    "site/metadata.jsonl: 7 faults in 6 rows, nothing was loaded",
    "line 1, img/0.png: image.content is truncated or damaged",
    "line 2, wav/1.wav: audio.sample_rate_hz is 2000; allowed: 4000 to 192000",
    "line 3: label is 'anger'; allowed: 'joy', 'calm'",
    "line 4, npy/3.npy: motion.values is nan at [0, 0]; allowed: finite numbers",
    "line 5, npy/v4.npy: vector.shape is [9]; allowed: [4]",
    "line 6: audio_file_name is 'wav/5.wav', which is missing",
)


def test_all_faults_of_a_folder_come_in_one_error(site: Path, load: Callable[..., Samples]) -> None:
    break_everything(site)
    (site / "img/3.png").write_bytes(image_bytes(seed=4))
    with pytest.raises(ManifestError) as caught:
        load()
    for expected in EXPECTED:
        assert expected in str(caught.value)
    assert (
        "line 5, img/4.png: image.content is the same, byte for byte, as that of line 4; "
        "allowed: each recording once, or several times under one subject_id" in str(caught.value)
    )


def test_faults_are_the_same_with_a_warm_cache_and_leave_it_as_it_was(site: Path, load: Callable[..., Samples]) -> None:
    first = load()
    kept = {path: path.read_bytes() for path in (site / "img").iterdir()}
    cached = {path: path.read_bytes() for path in (site.parent / "cache").glob("*/*")}
    (site / "img/1.png").write_bytes(kept[site / "img/2.png"])
    (site / "img/3.png").write_bytes(b"broken")
    with pytest.raises(ManifestError) as caught:
        load()
    assert [fault.place for fault in caught.value.faults] == ["line 3, img/2.png", "line 4, img/3.png"]
    assert {path: path.read_bytes() for path in (site.parent / "cache").glob("*/*")} == cached
    for path, data in kept.items():
        path.write_bytes(data)
    assert equal(load(), first)


def test_equal_vectors_and_texts_are_no_duplicates(site: Path, load: Callable[..., Samples]) -> None:
    (site / "npy/v1.npy").write_bytes((site / "npy/v0.npy").read_bytes())
    rewrite(site, lambda rows: rows[1].update(text=rows[0]["text"]))
    samples = load()
    assert torch.equal(samples.inputs["vector"][0], samples.inputs["vector"][1])


def test_rows_of_one_subject_may_share_a_recording_and_it_is_prepared_once(
    site: Path, load: Callable[..., Samples]
) -> None:
    (site / "img/1.png").write_bytes((site / "img/0.png").read_bytes())
    ways = Ways()
    samples = load(ways=ways)
    assert torch.equal(samples.inputs["image"][0], samples.inputs["image"][1])
    assert sum(ways["image"].batches) == 5

    rewrite(site, lambda rows: [row.pop("subject_id") for row in rows])
    with pytest.raises(ManifestError, match=r"1 fault in 6 rows(.|\n)*line 2, img/1\.png: image\.content is the same"):
        load()


def test_overflow_in_preprocessing_is_zero_and_no_fault(site: Path, load: Callable[..., Samples]) -> None:
    class Dividing(Way):
        def finish(self, values: Tensor) -> Tensor:
            values = super().finish(values)
            values[2] = values[2] / 0
            return values

    ways: dict[str, Way] = Ways()
    ways["motion"] = Dividing()
    samples, plain = load(ways=ways), load(ways=Ways())
    assert samples.inputs["motion"].isfinite().all()
    assert len(samples) == len(plain)


def test_a_value_that_breaks_the_preprocessor_is_blank_and_no_fault(site: Path, load: Callable[..., Samples]) -> None:
    class Brittle(Way):
        def read(self, value: RawValue) -> Tensor:
            if value == broken:
                raise ValueError("the server's options do not suit this value")
            return super().read(value)

    broken = str(json.loads((site / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[2])["text"])
    ways: dict[str, Way] = Ways()
    ways["text"] = Brittle()
    samples, plain = load(ways=ways).inputs["text"], load(ways=Ways(digest="sound")).inputs["text"]
    assert not samples[2].any()
    assert plain[2].any()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(samples[others], plain[others])


def test_a_fault_that_a_preprocessor_finds_is_named_like_any_other(site: Path, load: Callable[..., Samples]) -> None:
    class Particular(Way):
        def read(self, value: RawValue) -> Tensor:
            raise MediaFault(field="loudness", came="0", allowed="more")

    ways: dict[str, Way] = Ways()
    ways["audio"] = Particular()
    with pytest.raises(ManifestError, match=r"line 1, wav/0\.wav: audio\.loudness is 0; allowed: more"):
        load(ways=ways)


def test_a_preprocessor_that_breaks_its_own_word_is_named(site: Path, load: Callable[..., Samples]) -> None:
    ways: dict[str, Way] = Ways()
    ways["image"] = Way(shape=(4,))
    with pytest.raises(ModelError, match=r"preprocessor of image made \[6, 3\] of 6 values; allowed: \[6, 4\]"):
        load(ways=ways)
