"""Image encoders: pictures become embeddings.

in        float [B, C, S, S] from preprocess/image.py
out       embeddings [B, D]
relies on GroupNorm, which looks at one sample at a time
"""

from pydantic import Field

from shared.model.encoders.convolution import ConvolutionOptions, Convolutions
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.image import ImageOptions, ImagePreprocessor


class CnnOptions(ConvolutionOptions):
    """Size of the convolutional network over a picture."""

    grid: int = Field(default=2, ge=1, le=16, description="places a side that are kept apart before the last layer")


@encoder_registry.register("cnn", options=CnnOptions, takes="image")
def cnn(place: EncoderPlace, options: CnnOptions) -> EncoderPart:
    """A small convolutional network, trained from its first weights.

    Source: LeCun et al. 1998, Proceedings of the IEEE 86(11), section II; GroupNorm under DP-SGD as De et al. 2022,
    arXiv:2204.13650. Ours differs: strides in the place of subsampling layers.
    """
    pictures = ImagePreprocessor(place.preprocess(ImageOptions))
    grid = (options.grid, options.grid)
    return EncoderPart(
        preprocessor=pictures,
        module=lambda: Convolutions(pictures.shape[0], width=place.width, grid=grid, options=options),
    )
