"""motet recommend and motet classify: what comes back, what is kept for next time, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import motet
from server.catalogue import open_catalogue, recommend
from server.joint_space import JointSpace
from server.naming import Labelled, few_shot, fit_head, name_scores, named
from server.nearest import NearestPlaces
from server.trained import open_trained
from shared.errors import ManifestError, RunError
from shared.model.matching import Matching
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.simulations.matching_runs import matching_run, write_matching_data
from tests.simulations.runs import model_of, simulate, skip_preflight, toml

TASK = Matching(
    pair=("left", "right"), num_outputs=8, kind="info-nce", score="cosine", temperature=0.1, num_negatives=3
)


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that has learned to match; its data set lies beside it."""
    root = tmp_path_factory.mktemp("matching")
    write_matching_data(root / "data")
    table = matching_run(private=False, federation={"rounds": 12})
    lines = ['about = "test"', "[source]", 'path = "data"', *toml("run", table)]
    (root / "scenario.toml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        skip_preflight(patch)
        patch.setenv("MOTET_HOME", str(root / "home"))
        settings, data_set = read_scenario(root / "scenario.toml", home=root / "home")
        prepare_run(settings, data_set=data_set, folder=root / "run", engine="cohort")
        run_simulation(root / "run")
        yield root / "run"


def _space(run: Path) -> JointSpace:
    return JointSpace(open_trained(run))


def test_a_run_keeps_the_public_places_and_centres_with_its_weights(run: Path) -> None:
    kept = model_of(run)
    assert tuple(kept["fusion.negatives"].shape) == (2, 16, 4)
    assert float(kept["fusion.centers"].abs().sum()) > 0


def test_a_query_finds_its_own_item_first(run: Path) -> None:
    folder, space = run.parent / "data" / "held-out" / "test", _space(run)
    catalogue = open_catalogue(space, folder, modality="right")
    assert len(catalogue.entries) == 20
    first = 0
    for item in range(10):
        query = space.place("left", folder / f"left-{item}-0.npy")
        found = recommend(space, catalogue, query, top=3)
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        by_hand = space.task.scores(query[None], catalogue.places)[0].sort(descending=True).values[:3]
        assert scores == pytest.approx(by_hand.tolist(), abs=1e-5)
        first += found[0].item == f"test-{item}"
    # one in ten by chance
    assert first >= 6


def test_a_catalogue_is_read_once_and_a_changed_one_where_it_changed(run: Path, tmp_path: Path) -> None:
    space, folder = _space(run), tmp_path / "files"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(4):
        np.save(folder / f"{number}.npy", draws.normal(size=4).astype(np.float32))
    (folder / "copy.npy").write_bytes((folder / "0.npy").read_bytes())
    first = open_catalogue(space, folder, modality="right")
    assert (len(first.entries), first.num_read) == (4, 4)
    assert [entry.name for entry in first.entries] == ["0.npy", "1.npy", "2.npy", "3.npy"]
    again = open_catalogue(space, folder, modality="right")
    assert again.num_read == 0
    assert torch.equal(again.places, first.places)
    np.save(folder / "1.npy", draws.normal(size=4).astype(np.float32))
    changed = open_catalogue(space, folder, modality="right")
    assert changed.num_read == 1
    assert torch.equal(changed.places[[0, 2, 3]], first.places[[0, 2, 3]])
    assert not torch.equal(changed.places[1], first.places[1])
    # the same values of the other modality lie elsewhere
    assert not torch.allclose(open_catalogue(space, folder, modality="left").places, changed.places)


def test_a_damaged_cache_is_made_again(run: Path, tmp_path: Path) -> None:
    space, folder = _space(run), tmp_path / "files"
    folder.mkdir()
    np.save(folder / "0.npy", np.ones(4, dtype=np.float32))
    first = open_catalogue(space, folder, modality="right")
    for path in (space.trained.settings.cache / "catalogues").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    again = open_catalogue(space, folder, modality="right")
    assert again.num_read == 1
    assert torch.equal(again.places, first.places)


def _typed(*words: object) -> str:
    result = CliRunner().invoke(motet.app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_commands_answer_in_tables_and_json(run: Path) -> None:
    folder = run.parent / "data" / "held-out" / "test"
    words = ("recommend", run, "--catalogue", folder, "--value", f"left={folder / 'left-3-0.npy'}", "--top", 2)
    lines = [json.loads(line) for line in _typed(*words, "--json").splitlines()]
    assert [line["rank"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"rank", "score", "name", "shown", "item"}
    table = _typed(*words)
    assert lines[0]["item"] in table
    assert f"{lines[0]['score']:.3f}" in table
    same = [json.loads(line) for line in _typed(*words, "--among", "left", "--json").splitlines()]
    assert same[0]["shown"] == "left-3-0.npy"
    assert same[0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_what_cannot_be_asked_says_what_can(run: Path, tmp_path: Path) -> None:
    folder = run.parent / "data" / "held-out" / "test"
    base = ("recommend", run, "--catalogue", folder)
    assert "give one of --text" in _typed(*base)
    for words, says in (
        ((*base, "--text", "a dog"), r"--text: the model matches no text; allowed: a value of left \(features\)"),
        ((*base, "--value", "middle=x.npy"), r"middle: the model has no such modality; allowed: left or right"),
        ((*base, "--value", f"left={tmp_path / 'none.npy'}"), r"left \(none.npy\)"),
        (("recommend", run, "--catalogue", tmp_path, "--value", f"left={folder / 'left-0-0.npy'}"), "empty, for this"),
        (
            (*base, "--value", f"left={folder / 'left-0-0.npy'}", "--among", "middle"),
            "--among 'middle': the model matches no such modality; allowed: left, right",
        ),
        (("recommend", run, "--catalogue", tmp_path / "no", "--value", f"left={folder / 'left-0-0.npy'}"), "no such"),
        (
            ("classify", run, "--value", f"left={folder / 'left-0-0.npy'}", "--classes", "a,b"),
            "right, which is no text",
        ),
        (("classify", run, folder, "--by", "language"), r"language: no group column of the run's data; allowed: none"),
    ):
        with pytest.raises(RunError, match=says):
            _typed(*words)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    with pytest.raises(ManifestError, match=r"broken.npy"):
        _typed("recommend", run, "--catalogue", tmp_path, "--value", f"left={folder / 'left-0-0.npy'}")


def test_a_run_with_labels_has_no_joint_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_preflight(monkeypatch)
    simulate(tmp_path, private=False, changes={"federation": {"rounds": 1}})
    with pytest.raises(RunError, match=r"no joint space; allowed: a run with task = \"matching\""):
        JointSpace(open_trained(tmp_path / "run"))


def _places(count: int, *, seed: int, width: int = 16) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    # clustered, as places of a trained model are
    middles = torch.randn(40, width, generator=draws)
    rows = torch.randint(0, 40, (count,), generator=draws)
    return torch.nn.functional.normalize(middles[rows] + 0.5 * torch.randn(count, width, generator=draws), dim=1)


@pytest.mark.parametrize("score", ["cosine", "euclidean"])
def test_the_graph_finds_nearly_all_that_exact_search_finds(score: Literal["cosine", "euclidean"]) -> None:
    """Measured: .99 and more of the ten nearest among 4,000."""
    places, queries = _places(4000, seed=0), _places(50, seed=1)
    exact = NearestPlaces(places, score=score)
    walked = NearestPlaces(places, score=score, exact_below=100)
    assert exact.is_exact
    assert not walked.is_exact
    numbers, scores = exact.search(queries, most=10)
    table = queries @ places.T if score == "cosine" else 1 - torch.cdist(queries, places).square()
    assert scores == pytest.approx(table.topk(10).values.numpy(), abs=1e-4)
    found, _ = walked.search(queries, most=10)
    shares = [len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(numbers, found, strict=True)]
    assert float(np.mean(shares)) >= 0.95


@pytest.mark.parametrize("head", ["mean", "logistic"])
def test_a_few_examples_of_each_class_tell_classes_apart(head: Literal["mean", "logistic"]) -> None:
    draws = torch.Generator().manual_seed(0)
    middles = torch.nn.functional.normalize(torch.randn(3, 8, generator=draws), dim=1)
    classes = torch.arange(60) % 3
    places = TASK.placed(middles[classes] + 0.2 * torch.randn(60, 8, generator=draws))
    labelled = Labelled(places=places, classes=classes, names=("a", "b", "c"))
    scores = few_shot(TASK, labelled, shots=4, head=head, draws=5, seed=0)
    assert scores.num_tested == 48
    assert scores.accuracy > 0.9
    assert scores == few_shot(TASK, labelled, shots=4, head=head, draws=5, seed=0)
    shuffled = Labelled(places=places, classes=classes[torch.randperm(60, generator=draws)], names=labelled.names)
    # one in three by chance; 240 tests, a few of them together: 5 standard errors are .15
    assert few_shot(TASK, shuffled, shots=4, head=head, draws=5, seed=0).accuracy < 0.5
    with pytest.raises(RunError, match=r"only 0 classes have more values than that"):
        few_shot(TASK, labelled, shots=20, head=head, draws=1, seed=0)


def test_a_class_with_too_few_values_is_left_out_and_told() -> None:
    places = TASK.placed(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
    classes = torch.tensor([1, 2] * 9 + [0, 0])
    labelled = Labelled(places=places, classes=classes, names=("rare", "b", "c"))
    scores = few_shot(TASK, labelled, shots=2, head="mean", draws=3, seed=0)
    assert (scores.num_classes, scores.num_tested, scores.left_out) == (2, 14, ("rare",))


def test_logistic_regression_is_at_its_minimum() -> None:
    """The gradient of the penalised loss is zero there; scikit-learn's own finds the same scores."""
    from sklearn.linear_model import LogisticRegression

    draws = torch.Generator().manual_seed(1)
    classes = torch.arange(30) % 3
    places = torch.nn.functional.normalize(torch.randn(30, 8, generator=draws) + classes[:, None], dim=1)
    ours = fit_head(TASK, places, classes, head="logistic")(places)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(places.numpy() * 8**0.5, classes.numpy())
    expected = theirs.decision_function(places.numpy() * 8**0.5)
    difference = ours.numpy() - expected
    assert difference - difference.mean(axis=1, keepdims=True) == pytest.approx(np.zeros((30, 3)), abs=2e-2)


def test_classes_are_ordered_by_score_and_their_shares_add_up() -> None:
    classes = torch.eye(8)[:3]
    found = named(
        TASK, torch.nn.functional.normalize(torch.tensor([1.0, 3, 2, 0, 0, 0, 0, 0]), dim=0), classes, names="abc"
    )
    assert [each.name for each in found] == ["b", "c", "a"]
    assert sum(each.probability for each in found) == pytest.approx(1)


def test_names_of_classes_need_a_modality_of_text(run: Path) -> None:
    with pytest.raises(RunError, match="right, which is no text"):
        name_scores(_space(run), "left", ["a", "b"], template="{}")
