"""Networks in ONNX files: what they give is what the graph says, and a file that is none is told."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shared.errors import ModelError
from shared.onnx_network import OnnxNetwork, write_in_8_bits

WEIGHT = np.random.default_rng(0).normal(0, 0.4, (8, 3)).astype(np.float32)


def product() -> onnx.ModelProto:
    """x @ WEIGHT + b, with b given too."""
    ends = {"x": ("batch", 8), "b": (3,), "y": ("batch", 3)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [values["x"], values["b"]], [values["y"]], initializer=[numpy_helper.from_array(WEIGHT, name="w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def given() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(1)
    return {name: draws.normal(size=shape).astype(np.float32) for name, shape in (("b", (3,)), ("x", (5, 8)))}


def test_a_network_gives_what_its_graph_says_and_takes_its_inputs_by_name(tmp_path: Path) -> None:
    onnx.save(product(), tmp_path / "a.onnx")
    network, values = OnnxNetwork(tmp_path / "a.onnx"), given()

    found = network({**values, "another": np.zeros(3)})

    assert network.inputs == ("x", "b")
    np.testing.assert_allclose(found, values["x"] @ WEIGHT + values["b"], rtol=1e-5, atol=1e-5)


def test_weights_of_8_bits_are_smaller_and_say_nearly_the_same(tmp_path: Path) -> None:
    onnx.save(product(), tmp_path / "whole.onnx")
    write_in_8_bits(product(), tmp_path / "coarse.onnx", kinds=["MatMul"])
    whole, coarse = (OnnxNetwork(tmp_path / f"{name}.onnx")(given()) for name in ("whole", "coarse"))

    held = {each.data_type for each in onnx.load(tmp_path / "coarse.onnx").graph.initializer if len(each.dims) == 2}
    # with a sign they would be right on some processors only
    assert held == {TensorProto.UINT8}
    assert 0 < np.abs(whole - coarse).max() < 0.05 * np.abs(whole).max()


@pytest.mark.parametrize("content", [None, b"no graph"])
def test_a_file_that_is_no_network_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ModelError, match=r"a\.onnx: no network that onnxruntime can read"):
        OnnxNetwork(path)
