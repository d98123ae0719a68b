"""Audio encoders: frames of frequencies become embeddings.

in        float [B, F, T] from preprocess/audio.py
out       embeddings [B, D]
relies on GroupNorm and Linears, whose per-sample gradients are exact; nn.LSTM hides its steps from them
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shared.model.encoders.convolution import ConvolutionOptions, Convolutions
from shared.model.encoders.projection import FixedVectorOptions, Projection, sample_norm
from shared.model.recurrence import MeanState, run_through, site_weights
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.audio import AudioOptions, AudioPreprocessor, AudioStatisticsPreprocessor, MfccOptions
from shared.settings import Settings


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


class LstmOptions(Settings):
    """Size of the recurrent network."""

    hidden: int = Field(default=32, ge=1, le=1024)
    frames_per_step: int = Field(default=4, ge=1, le=64, description="frames averaged into one step")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class LinearLstm(nn.Module):
    """A long short-term memory written from two Linears; the mean of its states over the steps.

    Source: Hochreiter and Schmidhuber 1997, with the forget bias of 1 of Jozefowicz et al. 2015.
    """

    def __init__(self, inputs: int, *, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(inputs, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        with torch.no_grad():
            self.input.bias[hidden : 2 * hidden] = 1.0

    def forward(self, steps: Float[Tensor, "B T F"]) -> Float[Tensor, "B H"]:
        """The mean state of each sequence."""
        if torch._C._are_functorch_transforms_active():
            return self._step_by_step(steps)
        driven = self.input(steps)
        # The states that the steps started from are constants here: the gates' gradients already hold what goes on
        # through them, so that their product with the states is the recurrent weights' gradient.
        course = run_through(driven, weights=site_weights(self.recurrent))
        mean: Tensor = MeanState.apply(driven, self.recurrent(course.before), course)  # type: ignore[no-untyped-call]
        return mean

    def _step_by_step(self, steps: Tensor) -> Tensor:
        """The same from operations that torch.func can look into, in three times as long."""
        driven = self.input(steps)
        state = memory = total = driven.new_zeros(steps.shape[0], self.hidden)
        for step in range(steps.shape[1]):
            enter, forget, leave, new = (driven[:, step] + self.recurrent(state)).chunk(4, dim=1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * memory.tanh()
            total = total + state
        mean: Tensor = total / steps.shape[1]
        return mean


class MfccLstm(nn.Module):
    """Frames, a few averaged into one step, through a recurrent network and one linear layer."""

    def __init__(self, inputs: int, *, width: int, options: LstmOptions) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(options.frames_per_step, ceil_mode=True)
        self.lstm = LinearLstm(inputs, hidden=options.hidden)
        self.linear = nn.Linear(options.hidden, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, frames: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
        """The embedding of each recording."""
        steps = self.pool(frames).transpose(1, 2)
        embeddings: Tensor = self.norm(self.linear(self.lstm(steps)))
        return embeddings


@encoder_registry.register("mel-cnn", options=MelConvolutionOptions, takes="audio")
def mel_cnn(place: EncoderPlace, options: MelConvolutionOptions) -> EncoderPart:
    """Convolutions over the log-mel picture, trained from their first weights."""
    sounds = AudioPreprocessor(place.preprocess(AudioOptions))
    return EncoderPart(preprocessor=sounds, module=lambda: MelCnn(width=place.width, options=options))


@encoder_registry.register("mel-statistics", options=FixedVectorOptions, takes="audio")
def mel_statistics(place: EncoderPlace, options: FixedVectorOptions) -> EncoderPart:
    """Fixed numbers for each mel band, and one trained layer."""
    sounds = AudioStatisticsPreprocessor(place.preprocess(AudioOptions))
    return EncoderPart(
        preprocessor=sounds, module=lambda: Projection(sounds.shape[0], width=place.width, options=options)
    )


@encoder_registry.register("mfcc-lstm", options=LstmOptions, takes="audio")
def mfcc_lstm(place: EncoderPlace, options: LstmOptions) -> EncoderPart:
    """A recurrent network over cepstral coefficients, trained from its first weights."""
    sounds = AudioPreprocessor(place.preprocess(MfccOptions))
    return EncoderPart(
        preprocessor=sounds, module=lambda: MfccLstm(sounds.shape[0], width=place.width, options=options)
    )
