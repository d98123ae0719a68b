"""Start: a run begins with what fits of an earlier one, and its record says how that was made."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.checkpoint import save_model, save_progress
from server.rounds import start_or_resume
from server.settings import write_settings
from server.start import read_start
from shared.config import RunConfig
from shared.errors import ModelError, RunError
from shared.model.multimodal import build_model
from tests.server.conftest import RECORD, protected_run, small_run, small_settings

ENCODERS = ["encoders.*"]


def begun_with(path: Path, *, parts: list[str] | None = None, privacy: object = "none", **model: object) -> RunConfig:
    start = {"path": str(path), **({"parts": parts} if parts is not None else {})}
    table = {**small_run().model.model_dump(), "start": start, **model}
    return protected_run(changes={"model": table, "privacy": privacy})


def earlier(
    folder: Path, *, run: RunConfig | None = None, changes: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A run folder that has ended, with a model of numbers that no seed makes."""
    run = run or small_run()
    folder.mkdir()
    settings = small_settings(run, folder=folder)
    write_settings(settings, folder=folder)
    progress = start_or_resume(build_model(run), settings=settings, folder=folder)
    save_progress(progress, folder=folder, run_digest=run.digest)
    weights = {name: torch.full_like(value, 0.25) for name, value in progress.weights.items()} | dict(changes or {})
    save_model(weights, path=folder / "model.safetensors", run_digest=run.digest)
    return weights


def started(run: RunConfig, folder: Path) -> Mapping[str, Tensor]:
    return start_or_resume(build_model(run), settings=small_settings(run, folder=folder), folder=folder).weights


@pytest.mark.parametrize("named", ["", "model.safetensors"])
def test_a_run_begins_with_the_parts_that_are_named_and_makes_the_others_anew(named: str, tmp_path: Path) -> None:
    before = earlier(tmp_path / "before")
    run = begun_with(tmp_path / "before" / named, parts=["encoders.left.*", "fusion.*"])
    fresh, weights = dict(build_model(run).named_parameters()), started(run, tmp_path / "now")
    for name, value in weights.items():
        is_taken = name.startswith(("encoders.left.", "fusion."))
        assert torch.equal(value, before[name] if is_taken else fresh[name])


def test_what_is_frozen_begins_with_the_earlier_run_too(tmp_path: Path) -> None:
    before = earlier(tmp_path / "before")
    run = begun_with(tmp_path / "before", parts=ENCODERS, freeze=ENCODERS)
    weights = started(run, tmp_path / "now")
    assert torch.equal(weights["encoders.left.linear.weight"], before["encoders.left.linear.weight"])


def test_what_does_not_fit_is_told_with_what_does(tmp_path: Path) -> None:
    earlier(tmp_path / "before", changes={"other": torch.zeros(2), "head.linear.bias": torch.zeros(7)})
    for parts in (None, ["head.*", "other"]):
        run = begun_with(tmp_path / "before", parts=parts)
        with pytest.raises(ModelError) as caught:
            read_start(build_model(run), run=run)
        said = str(caught.value)
        assert "head.linear.bias: is [7], and this model's is [3]" in said
        assert "other: this model trains no such parameter" in said
        assert "What fits: encoders.left.linear.bias" in said
    run = begun_with(tmp_path / "before", parts=["encoder.*"])
    with pytest.raises(ModelError, match=r"model\.start\.parts: \['encoder\.\*'\] match no name; there are: encoders"):
        read_start(build_model(run), run=run)


def test_numbers_that_are_none_are_not_begun_with(tmp_path: Path) -> None:
    earlier(tmp_path / "before", changes={"head.linear.bias": torch.full((3,), float("nan"))})
    run = begun_with(tmp_path / "before")
    with pytest.raises(ModelError, match=r"head\.linear\.bias: holds numbers that are not finite"):
        read_start(build_model(run), run=run)


def test_a_run_that_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for name, said in (("none", "no model.safetensors there"), ("torn.safetensors", "not readable")):
        run = begun_with(tmp_path / name)
        with pytest.raises(RunError, match=said):
            read_start(build_model(run), run=run)


def test_a_start_from_a_run_that_was_not_private_is_told(tmp_path: Path) -> None:
    """Also where a private run lies between the two."""
    earlier(tmp_path / "open")
    earlier(tmp_path / "private", run=protected_run(changes={"privacy": RECORD}))
    between = begun_with(tmp_path / "open", privacy=RECORD)
    earlier(tmp_path / "between", run=between)
    (tmp_path / "alone.safetensors").write_bytes((tmp_path / "private" / "model.safetensors").read_bytes())
    expected = {"open": "none", "private": "private", "between": "none", "alone.safetensors": "unknown"}
    for name, privacy in expected.items():
        run = begun_with(tmp_path / name)
        found = read_start(build_model(run), run=run)
        assert found is not None
        assert found[1].privacy == privacy
        assert found[1].run_id == (None if name == "alone.safetensors" else "r")
        assert found[1].parameters == sum(value.numel() for value in found[0].values())


def test_a_folder_whose_settings_are_others_than_the_models_vouches_for_nothing(tmp_path: Path) -> None:
    earlier(tmp_path / "open")
    earlier(tmp_path / "private", run=protected_run(changes={"privacy": RECORD}))
    (tmp_path / "private" / "model.safetensors").write_bytes((tmp_path / "open" / "model.safetensors").read_bytes())
    run = begun_with(tmp_path / "private")
    found = read_start(build_model(run), run=run)
    assert found is not None
    assert found[1].privacy == "unknown"


def test_a_resumed_run_needs_its_start_no_more(tmp_path: Path) -> None:
    earlier(tmp_path / "before")
    run, now = begun_with(tmp_path / "before"), tmp_path / "now"
    model, settings = build_model(run), small_settings(run, folder=now)
    progress = start_or_resume(model, settings=settings, folder=now)
    save_progress(progress, folder=now, run_digest=run.digest)
    (tmp_path / "before" / "model.safetensors").unlink()
    again = start_or_resume(model, settings=settings, folder=now)
    assert again.start == progress.start
    assert again.start is not None
    assert torch.equal(again.weights["head.linear.bias"], progress.weights["head.linear.bias"])
