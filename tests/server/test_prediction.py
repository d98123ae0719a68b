"""Predictions: labels, probabilities and contributions are those of the model, and every bad input is told."""

import json
from itertools import permutations
from math import factorial, log
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import motet
from server.prediction import Predictor
from server.settings import read_settings, write_settings
from server.shapley import shapley_values
from server.trained import open_trained
from shared.errors import ManifestError, ModelError, RunError
from tests.server.using_models import picture, recording, small_run, write_rows, write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", run=small_run())


@pytest.fixture(scope="module")
def predictor(run_folder: Path) -> Predictor:
    return Predictor(open_trained(run_folder))


def command(*arguments: object) -> str:
    """What `motet` prints; an error of Motet's own comes out as it was raised."""
    done = CliRunner().invoke(motet.app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8))
def test_shapley_values_are_the_mean_over_all_orders(drawn: list[float]) -> None:
    scores = torch.tensor(drawn, dtype=torch.float64)[:, None]
    wanted = torch.zeros(3, dtype=torch.float64)
    for order in permutations(range(3)):
        subset = 0
        for player in order:
            wanted[player] += (scores[subset | 1 << player, 0] - scores[subset, 0]) / factorial(3)
            subset |= 1 << player
    found = shapley_values(scores, num_players=3)[:, 0]
    assert torch.allclose(found, wanted)
    assert float(found.sum()) == pytest.approx(drawn[7] - drawn[0])


def test_probabilities_are_the_models_own(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    said = predictor.of_values({"photo": tmp_path / "a.png", "words": "rain again"})
    readers = predictor.readers
    raw = readers.decoded("photo", picture(), name="a.png")
    batch = readers.batch([{"photo": readers.prepared("photo", raw), "words": readers.prepared("words", "rain again")}])
    wanted = predictor.trained.model(batch.inputs, batch.present).softmax(dim=1)[0].tolist()
    assert list(said.answers["label"].probabilities.values()) == pytest.approx(wanted)
    assert said.modalities == ("photo", "words")
    assert said.answers["label"].labels == ("abc"[wanted.index(max(wanted))],)


def test_contributions_add_up_from_nothing_to_the_answer_and_absent_modalities_have_none(
    predictor: Predictor, tmp_path: Path
) -> None:
    nothing = predictor.trained.model({}, torch.zeros(1, 3, dtype=torch.bool)).log_softmax(dim=1)[0]
    for each in predictor.of_folder(write_rows(tmp_path / "d", rows=5, lacking={1: "photo", 3: "sound"})):
        answer = each.answers["label"]
        place = "abc".index(answer.labels[0])
        change = log(max(answer.probabilities.values())) - float(nothing[place].detach())
        assert sum(answer.contributions.values()) == pytest.approx(change, abs=1e-6)
        assert tuple(answer.contributions) == each.modalities


def test_a_sample_of_one_modality_owes_it_everything(predictor: Predictor) -> None:
    answer = predictor.of_values({"words": "joy"}).answers["label"]
    # heads that are averaged say nothing of nothing: chance
    assert answer.contributions == {"words": pytest.approx(log(max(answer.probabilities.values())) + log(3), abs=1e-6)}


def test_each_kind_of_task_has_its_answer(tmp_path: Path) -> None:
    several = {
        "task": "several",
        "tasks": {
            "mood": {"kind": "single-label", "labels": ["x", "y"]},
            "tags": {"kind": "multi-label", "labels": ["p", "q", "r"]},
            "score": {"kind": "rating", "rating_range": (-3, 3)},
        },
    }
    run = write_run(tmp_path / "run", run=small_run(data=several))
    answers = Predictor(open_trained(run)).of_values({"words": "sunny"}).answers
    assert list(answers) == ["mood", "tags", "score"]
    assert sum(answers["mood"].probabilities.values()) == pytest.approx(1)
    assert {label for label, p in answers["tags"].probabilities.items() if p >= 0.5} == set(answers["tags"].labels)
    assert answers["score"].rating is not None
    assert answers["score"].contributions == {"words": pytest.approx(answers["score"].rating)}


def test_a_folder_without_labels_is_predicted_as_one_with_them(predictor: Predictor, tmp_path: Path) -> None:
    plain = list(predictor.of_folder(write_rows(tmp_path / "plain", rows=4)))
    labelled = list(predictor.of_folder(write_rows(tmp_path / "labelled", rows=4, labels="abc")))
    assert plain == labelled
    assert [each.sample for each in plain] == ["line 1", "line 2", "line 3", "line 4"]


def test_all_faults_of_a_folder_come_in_one_error(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "d", rows=4)
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "3.wav").write_bytes(recording()[:60])
    with pytest.raises(ManifestError) as found:
        list(predictor.of_folder(folder))
    assert [fault.place for fault in found.value.faults] == ["line 2, 1.png", "line 4, 3.wav"]


def test_files_are_told_apart_by_their_endings(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.wav").write_bytes(recording())
    (tmp_path / "c.txt").write_text("sunny", encoding="utf-8")
    files = [tmp_path / name for name in ("a.png", "b.wav", "c.txt")]
    by_ending = json.loads(command("predict", run_folder, *files, "--json"))
    named = json.loads(
        command("predict", run_folder, "--image", files[0], "--audio", files[1], "--text", "sunny", "--json")
    )
    assert by_ending["answers"] == named["answers"]
    assert by_ending["modalities"] == ["photo", "words", "sound"]


def test_predictions_go_to_the_terminal_and_to_a_file(run_folder: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "said.jsonl", write_rows(tmp_path / "d", rows=3)
    shown = command("predict", run_folder, folder, "--out", out)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [line["sample"] for line in lines] == ["line 1", "line 2", "line 3"]
    assert "line 3" in shown
    assert "photo" in shown
    with pytest.raises(AssertionError, match="there already"):
        command("predict", run_folder, folder, "--out", out)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "nothing to predict from"),
        (("--signal", "a.npy"), "no modality of this kind"),
        (("--text", "a", "--text", "b"), "given twice"),
        ((f"nothing={__file__}",), "'nothing' is no modality of the model"),
    ],
)
def test_a_command_that_cannot_be_meant_is_told(run_folder: Path, arguments: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(AssertionError, match=wanted):
        command("predict", run_folder, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.png", b"GIF89a", "content is not PNG"),
        ("a.png", None, "not readable"),
        ("a.xyz", b"x", "no modality of the model has files ending in '.xyz'"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b"   ", "text is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(
    run_folder: Path, tmp_path: Path, name: str, content: bytes | None, wanted: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=wanted):
        command("predict", run_folder, tmp_path / name)


def test_a_run_that_has_not_ended_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", run=small_run())
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match="has not ended; go on with: motet simulate --resume"):
        open_trained(run)


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", run=small_run())
    settings_ = read_settings(run)
    write_settings(settings_.model_copy(update={"run": small_run(seed=2)}), folder=run)
    with pytest.raises(RunError, match="weights belong to settings"):
        open_trained(run)


def test_a_model_that_is_damaged_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", run=small_run())
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors: not readable .* restore it from a backup"):
        open_trained(run)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    run = write_run(tmp_path / "run", run=small_run())
    path = run / "model.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    first, second = list(weights)[:2]
    del weights[first]
    weights[second] = torch.full((7,), torch.nan)
    safetensors.torch.save_file(weights, path, metadata={"run_digest": small_run().digest})
    with pytest.raises(RunError) as found:
        open_trained(run)
    assert f"{first}: missing" in str(found.value)
    assert f"{second}: is [7]; allowed:" in str(found.value)
    assert f"{second}: NaN" in str(found.value)


def test_a_run_that_matches_pairs_is_sent_to_recommend(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = open_trained(run_folder)
    matching = trained.run.data.model_copy(update={"task": "matching", "pair": ("photo", "words")})
    run = trained.run.model_copy(update={"data": matching})
    monkeypatch.setattr(type(trained), "run", property(lambda self: run))
    with pytest.raises(ModelError, match="motet recommend"):
        Predictor(trained)


def test_it_is_told_that_parts_of_the_model_stayed_at_the_sites(tmp_path: Path) -> None:
    kept = small_run()
    kept = kept.model_copy(update={"model": kept.model.model_copy(update={"personal": ("head.*",)})})

    assert "left head.* with the sites" in command("predict", write_run(tmp_path / "run", run=kept), "--text", "good")
    assert "with the sites" not in command("predict", write_run(tmp_path / "other", run=small_run()), "--text", "good")
