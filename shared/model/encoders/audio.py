"""Audio encoders: frames of frequencies become embeddings.

in        float [B, F, T] from preprocess/audio.py
out       embeddings [B, D]
relies on GroupNorm and Linears, whose per-sample gradients are exact; recurrent.py, conformer.py and vit.py have more
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.model.encoders.convolution import ConvolutionOptions, Convolutions
from shared.model.encoders.projection import FixedVectorOptions, Projection
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.audio import AudioOptions, AudioPreprocessor, AudioStatisticsPreprocessor


class MelConvolutionOptions(ConvolutionOptions):
    """Size of a small convolutional network over bands and frames."""

    channels: tuple[int, ...] = Field(default=(8, 16, 32), min_length=1, max_length=6, description="of each layer")
    grid: int = Field(default=4, ge=1, le=16, description="bands kept apart before the last layer; time is averaged")


class MelCnn(nn.Module):
    """The frames as a picture: convolutions, then a mean over time that keeps low and high apart."""

    def __init__(self, *, width: int, options: MelConvolutionOptions) -> None:
        super().__init__()
        self.convolutions = Convolutions(1, width=width, grid=(options.grid, 1), options=options)

    def forward(self, frames: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
        """The embedding of each recording."""
        embeddings: Tensor = self.convolutions(frames[:, None])
        return embeddings


@encoder_registry.register("mel-cnn", options=MelConvolutionOptions, takes="audio")
def mel_cnn(place: EncoderPlace, options: MelConvolutionOptions) -> EncoderPart:
    """Convolutions over the log-mel picture, trained from their first weights.

    Source: Hershey et al. 2017, arXiv:1609.09430, section 3. Ours differs: three strided layers with GroupNorm.
    """
    sounds = AudioPreprocessor(place.preprocess(AudioOptions))
    return EncoderPart(preprocessor=sounds, module=lambda: MelCnn(width=place.width, options=options))


@encoder_registry.register("mel-statistics", options=FixedVectorOptions, takes="audio")
def mel_statistics(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """Fixed numbers for each mel band, and one trained layer."""
    sounds = AudioStatisticsPreprocessor(place.preprocess(AudioOptions))
    return EncoderPart(
        preprocessor=sounds, module=lambda: Projection(sounds.shape[0], width=place.width, options=options)
    )
