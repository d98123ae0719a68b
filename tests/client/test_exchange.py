"""Exchange: a site is sent what it needs and answers with what it may, whatever of the model rests or stays with it."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from client import agent
from client.cohort import Asked, answer_cohort
from client.run_model import exchanged_shapes, key_of, model_with, num_parameters
from client.sample_store import SampleStore
from shared.config import RunConfig
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, Shapes, TrainRequest
from shared.wire import decode_arrays, encode_request
from tests.client.asking import ask, site_file, used, zeros
from tests.tiny import tiny_config, tiny_run

pytestmark = pytest.mark.usefixtures("cold")

BOTH = ("left", "right")
LEFT = {"encoders.left.linear.weight", "encoders.left.linear.bias"}
HEAD = {"head.linear.weight", "head.linear.bias"}


def changed(*, private: bool = True, **model: object) -> RunConfig:
    table = tiny_run(private=private)["model"]
    assert isinstance(table, dict)
    return tiny_config(private=private, model={**table, **model})


def header_of(run: RunConfig, *, number: int = 1, run_id: str = "r") -> RequestHeader:
    return RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, planned_rounds=3
    )


def test_a_site_takes_what_it_is_given_and_does_not_send_it_back(tmp_path: Path) -> None:
    run = changed(freeze=["encoders.left.*"])
    asked: list[Shapes] = []
    header = header_of(run)

    def read(shapes: Shapes) -> dict[str, torch.Tensor]:
        asked.append(shapes)
        return {name: torch.full(shape, 0.5) for name, shape in shapes.items()}

    reply = used(agent.answer_train(header, read, site_file=site_file(tmp_path)))
    (shapes,) = asked
    assert set(shapes) - set(reply.update) == LEFT
    model = model_with(key_of(run), {})
    assert bool((model.get_parameter("encoders.left.linear.weight") == 0.5).all())


def test_the_given_part_of_a_model_moves_what_a_site_learns(tmp_path: Path) -> None:
    run = changed(private=False, freeze=["encoders.left.*"])
    path, updates = site_file(tmp_path, allow_non_private=True, reproducible_noise=True), []
    for value in (0.0, 1.0):
        header = header_of(run, run_id=f"r{value}")

        def read(shapes: Shapes, value: float = value) -> dict[str, torch.Tensor]:
            given = {name: torch.full(shapes[name], value) for name in LEFT}
            return zeros(shapes) | given | {"head.linear.weight": torch.ones(shapes["head.linear.weight"])}

        updates.append(used(agent.answer_train(header, read, site_file=path)).update)
    name = "fusion.project.left.weight"
    assert not torch.equal(updates[0][name], updates[1][name])


def test_a_buffer_is_given_like_a_parameter(tmp_path: Path) -> None:
    key = key_of(changed())
    model = model_with(key, {})
    model.head.register_buffer("rows", torch.zeros(2))
    model_with(key, {"head.rows": torch.tensor([1.0, 2.0])})
    assert model.head.get_buffer("rows").tolist() == [1.0, 2.0]


def test_what_is_given_counts_towards_the_largest_model() -> None:
    plain, frozen = changed(), changed(freeze=["encoders.left.*"])
    assert num_parameters(key_of(plain)) == num_parameters(key_of(frozen))
    assert len(exchanged_shapes(key_of(frozen), BOTH).trained) < len(exchanged_shapes(key_of(plain), BOTH).trained)


def test_a_request_without_what_is_given_is_refused(tmp_path: Path) -> None:
    run = changed(freeze=["encoders.left.*"])
    header = header_of(run)
    sent = zeros(exchanged_shapes(key_of(run), BOTH).sent)
    for names, refused in ((sent.keys(), False), (sent.keys() - LEFT, True)):
        records = encode_request(TrainRequest(header, {name: sent[name] for name in names}))

        def read(shapes: Shapes, records: RecordDict = records) -> dict[str, torch.Tensor]:
            return decode_arrays(records, shapes=shapes)

        reply = agent.answer_train(header, read, site_file=site_file(tmp_path))
        assert isinstance(reply, Refusal) == refused
        if refused:
            assert reply == Refusal("message-invalid")


def with_lines(path: Path, *lines: str) -> Path:
    """The owner's settings with more lines in front."""
    path.write_text("\n".join([*lines, path.read_text(encoding="utf-8")]), encoding="utf-8")
    return path


def test_what_an_owner_freezes_is_used_and_not_sent(tmp_path: Path) -> None:
    training = {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 1}
    run = tiny_config(private=False, training=training)
    weights = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) * 0.3
        for name, shape in exchanged_shapes(key_of(run), BOTH).sent.items()
    }
    updates = []
    for name, lines in (("all", ()), ("some", ('frozen = ["encoders.left.*", "encoders.audio.*"]',))):
        path = with_lines(site_file(tmp_path / name, allow_non_private=True, reproducible_noise=True), *lines)
        hello = agent.answer_hello(path)
        assert not isinstance(hello, Refusal)
        assert hello.frozen == (("encoders.left.*", "encoders.audio.*") if lines else ())
        updates.append(used(agent.answer_train(header_of(run), lambda _: weights, site_file=path)).update)
    everything, some = updates
    assert set(everything) - set(some) == LEFT
    for name, value in some.items():
        torch.testing.assert_close(value, everything[name])


def test_an_owner_who_freezes_all_there_is_takes_no_part(tmp_path: Path) -> None:
    run = changed(personal=["head.*"])
    path = with_lines(site_file(tmp_path), 'frozen = ["encoders.*", "fusion.*"]')
    assert ask(path, run) == Refusal("refused")
    assert not (tmp_path / "ledger.sqlite").exists()


def several_site(folder: Path, *lines: str, answers: tuple[str, ...] = ("mood", "size")) -> Path:
    """A site whose rows answer two questions, by the same label."""
    path = with_lines(site_file(folder, allow_non_private=True, reproducible_noise=True), *lines)
    card = folder / "dataset.toml"
    labels = 'labels = ["a", "b", "c"]'
    tasks = "\n".join(f'[content.tasks.{name}]\nkind = "single-label"\n{labels}' for name in ("mood", "size"))
    text = card.read_text(encoding="utf-8").replace(f'task = "single-label"\n{labels}', 'task = "several"')
    card.write_text(f"{text}\n{tasks}\n", encoding="utf-8")
    manifest = folder / "data" / "metadata.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        label = row.pop("label")
        row.update(dict.fromkeys(answers, label))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def several_run(**data: object) -> RunConfig:
    tasks = {name: {"kind": "single-label", "labels": ["a", "b", "c"]} for name in ("mood", "size")}
    table = tiny_config(private=False).data.model_dump(include={"modalities"})
    training = {"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2}
    return tiny_config(private=False, training=training, data={"task": "several", "tasks": tasks, **table, **data})


def test_a_site_with_answers_to_one_of_several_tasks_trains_nothing_of_the_others(tmp_path: Path) -> None:
    """Also where its rows hold such answers all the same: its owner does not offer them."""
    run = several_run()
    whole = several_site(tmp_path / "whole", 'tasks = ["mood"]')
    half = several_site(tmp_path / "half", answers=("mood",))
    weights = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) * 0.3
        for name, shape in exchanged_shapes(key_of(run), BOTH).sent.items()
    }
    of_size = {name for name in weights if name.startswith("head.size.")}
    sent: list[Shapes] = []

    def read(shapes: Shapes) -> dict[str, torch.Tensor]:
        sent.append(shapes)
        return {name: weights[name] for name in shapes}

    one, both = (used(agent.answer_train(header_of(run), read, site_file=path)).update for path in (whole, half))
    assert of_size
    assert not of_size & (set(one) | set(sent[0]))
    assert set(both) - set(one) == of_size
    for name, value in one.items():
        torch.testing.assert_close(value, both[name])
    assert all(float(both[name].abs().max()) == 0 for name in of_size)
    hello = agent.answer_hello(whole)
    assert not isinstance(hello, Refusal)
    assert hello.tasks == ("mood",)


@pytest.mark.parametrize(
    ("lines", "data"),
    [
        (('tasks = ["taste"]',), {}),
        ((), {"tasks": {"mood": {"kind": "single-label", "labels": ["a", "b", "c"]}}}),
        ((), {"tasks": {name: {"kind": "single-label", "labels": ["a", "b"]} for name in ("mood", "size")}}),
    ],
)
def test_tasks_that_the_owner_does_not_have_or_has_otherwise_are_refused(
    lines: tuple[str, ...], data: dict[str, object], tmp_path: Path
) -> None:
    assert ask(several_site(tmp_path, *lines), several_run(**data)) == Refusal("refused")


def test_sites_that_train_different_parts_answer_together_as_alone(tmp_path: Path, store: SampleStore) -> None:
    run = several_run()
    lines = {"a": (), "b": ('tasks = ["mood"]',), "c": ('frozen = ["encoders.left.*"]',), "d": ()}
    paths = {}
    for name, said in lines.items():
        path = several_site(tmp_path / name, *said)
        path.write_text(path.read_text().replace('name = "north"', f'name = "{name}"'), encoding="utf-8")
        paths[name] = path
    header, made = header_of(run), dict[tuple[str, ...], dict[str, torch.Tensor]]()

    def weights_for(shapes: Shapes) -> dict[str, torch.Tensor]:
        # the same tensors for sites that train them and sites that do not, as a server may send them
        key = tuple(sorted(shapes))
        if key not in made:
            made[key] = {name: torch.full(shape, 0.1 * (len(name) % 5)) for name, shape in shapes.items()}
        return made[key]

    alone, shapes = {}, dict[str, Shapes]()
    for name, path in paths.items():

        def read(found: Shapes, name: str = name) -> dict[str, torch.Tensor]:
            shapes[name] = found
            return weights_for(found)

        alone[name] = used(agent.answer_train(header_of(run, run_id="alone"), read, site_file=path)).update
    asked = [Asked(header, weights_for(shapes[name]), path) for name, path in paths.items()]
    for name, reply in zip(paths, answer_cohort(asked, store=store, memory_bytes=1 << 30), strict=True):
        update = used(reply).update
        assert set(update) == set(alone[name])
        for key, value in update.items():
            torch.testing.assert_close(value, alone[name][key])
    assert len({frozenset(update) for update in alone.values()}) == 3


def test_an_owner_says_of_modalities_only_what_can_be(tmp_path: Path) -> None:
    for line in ("{ right = 3 }", "{ left = 41 }", "{ left = 0 }"):
        path = with_lines(site_file(tmp_path, modalities=("left",)), f"nominal_modality_sizes = {line}")
        assert agent.answer_hello(path) == Refusal("settings-invalid")
    path = with_lines(site_file(tmp_path, modalities=("left",)), "nominal_modality_sizes = { left = 7 }")
    hello = agent.answer_hello(path)
    assert not isinstance(hello, Refusal)
    assert hello.nominal_modality_sizes == {"left": 7}
