"""Limits: what the owner excludes is refused by its name in the owner's log, with the code `refused` on the wire."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

import shared.model.multimodal  # noqa: F401  # enters all parts in their registries
from client import agent
from client.limits import OwnerLimits, _parts, matches
from shared.config import RunConfig
from shared.messages import Refusal, TrainReply
from shared.model.registry import encoder_registry, fusion_registry, head_registry
from shared.privacy import ledger_transaction
from shared.settings import Settings
from tests.client.asking import ask, rows_of, site_file, used
from tests.tiny import PRIVACY, tiny_config

RUN = tiny_config(
    private=True, training={"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2}
)


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


def limited(folder: Path, limits: str, **privacy: object) -> Path:
    path = site_file(folder, **privacy)  # type: ignore[arg-type]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[privacy]", f"[limits]\n{limits}\n[privacy]"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("allowing", "excluding"),
    [
        ('encoders = ["linear"]', 'encoders = ["conv1d"]'),
        ('fusions = ["concat", "mean"]', 'fusions = ["mean"]'),
        ('heads = ["linear"]', "heads = []"),
        ("epsilon = 8.0", "epsilon = 7.9"),
        ("rounds = 3", "rounds = 2"),
        ("rounds_a_day = 1", None),
        ("local_steps = 2", "local_steps = 1"),
        ("rows_a_round = 80", "rows_a_round = 79"),
        ('run_ids = ["other", "r*"]', 'run_ids = ["s*", ""]'),
        ('run_names = ["t*y"]', 'run_names = ["tinier*"]'),
    ],
)
def test_a_limit_is_kept_and_named(
    allowing: str, excluding: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(ask(limited(tmp_path, allowing), RUN), TrainReply)
    if excluding is None:
        return
    (tmp_path / "not").mkdir()
    assert ask(limited(tmp_path / "not", excluding), RUN) == Refusal("refused")
    assert f"limits.{excluding.split()[0]}" in caplog.text
    assert not (tmp_path / "not" / "ledger.sqlite").exists() or rows_of(tmp_path / "not") == ()


def test_every_limit_that_is_passed_is_named_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ask(limited(tmp_path, 'encoders = ["x"]\nrounds = 1\nepsilon = 1.0'), RUN)
    assert all(f"limits.{name}" in caplog.text for name in ("encoders", "rounds", "epsilon"))


def test_a_run_gets_no_more_rounds_than_its_owner_permits_however_often_it_asks(tmp_path: Path) -> None:
    """Without noise, where no plan counts them; attempts count as rounds."""
    path = limited(tmp_path, "rounds = 3", allow_non_private=True)
    run = tiny_config(private=False)
    for attempt in range(3):
        used(ask(path, run, attempt=attempt))
    assert ask(path, run, attempt=3) == Refusal("refused")
    used(ask(path, run, run_id="s"))


def test_rounds_a_day_are_of_all_runs_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = limited(tmp_path, "rounds_a_day = 2", epsilon=50.0)
    used(ask(path, RUN))
    used(ask(path, RUN, run_id="s"))
    assert ask(path, RUN, run_id="t") == Refusal("refused")

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Tomorrow":
            return cls.fromtimestamp(time.time() + 24 * 3600 + 2, UTC)

    monkeypatch.setattr(ledger_transaction, "datetime", Tomorrow)
    used(ask(path, RUN, run_id="t"))


def test_a_clip_encoders_inner_encoder_is_limited_too() -> None:
    run = RunConfig.model_validate(
        {
            **tiny_config(private=True).model_dump(),
            "data": {"task": "single-label", "labels": ["a", "b"], "modalities": {"clip": {"kind": "video"}}},
            "model": {
                "embedding_width": 4,
                "encoders": {"clip": {"name": encoder_registry.names(takes="video")[0]}},
                "fusion": {"name": "concat"},
            },
        }
    )
    outer = run.model.encoders["clip"].name
    inner = encoder_registry.get(outer, takes="video").options.model_fields["image"].default
    assert list(_parts(run, limits=OwnerLimits(encoders=(outer, inner)))) == []
    assert list(_parts(run, limits=OwnerLimits(encoders=(outer,))))


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("study-7", "study-7", True), ("study-7", "study-*", True), ("study-7", "*", True), ("", "*", True),
        ("study-7", "study-", False), ("study-7", "*-8", False), ("a-b-c", "a*b*c", True), ("ab", "a*ab", False),
        ("aab", "a*ab", True), ("study.7", "study?7", False), ("a", "a*a", False), ("x", "", False),
    ],
)  # fmt: skip
def test_patterns_mean_what_they_say(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, pattern) == expected


def test_a_pattern_cannot_be_made_to_take_long() -> None:
    """What a backtracking matcher would never end with."""
    assert not matches("a" * 100_000, "a*" * 1000 + "b")


def test_no_option_but_those_of_checkpoints_is_a_path_or_code() -> None:
    """Every option that takes free text: a new one has to be looked at here, and a path has to be called one."""
    known = {
        "path", "network_path",  # refused unless the owner lists them: shared/model/encoders/checkpoint.py
        "weights_digest", "network_digest",  # compared
        "before",  # said to the language model
        "image",  # the name of a registered encoder
    }  # fmt: skip
    found = {
        name
        for options in all_options()
        for name, field in options.model_fields.items()
        if field.annotation is str or "str" in str(field.annotation).replace("Literal", "").split("[")
    }
    assert found <= known, found - known
    assert "path" in found


def all_options() -> set[type[BaseModel]]:
    """Option tables of parts, of preprocessing and of augmentation."""
    registered = {
        registry.get(name).options
        for registry in (encoder_registry, fusion_registry, head_registry)
        for name in registry.names()
    }
    return registered | {
        each for each in subclasses(Settings) if each.__module__.startswith(("shared.preprocess", "shared.model"))
    }


def subclasses(kind: type[BaseModel]) -> set[type[BaseModel]]:
    return {each for sub in kind.__subclasses__() for each in (sub, *subclasses(sub))}


def test_a_site_does_not_open_the_file_that_a_run_starts_from(tmp_path: Path) -> None:
    """It names one of the server's; here nobody looks at it."""
    model = {**RUN.model.model_dump(), "start": {"path": str(tmp_path / "pipe")}}
    os.mkfifo(tmp_path / "pipe")  # whoever opened it would wait for ever
    run = RunConfig.model_validate({**RUN.model_dump(), "model": model, "privacy": dict(PRIVACY)})
    used(ask(site_file(tmp_path), run))
