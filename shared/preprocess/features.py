"""Features preprocessing: a vector that somebody computed before, brought to a common scale.

in        float32 [F] from media.py
out       float32 [F]
relies on public constants of the run for normalisation; no statistics of the vectors
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from shared.errors import ModelError
from shared.preprocess import RawValue, digest_of, wrong_kind
from shared.settings import Settings


class FeaturesOptions(Settings):
    """How vectors come to a common scale, by public constants only."""

    center: tuple[float, ...] = Field(default=(), description="subtracted: one number for all, or one for each")
    spread: tuple[float, ...] = Field(default=(), description="divided by: one number for all, or one for each")
    squash: Literal["none", "asinh"] = Field(default="none", description="asinh: large values grow as their logarithm")
    clip: float = Field(default=0.0, ge=0, description="largest size of a value afterwards; 0: no limit")


class Scaling:
    """(value - center) / spread, squashed and clipped; the constants come from the run and are public.

    Raises:
        ModelError: the constants do not fit the width.
    """

    def __init__(self, options: FeaturesOptions, *, width: int) -> None:
        self.options = options
        self.center = _constants(options.center, width=width, name="center", default=0.0)
        self.spread = _constants(options.spread, width=width, name="spread", default=1.0)
        if bool((self.spread <= 0).any()):
            raise ModelError("preprocess.spread holds a number that is not above 0; allowed: positive numbers")

    def __call__(self, values: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        """The values on the common scale."""
        values = (values - self.center) / self.spread
        values = values.asinh() if self.options.squash == "asinh" else values
        return values.clamp(-self.options.clip, self.options.clip) if self.options.clip else values


class FeaturesPreprocessor:
    """Vectors of one width on a common scale."""

    def __init__(self, options: FeaturesOptions, *, width: int) -> None:
        self.shape = (width,)
        self.digest = digest_of("features", version=1, settings=options, more={"width": width})
        self._scaling = Scaling(options, width=width)

    def read(self, value: RawValue) -> Float[Tensor, "F"]:
        """The vector as it is: what there is to do with it costs less for many at once."""
        if not isinstance(value, np.ndarray) or value.shape != self.shape:
            raise wrong_kind(value, wanted=f"an array of shape {list(self.shape)}")
        return torch.from_numpy(value.astype(np.float32, copy=False))

    def finish(self, values: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """The vectors on the common scale."""
        return self._scaling(values)


def _constants(numbers: tuple[float, ...], *, width: int, name: str, default: float) -> Float[Tensor, "F"]:
    if len(numbers) not in (0, 1, width):
        raise ModelError(f"preprocess.{name} holds {len(numbers)} numbers; allowed: none, 1 or {width}")
    # there in numbers even where a model is built without memory, to be counted
    return torch.tensor(numbers or (default,), dtype=torch.float32, device="cpu").expand(width)
