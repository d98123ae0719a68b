"""Signal and features encoders: windows of sensors and ready-made vectors become embeddings.

in        float [B, C, L] or statistics [B, F] from preprocess/signal.py; vectors [B, F] from preprocess/features.py
out       embeddings [B, D]
relies on GroupNorm and Linears, whose per-sample gradients are exact
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.config import Settings
from shared.model.encoders.projection import Projection, ProjectionOptions, sample_norm
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.features import FeaturesOptions, FeaturesPreprocessor
from shared.preprocess.signal import SignalOptions, SignalPreprocessor, StatisticsOptions, StatisticsPreprocessor


class Conv1dOptions(Settings):
    """Size of a small convolutional network over time; each entry of `channels` is a layer that halves the time."""

    channels: tuple[int, ...] = Field(default=(16, 32, 32), min_length=1, max_length=6, description="of each layer")
    kernel: int = Field(default=5, ge=1, le=63, description="time steps that a layer looks at")
    groups: int = Field(default=4, ge=1, le=64, description="of GroupNorm; must divide every entry of channels")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class SignalConv1d(nn.Module):
    """Strided convolutions over time with GroupNorm and ReLU, the mean over time, one linear layer."""

    def __init__(self, inputs: int, *, width: int, options: Conv1dOptions) -> None:
        super().__init__()
        channels = (inputs, *options.channels)
        self.layers = nn.Sequential()
        for place, (before, after) in enumerate(zip(channels, options.channels, strict=False)):
            conv = nn.Conv1d(before, after, options.kernel, stride=2, padding=options.kernel // 2)
            self.layers.add_module(f"conv{place}", conv)
            self.layers.add_module(f"norm{place}", nn.GroupNorm(options.groups, after))
            self.layers.add_module(f"relu{place}", nn.ReLU())
        self.linear = nn.Linear(channels[-1], width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, windows: Float[Tensor, "B C L"]) -> Float[Tensor, "B D"]:
        """The embedding of each window."""
        embeddings: Tensor = self.norm(self.linear(self.layers(windows).mean(dim=2)))
        return embeddings


@encoder_registry.register("conv1d", options=Conv1dOptions, takes="signal")
def conv1d(place: EncoderPlace, options: Conv1dOptions) -> EncoderPart:
    """A small convolutional network over time, trained from its first weights."""
    channels = place.schema.channels or 1
    windows = SignalPreprocessor(place.preprocess(SignalOptions), channels=channels)
    return EncoderPart(preprocessor=windows, module=lambda: SignalConv1d(channels, width=place.width, options=options))


@encoder_registry.register("statistics", options=ProjectionOptions, takes="signal")
def signal_statistics(place: EncoderPlace, options: ProjectionOptions) -> EncoderPart:
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
