"""Personal: what a site keeps to itself is in no reply, nobody else's to read, and carried from round to round."""

import logging
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client import agent
from client.cohort import Asked, answer_cohort
from client.personal import personal_folder
from client.resident.answers import NO_ANSWERS, Answers, KeptAnswers, KeptCase
from client.run_model import exchanged_shapes, key_of
from client.sample_store import SampleStore
from client.site import read_site
from shared.config import RunConfig, TrainingSettings
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, TrainReply
from shared.privacy.ledger import Ledger
from shared.tensor_file import as_bytes, read_tensors
from tests.client.asking import SITE_PRIVACY, rows_of, site_file, used
from tests.client.test_private_training import variance_is_plausible
from tests.tiny import PRIVACY, tiny_config, tiny_run

pytestmark = pytest.mark.usefixtures("cold")

BOTH = ("left", "right")
HEAD = ("head.linear.weight", "head.linear.bias")
FULL = {"optimizer": "momentum", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2}


def run_of(*personal: str, privacy: object = "none") -> RunConfig:
    table = tiny_run(private=False)["model"]
    assert isinstance(table, dict)
    return tiny_config(private=False, model={**table, "personal": personal}, training=FULL, privacy=privacy)


def header_of(run: RunConfig, *, number: int = 1, run_id: str = "r") -> RequestHeader:
    return RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, planned_rounds=3,
        site_clip_norm=None,
    )  # fmt: skip


def weights_of(run: RunConfig, *, seed: int = 1) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shapes = exchanged_shapes(key_of(run), BOTH).sent
    return {name: torch.randn(shape, generator=draws) * 0.3 for name, shape in shapes.items()}


def answer(
    path: Path,
    run: RunConfig,
    weights: Mapping[str, Tensor],
    *,
    number: int = 1,
    run_id: str = "r",
    attempt: int = 0,
    answers: Answers = NO_ANSWERS,
) -> TrainReply:
    header = header_of(run, number=number, run_id=run_id).model_copy(update={"attempt": attempt})
    return used(agent.answer_train(header, lambda _: dict(weights), site_file=path, answers=answers))


def open_site(folder: Path) -> Path:
    return site_file(folder, allow_non_private=True, trust_server=True, reproducible_noise=True, epsilon=50.0)


def own_of(path: Path, *, run_id: str = "r") -> dict[str, Tensor]:
    """What its last round made."""
    return read_tensors(max(personal_folder(read_site(path), run_id=run_id).iterdir()))[0]


@pytest.mark.parametrize("privacy", ["none", PRIVACY, SITE_PRIVACY])
@pytest.mark.parametrize("together", [False, True])
def test_a_reply_holds_nothing_personal(privacy: object, together: bool, tmp_path: Path, store: SampleStore) -> None:
    run, path = run_of("head.*", privacy=privacy), open_site(tmp_path)
    weights = weights_of(run)
    if together:
        asked = [Asked(header_of(run), weights, path)]
        (reply,) = answer_cohort(asked, store=store, memory_bytes=1 << 30)
        assert isinstance(reply, TrainReply)
    else:
        reply = answer(path, run, weights)
    assert set(reply.update) == set(weights) - set(HEAD)
    own = own_of(path)
    assert set(own) == set(HEAD)
    assert not torch.equal(own[HEAD[0]], weights[HEAD[0]])


def test_a_site_trains_with_its_own_and_sends_what_it_would_with_the_same_head_from_the_server(tmp_path: Path) -> None:
    run, plain, path = run_of("head.*"), run_of(), open_site(tmp_path)
    first, second = weights_of(run), weights_of(run, seed=2)
    begun = answer(path, run, first)
    own = own_of(path)
    # in its first round a site begins as the request says
    same = answer(path, plain, first, run_id="plain")
    for name, value in begun.update.items():
        torch.testing.assert_close(value, same.update[name])
    torch.testing.assert_close(own[HEAD[0]], first[HEAD[0]] + same.update[HEAD[0]])
    # and in the next with its own, whatever the request holds
    later = answer(path, run, second, number=2)
    same = answer(path, plain, {**second, **own}, number=2, run_id="plain")
    for name, value in later.update.items():
        torch.testing.assert_close(value, same.update[name])
    torch.testing.assert_close(own_of(path)[HEAD[0]], own[HEAD[0]] + same.update[HEAD[0]])


def test_what_is_personal_is_noised_with_all_else(tmp_path: Path) -> None:
    """With all weights 0 the head's weight has no gradient, and what a site keeps of it is noise alone.

    Fails by chance for two seeds in a million.
    """
    training = {"optimizer": "sgd", "learning_rate": 1.0, "sample_rate": 1.0, "local_steps": 1}
    run = run_of("head.*", privacy=PRIVACY).model_copy(update={"training": TrainingSettings.model_validate(training)})
    path = site_file(tmp_path, reproducible_noise=True, epsilon=50.0)
    reply = answer(path, run, {name: torch.zeros_like(value) for name, value in weights_of(run).items()})
    said = reply.header.privacy
    assert said is not None
    noise = own_of(path)["head.linear.weight"].flatten() * 40
    assert variance_is_plausible(noise, said.noise_multiplier * said.clip_norm, false_alarm=1e-6)
    assert not variance_is_plausible(noise * 1e-3, said.noise_multiplier * said.clip_norm, false_alarm=1e-6)


def test_what_is_personal_is_the_owners_alone_to_read(tmp_path: Path) -> None:
    path = open_site(tmp_path)
    answer(path, run_of("head.*"), weights_of(run_of("head.*")))
    folder = personal_folder(read_site(path), run_id="r")
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    above = (folder, folder.parent, folder.parent.parent)
    assert [stat.S_IMODE(each.stat().st_mode) for each in above] == [0o700] * 3


def test_what_is_personal_is_kept_for_rounds_that_are_paid_for_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path, seen = run_of("head.*"), open_site(tmp_path), list[str]()
    monkeypatch.setattr(agent, "keep_own", lambda *_, **__: seen.extend(row.state for row in rows_of(tmp_path)))
    answer(path, run, weights_of(run))
    assert seen == ["reserved"]
    refused = site_file(tmp_path, allow_non_private=False)
    assert isinstance(
        agent.answer_train(header_of(run, run_id="s"), lambda _: weights_of(run), site_file=refused), Refusal
    )
    assert len(seen) == 1


def test_each_run_has_weights_of_its_own_and_lost_ones_begin_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, path, name = run_of("head.*"), open_site(tmp_path), "fusion.project.left.weight"
    weights = weights_of(run)
    first = answer(path, run, weights)
    kept = personal_folder(read_site(path), run_id="r")
    assert torch.equal(first.update[name], answer(path, run, weights, run_id="other").update[name])
    (kept / "000001.safetensors").unlink()
    assert torch.equal(first.update[name], answer(path, run, weights, number=2).update[name])
    (kept / "000002.safetensors").write_bytes(b"torn")
    assert torch.equal(first.update[name], answer(path, run, weights, number=3).update[name])
    assert "begins again with the run's first weights" in caplog.text


def test_weights_of_its_own_that_do_not_fit_or_are_no_numbers_are_not_trained_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, path, name = run_of("head.*"), open_site(tmp_path), "fusion.project.left.weight"
    weights = weights_of(run)
    first = answer(path, run, weights)
    # copies: what was read is the file's own memory, which is written over below
    own = {key: value.clone() for key, value in own_of(path).items()}
    broken = {**own, HEAD[1]: own[HEAD[1]].clone()}
    broken[HEAD[1]][0] = torch.nan
    # torch would spread one number over the whole bias without a word
    for number, held in ((2, broken), (3, {**own, HEAD[1]: own[HEAD[1]][:1]})):
        caplog.clear()
        max(personal_folder(read_site(path), run_id="r").iterdir()).write_bytes(as_bytes(held))
        assert torch.equal(first.update[name], answer(path, run, weights, number=number).update[name])
        assert "holds other weights than the run's" in caplog.text


def test_sites_of_one_cohort_each_go_on_with_their_own(tmp_path: Path, store: SampleStore) -> None:
    run = run_of("head.*")
    paths = []
    for name in ("north", "south"):
        path = open_site(tmp_path / name)
        path.write_text(path.read_text().replace('name = "north"', f'name = "{name}"'), encoding="utf-8")
        paths.append(path)
    rounds = [weights_of(run, seed=seed) for seed in (1, 2)]
    together = []
    for number, weights in enumerate(rounds, start=1):
        asked = [Asked(header_of(run, number=number), weights, path) for path in paths]
        together.append([used(each) for each in answer_cohort(asked, store=store, memory_bytes=1 << 30)])
    agent._loaded_samples.cache_clear()
    for place, name in enumerate(("north", "south")):
        path = open_site(tmp_path / f"alone-{name}")
        path.write_text(path.read_text().replace('name = "north"', f'name = "{name}"'), encoding="utf-8")
        for number, weights in enumerate(rounds, start=1):
            alone = answer(path, run, weights, number=number)
            for key, value in alone.update.items():
                torch.testing.assert_close(value, together[number - 1][place].update[key])


def test_what_its_own_is_worth_a_site_sees_on_its_own_screen_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, path = run_of("head.*"), open_site(tmp_path)
    caplog.set_level(logging.INFO, logger="motet.site")
    replies = [answer(path, run, weights_of(run), number=number) for number in (1, 2, 3)]
    told = [record.message for record in caplog.records if "own rows" in record.message]
    assert len(told) == 1
    own, first = (float(word.rstrip(",")) for word in told[0].split() if word.rstrip(",").replace(".", "").isdigit())
    assert own < first
    assert {tuple(reply.header.model_fields_set) for reply in replies} == {tuple(replies[0].header.model_fields_set)}


def equal(first: TrainReply, second: TrainReply) -> bool:
    return all(torch.equal(first.update[name], value) for name, value in second.update.items())


def ended(*_: object) -> None:
    """As if the process ended there: nothing is caught that is no Exception."""
    raise KeyboardInterrupt


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[TrainReply]:
    """What a site answers in three rounds, asked for the same weights in each."""
    run, path = run_of("head.*"), open_site(tmp_path / "undisturbed")
    replies = [answer(path, run, weights_of(run), number=number) for number in (1, 2, 3)]
    agent._loaded_samples.cache_clear()
    # its own weights show in what it sends
    assert not equal(replies[0], replies[1])
    assert not equal(replies[1], replies[2])
    return replies


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[KeptAnswers]:
    kept = KeptAnswers(tmp_path / "answers", most_runs=2, most_rounds=2)
    yield kept
    kept.close()


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("where", "what"), [(KeptCase, "keep"), (Ledger, "release")])
def test_a_round_that_is_trained_again_begins_with_the_same_weights(
    where: type,
    what: str,
    number: int,
    tmp_path: Path,
    undisturbed: list[TrainReply],
    answers: KeptAnswers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its process ends after its own weights are on the disk, and before its answer is, or is released."""
    run, path = run_of("head.*"), open_site(tmp_path)
    for each in (1, 2, 3):
        if each == number:
            with monkeypatch.context() as patched:
                patched.setattr(where, what, ended)
                with pytest.raises(KeyboardInterrupt):
                    answer(path, run, weights_of(run), number=each, answers=answers)
        reply = answer(path, run, weights_of(run), number=each, answers=answers)
        assert equal(reply, undisturbed[each - 1])
    assert [row.state for row in rows_of(tmp_path)] == ["released"] * 3
    # and no more is kept than is needed
    assert len(list(personal_folder(read_site(path), run_id="r").iterdir())) == 2


def test_a_round_that_never_left_has_made_nothing(
    tmp_path: Path, undisturbed: list[TrainReply], answers: KeptAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server went on without it: the model has nothing of that round, and the site's own weights neither."""
    run, path = run_of("head.*"), open_site(tmp_path)
    answer(path, run, weights_of(run), answers=answers)
    with monkeypatch.context() as patched:
        patched.setattr(KeptCase, "keep", ended)
        with pytest.raises(KeyboardInterrupt):
            answer(path, run, weights_of(run), number=2, answers=answers)
    assert equal(answer(path, run, weights_of(run), number=3, answers=answers), undisturbed[1])


def test_a_round_that_is_knowingly_asked_again_begins_where_it_began(
    tmp_path: Path, undisturbed: list[TrainReply]
) -> None:
    """A simulation that is resumed asks for its last round anew, and counts it once."""
    run, path = run_of("head.*"), open_site(tmp_path)
    for number in (1, 2):
        for attempt in (0, 1):
            reply = answer(path, run, weights_of(run), number=number, attempt=attempt)
            assert equal(reply, undisturbed[number - 1])
