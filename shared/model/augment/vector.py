"""Vector augmentation: noise on ready-made vectors, statistics and what frozen networks gave.

in        float [B, F] and a key for each sample
out       float [B, F]
relies on sample_draws.py
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from shared.model.augment.base import Augmentation
from shared.settings import Settings


class VectorOptions(Settings):
    """How far a vector may be changed; 0 leaves it.

    What a picture or a sound was is gone by then: changes of those want an encoder that sees them.
    """

    noise: float = Field(default=0.0, ge=0, le=10, description="deviation of Gaussian noise, in units of the input")
    drop: float = Field(default=0.0, ge=0, lt=1, description="chance of each number to be 0; the others grow")


class VectorAugmentation(Augmentation):
    """Noise and numbers left out, drawn for each sample.

    Source: Bishop 1995, Neural Computation 7(1) (training with noise); Srivastava et al. 2014, section 10.
    """

    def __init__(self, options: VectorOptions, *, modality: str) -> None:
        super().__init__(modality=modality)
        self.options = options

    def changed(self, values: Float[Tensor, "B F"], keys: Int[Tensor, "B"]) -> Float[Tensor, "B F"]:
        """The vectors, each changed by its key."""
        if self.options.noise:
            values = values + self.noise(values, keys, std=self.options.noise)
        if self.options.drop:
            kept = self.chances(keys, what="drop", num=values.shape[1]) >= self.options.drop
            values = values * kept / (1 - self.options.drop)
        return values
