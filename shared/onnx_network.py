"""ONNX network: a graph in a file, computed on the CPU by one thread. The only door to onnxruntime.

in        the path of a .onnx file; arrays by the names of its inputs
out       what the graph gives; or the same graph with weights of 8 bits
relies on onnxruntime, which computes forwards only: such a network can be frozen or exported, and never trained
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import ModelError

_SILENT = 3
"""of onnxruntime's levels, the one from which on it tells of errors alone"""


class OnnxNetwork:
    """The network in a file; what it gives does not depend on how many processors there are.

    Raises:
        ModelError: there is no such file, or onnxruntime cannot read it.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # onnxruntime's errors have no class in common
            raise ModelError(f"{path}: no network that onnxruntime can read: {error}") from None
        self.inputs: tuple[str, ...] = tuple(each.name for each in self._session.get_inputs())

    def __call__(self, given: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
        """Its first output; `given` has an array for each of `inputs`, and may have others."""
        found = self._session.run(None, {name: given[name] for name in self.inputs})
        return np.asarray(found[0], dtype=np.float32)


def write_in_8_bits(model: object, path: Path, *, kinds: Sequence[str]) -> None:
    """The graph with weights of 8 bits, a scale for each channel; activations are scaled as they come.

    No example data is needed for it, so nobody's values leave a mark in the file.

    Args:
        model: an onnx.ModelProto; its type is not named, so that onnx keeps the one door that it has.
        kinds: of operations whose weights are meant, by their names in ONNX.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # it advises a preparation that torch's exporter has done
    logging.disable(logging.WARNING)
    try:
        # without a sign: what onnxruntime multiplies signed weights with overflows where a processor lacks VNNI
        # (its page on quantisation, "U8S8"). test_weights_that_several_products_share_are_quantised_once
        quantize_dynamic(model, path, op_types_to_quantize=list(kinds), weight_type=QuantType.QUInt8, per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
