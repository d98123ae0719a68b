"""Language: a language model reads the samples: their texts, and what stands there for the other modalities.

in        embeddings [B, M, D], present [B, M], and token numbers {modality: [B, L]}
out       fused [B, D], from the model's states
relies on preprocess/pretrained_text.py for a network whose gradient every sample has to itself

| name      | what stands for modalities that are no texts                                                            |
| prefix    | soft tokens, projected from their embeddings, in front of the text                                      |
| verbalise | words: captions, transcripts and descriptions, made once for each value, in one text with the others    |
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from shared.config import LoraSettings
from shared.errors import ModelError
from shared.model.encoders.checkpoint import FolderOptions, language_checkpoint
from shared.model.encoders.lora import add_lora, additions_fit
from shared.model.encoders.modes import ATTENTION
from shared.model.parameters import PerModality
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.preprocess.pretrained import Checkpoint
from shared.preprocess.pretrained_text import text_network


class LanguageOptions(FolderOptions):
    """Which language model reads, and what of it trains."""

    path: str = Field(default="", description="folder that save_pretrained wrote; MiniLM of its package if not set")
    mode: Literal["frozen", "lora", "train"] = Field(default="frozen", description="of the language model")
    rank: int = Field(default=4, ge=1, le=256, description="lora only")
    alpha: float = Field(default=8.0, gt=0, le=1e4, description="lora only: what is added is scaled by alpha / rank")


class PrefixOptions(LanguageOptions):
    """How embeddings become soft tokens."""

    soft_tokens: int = Field(default=1, ge=1, le=64, description="of each modality that gives an embedding")


class LanguageFusion(Fusion):
    """A language model over soft tokens and words of each sample; its state, projected to the embedding's width.

    A model that looks back only (GPT) is asked for the state of the last token, one that looks everywhere (BERT) for
    the mean. Tokens of absent modalities are not there: nothing looks at them, and places are counted without them.
    """

    level = "language"

    def __init__(self, place: FusionPlace, options: LanguageOptions, *, soft_tokens: int) -> None:
        super().__init__()
        self.modalities = place.modalities
        self.checkpoint = checkpoint = language_checkpoint(options)
        _check(place, checkpoint, soft_tokens=soft_tokens)
        self.spoken = tuple(name for name in place.modalities if name in place.tokens)
        self.soft_tokens = soft_tokens
        self.network = text_network(checkpoint)
        words = self._words()
        width = words.embedding_dim
        self.soft = PerModality(
            {name: nn.Linear(place.width, soft_tokens * width) for name in place.modalities if name not in place.tokens}
        )
        self.out = nn.Linear(checkpoint.width, place.width)
        # soft tokens as long as words are, whatever the embeddings' scale
        self.register_buffer("scale", words.weight.detach().std(), persistent=False)
        self._set_mode(options)

    scale: Tensor

    def train(self, mode: bool = True) -> "LanguageFusion":
        """Training changes nothing of the language model's ways: what it would draw, all samples would share."""
        super().train(mode)
        self.network.train(False)
        return self

    def forward(
        self, embeddings: Float[Tensor, "B M D"], present: Bool[Tensor, "B M"], tokens: Mapping[str, Tensor]
    ) -> Float[Tensor, "B D"]:
        """What the model makes of each sample; of one without any modality, the projection of zeros."""
        pieces: list[Tensor] = []
        there: list[Tensor] = []
        for place, name in enumerate(self.modalities):
            if name in self.soft:
                soft = self.soft[name](embeddings[:, place]).unflatten(1, (self.soft_tokens, -1))
                pieces.append(nn.functional.layer_norm(soft, soft.shape[2:]) * self.scale)
                there.append(present[:, place, None].expand(-1, self.soft_tokens))
        numbers = self._numbers(present, tokens)
        there.append(numbers > 0)
        # one call for all texts, so that each sample's gradient can be followed
        pieces.append(self._words()((numbers - 1).clamp(min=0)))
        known = torch.cat(there, dim=1)
        states = self.network.states(known, inputs_embeds=torch.cat(pieces, dim=1))
        fused: Tensor = self.out(self.network.pooled(states, known))
        return fused

    def _words(self) -> nn.Embedding:
        """The model's own table of words."""
        table: nn.Embedding = self.network.network.get_input_embeddings()  # type: ignore[operator]
        return table

    def _numbers(self, present: Bool[Tensor, "B M"], tokens: Mapping[str, Tensor]) -> Int[Tensor, "B L"]:
        found = [
            tokens[name].masked_fill(~present[:, self.modalities.index(name), None], 0)
            for name in self.spoken
            if name in tokens
        ]
        # a sample's words of all modalities, the gaps between them not there
        return torch.cat(found, dim=1) if found else present.new_zeros((len(present), 1), dtype=torch.int64)

    def _set_mode(self, options: LanguageOptions) -> None:
        if options.mode == "train":
            return
        self.network.requires_grad_(False)
        if options.mode == "lora":
            layers = {path: module for path, module in self.network.named_modules() if additions_fit(path, module)}
            settings = LoraSettings(rank=options.rank, alpha=options.alpha)
            add_lora(self.network, settings, layers=layers, usual=ATTENTION, of="fusion")


@fusion_registry.register("prefix", options=PrefixOptions)
class PrefixFusion(LanguageFusion):
    """Embeddings of pictures, sounds and signals as soft tokens in front of the text that a language model reads.

    Source: Tsimpoukelli et al. 2021, arXiv:2106.13884, section 3 (a frozen language model and a visual prefix). Ours
    differs: soft tokens are normalised to the length of words, and a class is read off a state, nothing is generated.

    Raises:
        ModelError: no modality gives tokens, or all do; tokens of another model; more of them than it has places for.
    """

    def __init__(self, place: FusionPlace, options: PrefixOptions) -> None:
        if not place.tokens or len(place.tokens) == len(place.modalities):
            raise ModelError(
                f"fusion 'prefix': of {list(place.modalities)}, {list(place.tokens)} give tokens; allowed: one or more "
                "that do (encoder 'tokens' for a text), and one or more whose encoder gives an embedding"
            )
        super().__init__(place, options, soft_tokens=options.soft_tokens)


@fusion_registry.register("verbalise", options=LanguageOptions)
class VerbaliseFusion(LanguageFusion):
    """Every modality in words, all of them one text that a language model reads.

    Source: Zeng et al. 2022, arXiv:2204.00598, section 3 (language as what modalities share). Ours differs: the words
    are made by local models or by rule, once for each value, and what reads them may train.

    Raises:
        ModelError: a modality gives no tokens, or those of another model; more of them than it has places for.
    """

    def __init__(self, place: FusionPlace, options: LanguageOptions) -> None:
        silent = [name for name in place.modalities if name not in place.tokens]
        if silent:
            raise ModelError(
                f"fusion 'verbalise': {', '.join(silent)} gives no tokens; allowed: encoder 'caption' for an image, "
                "'transcript' for audio, 'description' for a signal, 'tokens' for a text"
            )
        super().__init__(place, options, soft_tokens=0)


def _check(place: FusionPlace, checkpoint: Checkpoint, *, soft_tokens: int) -> None:
    others = [name for name, tokens in place.tokens.items() if tokens.digest != checkpoint.digest]
    if others:
        raise ModelError(
            f"{', '.join(others)}: tokens of another language model than the fusion's, which lies in "
            f"{checkpoint.path}; allowed: the same path in the encoder's options and in the fusion's"
        )
    longest = soft_tokens * (len(place.modalities) - len(place.tokens))
    longest += sum(tokens.num_tokens for tokens in place.tokens.values())
    if checkpoint.max_tokens is not None and longest > checkpoint.max_tokens:
        raise ModelError(
            f"up to {longest} tokens of all modalities together; allowed: {checkpoint.max_tokens}, for which the "
            "language model has places. Lower preprocess.max_tokens or soft_tokens"
        )
