"""Recurrent encoders: sequences of tokens, frames or windows become the mean state of a long short-term memory.

in        int64 [B, L] from preprocess/text.py; float [B, F, T] from preprocess/audio.py, [B, C, L] from signal.py
out       embeddings [B, D]
relies on recurrence.py, whose gradient by hand comes through two Linears: nn.LSTM hides its steps from book-keeping
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from shared.model.encoders.projection import sample_norm
from shared.model.encoders.transformer import token_embedding
from shared.model.recurrence import MeanState, run_through, site_weights
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.audio import AudioPreprocessor, MfccOptions
from shared.preprocess.signal import SignalOptions, SignalPreprocessor
from shared.preprocess.text import TextOptions, TextPreprocessor
from shared.settings import Settings


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

    def forward(
        self, steps: Float[Tensor, "B T F"], shares: Float[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B H"]:
        """The mean state of each sequence.

        Args:
            steps: from the first on.
            shares: what each step counts for in the mean; all the same, if not given. Steps after the last that counts
                change nothing, because no state looks ahead.
        """
        # what is exported, too, has only operations that others know
        if torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting():
            return self._step_by_step(steps, shares)
        driven = self.input(steps)
        # The states that the steps started from are constants here: the gates' gradients already hold what goes on
        # through them, so that their product with the states is the recurrent weights' gradient.
        course = run_through(driven, weights=site_weights(self.recurrent))
        again = self.recurrent(course.before)
        mean: Tensor = MeanState.apply(driven, again, course, shares)  # type: ignore[no-untyped-call]
        return mean

    def _step_by_step(self, steps: Tensor, shares: Tensor | None = None) -> Tensor:
        """The same from operations that torch.func can look into, in three times as long."""
        driven, num = self.input(steps), steps.shape[1]
        state = memory = total = driven.new_zeros(steps.shape[0], self.hidden)
        for step in range(num):
            enter, forget, leave, new = (driven[:, step] + self.recurrent(state)).chunk(4, dim=1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * memory.tanh()
            total = total + (state / num if shares is None else state * shares[:, step, None])
        mean: Tensor = total
        return mean


class LstmOptions(Settings):
    """Size of the recurrent network."""

    hidden: int = Field(default=32, ge=1, le=1024)
    frames_per_step: int = Field(default=4, ge=1, le=64, description="frames averaged into one step")
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class FramesLstm(nn.Module):
    """Frames, a few averaged into one step, through a recurrent network and one linear layer."""

    def __init__(self, inputs: int, *, width: int, options: LstmOptions) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(options.frames_per_step, ceil_mode=True)
        self.lstm = LinearLstm(inputs, hidden=options.hidden)
        self.linear = nn.Linear(options.hidden, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, frames: Float[Tensor, "B F T"]) -> Float[Tensor, "B D"]:
        """The embedding of each sequence."""
        steps = self.pool(frames).transpose(1, 2)
        embeddings: Tensor = self.norm(self.linear(self.lstm(steps)))
        return embeddings


class EmbeddingLstmOptions(Settings):
    """Size of the table of token vectors and of the recurrent network."""

    token_width: int = Field(default=16, ge=1, le=1024)
    hidden: int = Field(default=32, ge=1, le=1024)
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class EmbeddingLstm(nn.Module):
    """Token vectors through a recurrent network, the mean of its states at the text's tokens, and one linear layer."""

    def __init__(self, num_ids: int, *, width: int, options: EmbeddingLstmOptions) -> None:
        super().__init__()
        self.token = token_embedding(num_ids, width=options.token_width)
        self.lstm = LinearLstm(options.token_width, hidden=options.hidden)
        self.linear = nn.Linear(options.hidden, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, numbers: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The embedding of each text."""
        there = (numbers > 0).to(self.linear.weight.dtype)
        # a text without any token has the state 0
        shares = there / there.sum(dim=1, keepdim=True).clamp(min=1)
        embeddings: Tensor = self.norm(self.linear(self.lstm(self.token(numbers), shares)))
        return embeddings


@encoder_registry.register("mfcc-lstm", options=LstmOptions, takes="audio")
def mfcc_lstm(place: EncoderPlace, options: LstmOptions) -> EncoderPart:
    """A recurrent network over cepstral coefficients, trained from its first weights.

    Source: Graves et al. 2013, arXiv:1303.5778. Ours differs: one layer, one direction, the mean of states.
    """
    sounds = AudioPreprocessor(place.preprocess(MfccOptions))
    return EncoderPart(
        preprocessor=sounds, module=lambda: FramesLstm(sounds.shape[0], width=place.width, options=options)
    )


@encoder_registry.register("lstm", options=LstmOptions, takes="signal")
def lstm(place: EncoderPlace, options: LstmOptions) -> EncoderPart:
    """A recurrent network over time, trained from its first weights.

    Source: Hammerla et al. 2016, arXiv:1604.08880 (LSTM-F). Ours differs: one layer, a few samples averaged into a
    step, and the mean of the states in the place of an answer at each step.
    """
    channels = place.schema.channels or 1
    return EncoderPart(
        preprocessor=SignalPreprocessor(place.preprocess(SignalOptions), channels=channels),
        module=lambda: FramesLstm(channels, width=place.width, options=options),
    )


@encoder_registry.register("embedding-lstm", options=EmbeddingLstmOptions, takes="text")
def embedding_lstm(place: EncoderPlace, options: EmbeddingLstmOptions) -> EncoderPart:
    """Token vectors and a recurrent network over them, trained from their first weights.

    Source: Dai and Le 2015, arXiv:1511.01432, without their first training on other texts (section 2). Ours differs:
    the mean of the states in the place of the last, which a long text hardly reaches.
    """
    texts = TextPreprocessor(place.preprocess(TextOptions))
    return EncoderPart(
        preprocessor=texts, module=lambda: EmbeddingLstm(texts.num_ids, width=place.width, options=options)
    )
