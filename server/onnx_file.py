"""ONNX file: a model as a graph that runs without torch or Motet. The only door to onnx.

in        an exported program of torch, as export.py makes it
out       a .onnx file, one with 8-bit weights, and what either says of a batch
relies on torch.onnx for the translation and on shared/onnx_network.py to compute; export.py checks what comes out
          against the model itself
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import RunError
from shared.onnx_network import OnnxNetwork, write_in_8_bits

if TYPE_CHECKING:
    import onnx

PRESENT, OUTPUTS = "present", "outputs"
_TABLES_AND_PRODUCTS = ("Gather", "Gemm", "MatMul")
_CONVOLUTION_SHARE = 0.5
"""of the weights, from which on convolutions are quantised too: in integers they are smaller, and slower on a CPU"""


def write_onnx(program: torch.export.ExportedProgram, path: Path, *, inputs: tuple[str, ...]) -> None:
    """The program as one .onnx file, with names for its inputs and no trace of where it was made.

    Raises:
        RunError: an operation has no counterpart in ONNX.
    """
    import logging
    import warnings

    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # of torch about itself, and that two inputs share the name of their first axis, as they shall
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                input_names=list(inputs),
                output_names=[OUTPUTS],
                dynamo=True,
                verbose=False,
                external_data=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"the model has an operation that ONNX lacks: {str(error).splitlines()[0]}; use: --to torch-export"
        ) from None
    if made is None:
        raise AssertionError("torch.onnx gave no program")
    model: onnx.ModelProto = made.model_proto
    _forget_origin(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_quantised(source: Path, path: Path) -> None:
    """The same graph with weights of 8 bits: those of tables and products, and of convolutions where they are most."""
    import onnx

    model, kinds = onnx.load(source), list(_TABLES_AND_PRODUCTS)
    if convolution_share(model) >= _CONVOLUTION_SHARE:
        kinds.append("Conv")
    _turn_weights(model)
    write_in_8_bits(model, path, kinds=kinds)


class OnnxModel(nn.Module):
    """A .onnx file behind the face of the model that it was made from; one thread, on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._network = OnnxNetwork(path)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """The outputs [B, K]; every input of the file is needed, zeros where it is absent in all samples."""
        given = {name: value.numpy() for name, value in {**inputs, PRESENT: present}.items()}
        return torch.from_numpy(self._network(given))


def _forget_origin(model: "onnx.ModelProto") -> None:
    """Takes out classes, source lines and folders of the machine that exported; the first axis is "batch"."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del owner.metadata_props[:]
        owner.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # they contradict what the quantiser finds for weights that were turned
    del graph.value_info[:]


def _turn_weights(model: "onnx.ModelProto") -> None:
    """Lays the weights of products down as they are multiplied, each once.

    The quantiser does so for every product by itself: of a recurrent layer, whose steps share their weights, it would
    turn them again and again.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    turned = {}
    for node in graph.node:
        for option in node.attribute:
            if node.op_type == "Gemm" and option.name == "transB" and option.i and node.input[1] in weights:
                name, option.i = node.input[1], 0
                if name not in turned:
                    values = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
                    turned[name] = numpy_helper.from_array(values, name=f"{name}.turned")
                node.input[1] = turned[name].name
    graph.initializer.extend(turned.values())
    used = {name for node in graph.node for name in node.input}
    for name, weight in weights.items():
        if name not in used:
            graph.initializer.remove(weight)


def convolution_share(model: "onnx.ModelProto") -> float:
    """The share of weights that belongs to convolutions."""
    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    held = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    return sum(sizes.get(name, 0) for name in held) / max(1, sum(sizes.values()))
