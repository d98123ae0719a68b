"""Local array: a tensor on its way through this process, in Flower's form and not yet as bytes.

in        a tensor
out       what a message's record of arrays may hold in its place
relies on Flower's Array; what goes to another process is always a plain one
"""

from typing import Any

from flwr.app import Array
from torch import Tensor

from shared.array_bytes import NUMPY


class LocalArray(Array):
    """A tensor in a message, made into bytes once, and only where somebody asks for `data`; it cannot be changed.

    What a message is made of when it comes from another process is always a plain `Array`: Flower's own formats know
    no other, and pickle is told to make one.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        """Takes the tensor as it is, without a copy; nobody may write into it from now on."""
        # past __setattr__, which keeps Flower's own fields from being changed below
        self.__dict__.update(
            dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), stype=NUMPY, tensor=tensor
        )

    def plain(self) -> Array:
        """The same numbers as an Array that holds their bytes; the same object every time."""
        if "_plain" not in self.__dict__:
            self.__dict__["_plain"] = Array(self.tensor.cpu().contiguous().numpy())
        made: Array = self.__dict__["_plain"]
        return made

    def __getattr__(self, name: str) -> bytes:
        """The bytes, which are no attribute until they are asked for."""
        if name == "data":
            return self.plain().data
        raise AttributeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        """Flower's notes about the object; what it holds stays as it was made."""
        if name in {"dtype", "shape", "stype", "data", "tensor"}:
            raise AttributeError(f"{name} of a LocalArray cannot be changed; put a new Array in its place")
        super().__setattr__(name, value)

    def slice_array(self) -> list[tuple[str, Any]]:
        """The bytes in the pieces that Flower sends, cut once for all messages."""
        return self.plain().slice_array()

    def deflate(self) -> bytes:
        """As an Array: Flower writes the name of the class in front, and the other side has to know it."""
        return self.plain().deflate()

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        """As an Array, in every other process and in every copy."""
        return Array, (self.dtype, self.shape, self.stype, self.data)
