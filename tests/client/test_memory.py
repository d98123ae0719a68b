"""What a run's preprocessing would make of all rows is judged before anything is paid for, by public numbers alone."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from client import agent
from client.agent import WantedSamples, read_samples
from client.cohort import Asked, answer_cohort
from client.memory import GIB, bytes_of_row
from client.run_model import exchanged_shapes, key_of
from client.sample_store import SampleStore
from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples, preprocessors_of
from shared.loader import blank_value
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, StatisticsReply, TrainReply
from shared.model.registry import encoder_registry
from tests.client.asking import ask, ask_counts, site_file, used
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cold")
RUN = tiny_config(
    private=True,
    training={"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2},
    statistics={"noise_multiplier": 2.0},
)
ROW = 2 * 4 * 4
"""bytes: two vectors of four float32"""
REFUSED = Refusal("refused")


def limited(folder: Path, gib: float, *, rows: int = 40, nominal: int = 40, epsilon: float = 8.0) -> Path:
    folder.mkdir(exist_ok=True)
    path = site_file(folder, rows=rows, epsilon=epsilon)
    text = path.read_text(encoding="utf-8").replace("nominal_size = 40", f"nominal_size = {nominal}")
    path.write_text(text.replace("[privacy]", f"[limits]\nmemory_gib = {gib!r}\n[privacy]"), encoding="utf-8")
    return path


def test_a_run_whose_rows_would_fill_the_memory_is_refused_before_anything_is_paid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = limited(tmp_path, (40 * ROW - 1) / GIB)
    monkeypatch.setattr(agent, "read_samples", lambda *_: pytest.fail("the data was opened"))
    assert ask(path, RUN) == REFUSED
    assert ask_counts(path, RUN) == REFUSED
    assert "limits.memory_gib: the run's preprocessing makes 1.19e-06 GiB of 40 rows" in caplog.text
    assert "(bytes a row: left 16, right 16)" in caplog.text
    assert not (tmp_path / "ledger.sqlite").exists()


def test_rows_that_just_fit_are_trained_with(tmp_path: Path) -> None:
    path = limited(tmp_path, 40 * ROW / GIB)
    assert isinstance(ask_counts(path, RUN), StatisticsReply)
    used(ask(path, RUN))


@pytest.mark.parametrize("rows", [4, 160])
def test_what_a_run_would_take_is_judged_by_public_numbers_alone(rows: int, tmp_path: Path) -> None:
    assert isinstance(ask(limited(tmp_path / "fits", 40 * ROW / GIB, rows=rows), RUN), TrainReply)
    assert ask(limited(tmp_path / "not", (40 * ROW - 1) / GIB, rows=rows), RUN) == REFUSED
    # and by the site's own: no other site's, and not by what its rows hold
    assert ask(limited(tmp_path / "larger", 40 * ROW / GIB, rows=rows, nominal=41), RUN) == REFUSED


def test_each_site_of_a_cohort_is_judged_by_its_own_size(tmp_path: Path, store: SampleStore) -> None:
    """Though all permit the same, and what one is permitted stands for the others."""
    paths = [limited(tmp_path / str(nominal), 40 * ROW / GIB, nominal=nominal) for nominal in (40, 41, 39)]
    for path in paths:
        path.write_text(
            path.read_text(encoding="utf-8").replace('"north', f'"north-{path.parent.name}'), encoding="utf-8"
        )
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=RUN, run_id="r", round_number=1, planned_rounds=RUN.federation.rounds
    )
    shapes = exchanged_shapes(key_of(RUN), ("left", "right")).sent
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    asked = [Asked(header, weights, path) for path in paths]
    replies = list(answer_cohort(asked, store=store, memory_bytes=1 << 30))
    assert [isinstance(reply, TrainReply) for reply in replies] == [True, False, True]
    assert replies[1] == REFUSED


KINDS: dict[str, dict[str, object]] = {"signal": {"channels": 3}, "features": {"width": 5}}


def run_of(kind: str, encoder: str, **preprocess: object) -> RunConfig:
    schema = {"kind": kind, **KINDS.get(kind, {})}
    return RunConfig.model_validate(
        {
            **tiny_config(private=True).model_dump(),
            "data": {"task": "single-label", "labels": ["a", "b"], "modalities": {"x": schema}},
            "model": {
                "embedding_width": 8,
                "encoders": {"x": {"name": encoder, "preprocess": preprocess}},
                "fusion": {"name": "concat"},
            },
        }
    )


WITHOUT_WEIGHTS = [
    (kind, name)
    for kind in ("image", "text", "audio", "signal", "features", "video")
    for name in encoder_registry.names(takes=kind)
    if not {"path", "network_path"} & set(encoder_registry.get(name, takes=kind).options.model_fields)
]


def test_the_default_lets_no_server_fill_a_machine(tmp_path: Path) -> None:
    """As an owner has it who has set nothing: a thousand clips of the largest kind are 3 TB."""
    run = run_of("video", "video", frames=256, size=1024)
    (bytes_a_row,) = bytes_of_row(key_of(run), ("x",)).values()
    assert bytes_a_row == 256 * 3 * 1024 * 1024 * 4
    card = '[content]\ntask = "single-label"\nlabels = ["a", "b"]\n[content.modalities.x]\nkind = "video"\n'
    path = site_file(tmp_path)
    path.write_text(path.read_text().replace('["left", "right"]', '["x"]'), encoding="utf-8")
    head = (tmp_path / "dataset.toml").read_text(encoding="utf-8").split("[content]")[0]
    (tmp_path / "dataset.toml").write_text(head + card, encoding="utf-8")
    assert ask(path, run) == REFUSED


@pytest.mark.parametrize(("kind", "encoder"), WITHOUT_WEIGHTS)
def test_a_row_takes_what_is_said(kind: str, encoder: str) -> None:
    run = run_of(kind, encoder)
    (way,) = preprocessors_of(run, names=("x",)).values()
    value = way.finish(way.read(blank_value(run.data.modalities["x"]))[None])
    said = bytes_of_row(key_of(run), ("x",))["x"]
    assert said in (value.nbytes, 2 * value.nbytes if kind == "text" and value.is_floating_point() else None)


def test_the_rows_of_one_run_at_a_time_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run within the limit, and any number of them: what was prepared for the others has gone before the next."""
    path, kept = limited(tmp_path, 40 * ROW / GIB, epsilon=100.0), list[weakref.ref[Samples]]()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)

    def read(wanted: WantedSamples) -> Samples:
        assert not any(each() for each in kept)
        samples = read_samples(wanted)
        kept.append(weakref.ref(samples))
        return samples

    monkeypatch.setattr(agent, "read_samples", read)
    for rate, run_id in ((0.5, "a"), (0.25, "b"), (0.125, "c"), (0.125, "d")):
        run = tiny_config(private=True, training={**RUN.training.model_dump(), "learning_rate": rate})
        used(ask(path, run, run_id=run_id))
        gc.collect()
    assert len(kept) == 3
    assert [each() is not None for each in kept] == [False, False, True]


def test_the_owners_limit_of_the_cache_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = limited(tmp_path, 4.0)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("memory_gib = 4.0", "memory_gib = 4.0\ncache_gib = 2.0"), encoding="utf-8")
    told = list[object]()

    def load(*given: Path, **named: object) -> object:
        told.append(named["most_cache_bytes"])
        return load_samples(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    assert isinstance(ask(path, RUN), TrainReply)
    assert told == [2 * GIB]
