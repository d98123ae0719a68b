"""Parts: the convolutions of the common job as an encoder of Motet's, registered as a user would register their own.

in        the path of this file, given to a run as `parts`
out       encoder "job-cnn", from vectors of 784 numbers
relies on the vector being a picture of 28 x 28, row by row
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.features import FeaturesOptions, FeaturesPreprocessor
from shared.settings import Settings

SIDE = 28


class JobCnn(nn.Module):
    """Two convolutions, each with a maximum over squares of four, and a linear layer, as in peers/job.py."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.hidden = nn.Linear(16 * (SIDE // 4) ** 2, width)

    def forward(self, vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """The embedding of each picture; its ReLU is the head's."""
        pictures = vectors.view(-1, 1, SIDE, SIDE)
        pictures = torch.max_pool2d(torch.relu(self.first(pictures)), 2)
        pictures = torch.max_pool2d(torch.relu(self.second(pictures)), 2)
        embeddings: Tensor = self.hidden(pictures.flatten(1))
        return embeddings


class NoOptions(Settings):
    """None."""


@encoder_registry.register("job-cnn", options=NoOptions, takes="features")
def job_cnn(place: EncoderPlace, options: NoOptions) -> EncoderPart:
    """The common job's convolutions."""
    del options
    vectors = FeaturesPreprocessor(place.preprocess(FeaturesOptions), width=place.schema.width or 1)
    return EncoderPart(preprocessor=vectors, module=lambda: JobCnn(width=place.width))
