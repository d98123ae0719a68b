"""Signal and features encoders: windows of sensors and ready-made vectors become embeddings.

in        float [B, C, L] or statistics [B, F] from preprocess/signal.py; vectors [B, F] from preprocess/features.py
out       embeddings [B, D]
relies on GroupNorm and Linears, whose per-sample gradients are exact
"""

from pydantic import Field

from shared.model.encoders.convolution import ConvolutionOptions, Convolutions
from shared.model.encoders.projection import FixedVectorOptions, Projection, ProjectionOptions
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.features import FeaturesOptions, FeaturesPreprocessor
from shared.preprocess.signal import SignalOptions, SignalPreprocessor, StatisticsOptions, StatisticsPreprocessor


class Conv1dOptions(ConvolutionOptions):
    """Size of the convolutional network over time."""

    kernel: int = Field(default=5, ge=1, le=63, description="time steps that a layer looks at")
    grid: int = Field(default=1, ge=1, le=64, description="stretches of time kept apart before the last layer")


@encoder_registry.register("conv1d", options=Conv1dOptions, takes="signal")
def conv1d(place: EncoderPlace, options: Conv1dOptions) -> EncoderPart:
    """A small convolutional network over time, trained from its first weights.

    Source: Yang et al. 2015, IJCAI (convolutions over time of several sensors). Ours differs: strides in the
    place of pooling, and GroupNorm.
    """
    channels, grid = place.schema.channels or 1, (options.grid,)
    return EncoderPart(
        preprocessor=SignalPreprocessor(place.preprocess(SignalOptions), channels=channels),
        module=lambda: Convolutions(channels, width=place.width, grid=grid, options=options),
    )


@encoder_registry.register("statistics", options=FixedVectorOptions, takes="signal")
def signal_statistics(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """Fixed numbers in time and frequency, and one trained layer."""
    windows = StatisticsPreprocessor(place.preprocess(StatisticsOptions), channels=place.schema.channels or 1)
    return EncoderPart(
        preprocessor=windows, module=lambda: Projection(windows.shape[0], width=place.width, options=options)
    )


@encoder_registry.register("linear", options=ProjectionOptions, takes="features")
def linear(place: EncoderPlace, options: ProjectionOptions) -> EncoderPart:
    """The vector on its common scale, and one trained layer."""
    vectors = FeaturesPreprocessor(place.preprocess(FeaturesOptions), width=place.schema.width or 1)
    return EncoderPart(
        preprocessor=vectors, module=lambda: Projection(vectors.shape[0], width=place.width, options=options)
    )
