"""Exported models: they say what the run's model says, hold nobody's data, and are not written otherwise."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from server import export as export_module
from server import onnx_file
from server.evaluation import predict
from server.export import Program, export, export_table, made_up_samples
from server.given import Readers
from server.onnx_file import OnnxModel
from server.trained import TrainedModel, open_trained
from shared.errors import RunError
from shared.model.multimodal import build_model
from tests.server.using_models import small_run, write_rows, write_run
from tests.shared.example_runs import OF_KIND, SMALL, example_run, small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    root = tmp_path_factory.mktemp("runs")
    for part in ("validation", "test"):
        write_rows(root / "held-out" / part, rows=9, labels="abc", lacking={2: "photo", 5: "sound"})
    return open_trained(write_run(root / "run", run=small_run(), private=True, held_out=root / "held-out"))


def without_held_out(folder: Path, encoders: dict[str, dict[str, object]]) -> TrainedModel:
    return open_trained(write_run(folder, run=small_run(encoders)))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A model whose graph is small."""
    encoders = {"words": small("embedding-mean"), "sound": small("mel-statistics")}
    return without_held_out(tmp_path_factory.mktemp("runs") / "run", encoders)


@pytest.fixture(scope="module")
def onnx_folder(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LSTM, convolutions and a table of words, in ONNX and with 8-bit weights."""
    out = tmp_path_factory.mktemp("out") / "export"
    exported = export(trained, to="onnx", out=out, int8=True)
    assert exported.checked_on == "9 held-out rows"
    assert [form.file for form in exported.forms] == ["model.safetensors", "model.onnx", "model.int8.onnx"]
    assert exported.forms[1].same_answers == 1
    assert exported.score_name == "macro_f1"
    assert export_table(exported).row_count == 3
    return out


@pytest.mark.slow
def test_a_file_says_what_the_model_says_of_any_number_of_rows(trained: TrainedModel, onnx_folder: Path) -> None:
    found = OnnxModel(onnx_folder / "model.onnx")
    for rows in (1, 2, 7):
        samples = made_up_samples(trained, readers=Readers(trained.run), rows=rows)
        assert torch.allclose(predict(found, samples), predict(trained.model, samples), atol=1e-4)


@pytest.mark.slow
def test_an_absent_modality_has_no_influence_on_a_file(trained: TrainedModel, onnx_folder: Path) -> None:
    found = OnnxModel(onnx_folder / "model.onnx")
    samples = made_up_samples(trained, readers=Readers(trained.run), rows=2)
    present = torch.tensor([[False, True, True]] * 2)
    other = {**samples.inputs, "photo": samples.inputs["photo"] * 100}
    assert torch.equal(found(samples.inputs, present), found(other, present))
    assert not torch.equal(found(samples.inputs, samples.present), found(other, samples.present))


@pytest.mark.slow
def test_weights_of_8_bits_take_less_room_and_stay_close(trained: TrainedModel, onnx_folder: Path) -> None:
    kinds = _operations(onnx_folder / "model.int8.onnx")
    assert "DequantizeLinear" in kinds
    assert kinds & {"MatMulInteger", "DynamicQuantizeMatMul"}
    samples = made_up_samples(trained, readers=Readers(trained.run), rows=20)
    whole, coarse = predict(trained.model, samples), predict(OnnxModel(onnx_folder / "model.int8.onnx"), samples)
    assert 0 < float((whole - coarse).abs().max()) < 0.2 * float(whole.abs().max())


def _operations(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.slow
def test_the_description_says_what_goes_in_and_comes_out(onnx_folder: Path) -> None:
    told = json.loads((onnx_folder / "model.json").read_text("utf-8"))
    session = onnxruntime.InferenceSession(onnx_folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(each["name"], each["shape"]) for each in told["inputs"]] == [
        (each.name, list(each.shape)) for each in session.get_inputs()
    ]
    assert told["inputs"][-1]["columns"] == ["photo", "words", "sound"]
    assert told["inputs"][2]["preprocess"]["sample_rate_hz"] == 16_000
    (column,) = told["outputs"]["columns"]
    assert column["labels"] == ["a", "b", "c"]
    assert told["about"]["privacy"][0]["unit"] == "record"
    assert told["check"]["forms"][1]["largest_difference"] < 1e-4


@pytest.mark.slow
def test_files_hold_no_path_of_the_machine_and_no_held_out_value(trained: TrainedModel, onnx_folder: Path) -> None:
    here = str(Path(__file__).resolve().parents[2]).encode()
    for file in onnx_folder.iterdir():
        assert here not in file.read_bytes()


def test_a_program_says_what_the_model_says_and_is_made_and_checked_without_held_out_data(
    quick: TrainedModel, tmp_path: Path
) -> None:
    exported = export(quick, to="torch-export", out=tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.json", "model.pt2"]
    assert exported.forms[1].largest_difference < 1e-5
    assert exported.checked_on == "64 made-up rows (the held-out data is gone)"
    assert [form.score for form in exported.forms] == [None, None]
    samples = made_up_samples(quick, readers=Readers(quick.run), rows=2)
    path = tmp_path / "out" / "model.pt2"
    assert torch.allclose(
        predict(Program(path, modalities=quick.run.modalities), samples), predict(quick.model, samples)
    )
    kept = torch.export.load(path).example_inputs
    assert kept is not None
    assert torch.equal(kept[0][0], samples.inputs["words"])


def test_a_file_that_disagrees_is_not_written(
    quick: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Program):
        def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
            return super().forward(inputs, present) * 1.01

    monkeypatch.setattr(export_module, "Program", Wrong)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt2").write_bytes(b"the one before")
    with pytest.raises(RunError, match="does not agree"):
        export(quick, to="torch-export", out=tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.pt2").read_bytes() == b"the one before"


def test_a_file_that_forgets_who_is_absent_is_not_written(
    quick: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgets(Program):
        def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
            return super().forward(inputs, torch.ones_like(present))

    monkeypatch.setattr(export_module, "Program", Forgets)
    with pytest.raises(RunError, match="does not agree"):
        export(quick, to="torch-export", out=tmp_path / "out")


def test_8_bits_are_refused_where_nothing_computes_with_them(quick: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="use: --to onnx"):
        export(quick, to="torch-export", out=tmp_path / "out", int8=True)


def test_what_a_language_model_reads_is_not_exported_and_told_so(quick: TrainedModel, tmp_path: Path) -> None:
    words = {"name": "tokens", "options": {"path": "gpt"}, "preprocess": {"max_tokens": 6}}
    run = example_run({"vector": small("linear"), "words": words}, fusion="prefix", fusion_options={"path": "gpt"})
    spoken = replace(quick, settings=quick.settings.model_copy(update={"run": run}))
    with pytest.raises(RunError, match=r"'prefix' reads words through a language model.*use motet predict"):
        export(spoken, to="onnx", out=tmp_path / "out")


def test_convolutions_are_quantised_where_they_hold_most_weights() -> None:
    import onnx
    from onnx import TensorProto, helper

    def model(kernel: int, table: int) -> onnx.ModelProto:
        weights = [
            helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * shape[0])
            for name, shape in (("kernel", [kernel]), ("table", [table]))
        ]
        nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"]), helper.make_node("MatMul", ["y", "table"], ["z"])]
        return helper.make_model(helper.make_graph(nodes, "g", [], [], initializer=weights))

    assert onnx_file.convolution_share(model(30, 10)) == pytest.approx(0.75)
    assert onnx_file.convolution_share(model(10, 30)) == pytest.approx(0.25)


@pytest.mark.parametrize("products", [1, 2, 3])
def test_weights_that_several_products_share_are_quantised_once(products: int, tmp_path: Path) -> None:
    """As a recurrent layer's steps do; square, so that a wrong turn would fail no check of shapes."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draws = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draws.normal(0, 0.4, shape).astype(np.float32), name=name)
        for name, shape in (("w", (8, 8)), ("b", (8,)))
    ]
    names = ["x", *(f"h{number}" for number in range(1, products)), "outputs"]
    nodes = [helper.make_node("Gemm", [one, "w", "b"], [other], transB=1) for one, other in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("x", "outputs")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    onnx_file.write_quantised(tmp_path / "a.onnx", tmp_path / "b.onnx")
    given = {"x": draws.normal(size=(5, 8)).astype(np.float32)}
    whole, coarse = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, given)[0]
        for name in ("a.onnx", "b.onnx")
    )
    assert np.abs(whole - coarse).max() < 0.1 * np.abs(whole).max()


def _together() -> list[dict[str, str]]:
    """As many models as the kind with most encoders has: every encoder in one of them."""
    return [
        {modality: names[number % len(names)] for modality, names in OF_KIND.items()}
        for number in range(max(map(len, OF_KIND.values())))
    ]


def test_every_small_encoder_is_in_a_model_that_is_exported() -> None:
    assert {name for each in _together() for name in each.values()} == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(_together())))
def test_models_of_every_encoder_are_exported(number: int, tmp_path: Path) -> None:
    encoders = {modality: small(name) for modality, name in _together()[number].items()}
    exported = export(without_held_out(tmp_path / "run", encoders), to="onnx", out=tmp_path / "out", int8=True)
    assert exported.forms[1].same_answers == 1


def test_a_model_that_no_graph_can_follow_is_told(tmp_path: Path) -> None:
    class Asks(nn.Module):
        def forward(self, embedding: Tensor) -> Tensor:
            return embedding if bool(embedding.sum() > 0) else -embedding

    trained = without_held_out(tmp_path / "run", {"words": small("embedding-mean")})
    model = build_model(trained.run)
    model.encoders["words"] = nn.Sequential(model.encoders["words"], Asks())
    changed = TrainedModel(folder=trained.folder, settings=trained.settings, model=model.eval())
    with pytest.raises(RunError, match=r"torch\.export cannot follow the model"):
        export(changed, to="torch-export", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
