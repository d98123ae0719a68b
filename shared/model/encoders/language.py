"""Language encoders: values as words for a language model, which a fusion holds; no embedding comes out here.

in        token numbers [B, L] of a text, or of the words that stand for a picture, a sound or a signal
out       zeros [B, D]: fusion/language.py reads the tokens themselves
relies on preprocess/verbal.py for the words
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from shared.model.encoders.checkpoint import FolderOptions, checkpoint_at, language_checkpoint
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.describe import describe_picture, describe_signal, describe_sound
from shared.preprocess.pretrained import Checkpoint
from shared.preprocess.pretrained_text import PretrainedTextOptions, TokenPreprocessor
from shared.preprocess.pretrained_words import Captioner, Recogniser
from shared.preprocess.verbal import VerbalOptions, VerbalPreprocessor, Words

READ_ELSEWHERE = ("tokens", "caption", "transcript", "description")
"""encoders whose tokens a fusion reads"""


class TokenOptions(FolderOptions):
    """Whose tokens texts are cut into."""

    path: str = Field(default="", description="as the fusion's; MiniLM of its package if not set")


class WordOptions(TokenOptions):
    """What makes words of a value."""

    network_path: str = Field(
        default="", description="folder of a network that makes them; by rule if not set, which needs none"
    )
    network_digest: str = Field(default="", description="SHA-256 that its folder must have; empty: any")


class ReadElsewhere(nn.Module):
    """No embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Zeros."""
        return tokens.new_zeros((len(tokens), self.width)).float()


@encoder_registry.register("tokens", options=TokenOptions, takes="text")
def tokens(place: EncoderPlace, options: TokenOptions) -> EncoderPart:
    """A text for the language model of fusion `prefix` or `verbalise`.

    Source: as fusions `prefix` and `verbalise`.
    """
    texts = TokenPreprocessor(place.preprocess(PretrainedTextOptions), checkpoint=language_checkpoint(options))
    return EncoderPart(preprocessor=texts, module=lambda: ReadElsewhere(place.width))


@encoder_registry.register("caption", options=WordOptions, takes="image")
def caption(place: EncoderPlace, options: WordOptions) -> EncoderPart:
    """A picture in words for fusion `verbalise` or `prefix`: a local captioning network's, or its colours by rule.

    Source: Zeng et al. 2022, arXiv:2204.00598, section 3; the rule is our own.
    """
    network = _network(options)
    words = Captioner(network) if network else describe_picture
    return _part(place, options, words=words, network=network)


@encoder_registry.register("transcript", options=WordOptions, takes="audio")
def transcript(place: EncoderPlace, options: WordOptions) -> EncoderPart:
    """A recording in words for fusion `verbalise` or `prefix`: what a local network hears said, or its sound by rule.

    Source: Zeng et al. 2022, arXiv:2204.00598, section 3; the rule is our own.
    """
    network = _network(options)
    words = Recogniser(network) if network else describe_sound
    return _part(place, options, words=words, network=network)


@encoder_registry.register("description", options=TokenOptions, takes="signal")
def description(place: EncoderPlace, options: TokenOptions) -> EncoderPart:
    """A signal in words for fusion `verbalise` or `prefix`: level, strength, pace and course of each channel, by rule.

    Source: our own rule.
    """
    return _part(place, options, words=describe_signal, network=None)


def _part(place: EncoderPlace, options: TokenOptions, *, words: Words, network: Checkpoint | None) -> EncoderPart:
    made = VerbalPreprocessor(
        place.preprocess(VerbalOptions), checkpoint=language_checkpoint(options), words=words, network=network
    )
    return EncoderPart(preprocessor=made, module=lambda: ReadElsewhere(place.width))


def _network(options: WordOptions) -> Checkpoint | None:
    return checkpoint_at(options.network_path, digest=options.network_digest) if options.network_path else None
