"""Text encoders: token numbers become embeddings.

in        int64 [B, L] from preprocess/text.py, 0 where the text has ended
out       embeddings [B, D]
relies on texts without any token giving a finite embedding: absent ones arrive as zeros
"""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from shared.model.attention import masked_mean
from shared.model.encoders.projection import sample_norm
from shared.model.encoders.transformer import TokenTransformer, TransformerOptions, token_embedding
from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
from shared.preprocess.text import NgramOptions, TextOptions, TextPreprocessor, WordGroupOptions
from shared.settings import Settings


class TextTransformer(TokenTransformer):
    """A small transformer over the tokens that are there."""

    def __init__(self, num_ids: int, *, max_tokens: int, width: int, options: TransformerOptions) -> None:
        token = token_embedding(num_ids, width=options.token_width)
        super().__init__(token, places=max_tokens, token_width=options.token_width, width=width, options=options)

    def forward(self, numbers: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The embedding of each text."""
        return self.embedded(self.token(numbers), there=numbers > 0)


class EmbeddingMeanOptions(Settings):
    """Size of the table of token vectors."""

    token_width: int = Field(default=16, ge=1, le=1024)
    normalise: bool = Field(default=True, description="the embedding to mean 0 and deviation 1, by itself")


class EmbeddingMean(nn.Module):
    """The mean of the tokens' vectors and one linear layer: cheap, and blind to order.

    Source: Joulin et al. 2016, arXiv:1607.01759; hashed letter groups: Bojanowski et al. 2017, arXiv:1607.04606.
    """

    def __init__(self, num_ids: int, *, width: int, options: EmbeddingMeanOptions) -> None:
        super().__init__()
        self.token = token_embedding(num_ids, width=options.token_width)
        self.linear = nn.Linear(options.token_width, width)
        self.norm = sample_norm(width, on=options.normalise)

    def forward(self, numbers: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The embedding of each text."""
        embeddings: Tensor = self.norm(self.linear(masked_mean(self.token(numbers), numbers > 0)))
        return embeddings


class BagOfNgramsOptions(Settings):
    """How a text's tokens are added up."""

    scale: float = Field(
        default=1.0,
        gt=0,
        le=1e4,
        description="length of a text's vector of counts; a frozen network's vector of F numbers has sqrt(F)",
    )
    from_zero: bool = Field(default=False, description="the table starts at 0, as logistic regression does")


class BagOfNgrams(nn.Module):
    """The sum of the tokens' vectors over the root of their number: a linear model on hashed counts, and no layer more.

    With the width of the labels and an identity head it is logistic regression, whose only weights are the table's.

    Source: Weinberger et al. 2009, arXiv:0902.2206, with all counts of one sign. Ours differs: the vector of counts is
    divided by the root of the number of tokens, which is its length where no token comes twice.
    """

    def __init__(self, num_ids: int, *, width: int, options: BagOfNgramsOptions) -> None:
        super().__init__()
        self.scale = options.scale
        self.token = token_embedding(num_ids, width=width)
        if options.from_zero:
            nn.init.zeros_(self.token.weight)

    def forward(self, numbers: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The embedding of each text."""
        there = numbers > 0
        root = there.sum(dim=1, keepdim=True).to(self.token.weight.dtype).sqrt()
        embeddings: Tensor = masked_mean(self.token(numbers), there) * root * self.scale
        return embeddings


@encoder_registry.register("transformer", options=TransformerOptions, takes="text")
def transformer(place: EncoderPlace, options: TransformerOptions) -> EncoderPart:
    """A small transformer, trained from its first weights.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3 (its encoder), with the norm before each part as Xiong et
    al. 2020, arXiv:2002.04745. Ours differs: the mean of the tokens is the text's.
    """
    texts = TextPreprocessor(place.preprocess(TextOptions))
    return EncoderPart(
        preprocessor=texts,
        module=lambda: TextTransformer(texts.num_ids, max_tokens=texts.shape[0], width=place.width, options=options),
    )


@encoder_registry.register("embedding-mean", options=EmbeddingMeanOptions, takes="text")
def embedding_mean(place: EncoderPlace, options: EmbeddingMeanOptions) -> EncoderPart:
    """Bags of words and letter groups, trained from their first weights."""
    texts = TextPreprocessor(place.preprocess(WordGroupOptions))
    return EncoderPart(
        preprocessor=texts, module=lambda: EmbeddingMean(texts.num_ids, width=place.width, options=options)
    )


@encoder_registry.register("bag-of-ngrams", options=BagOfNgramsOptions, takes="text")
def bag_of_ngrams(place: EncoderPlace, options: BagOfNgramsOptions) -> EncoderPart:
    """Words and letter groups of several sizes, each with a vector of its own in one table."""
    texts = TextPreprocessor(place.preprocess(NgramOptions))
    return EncoderPart(
        preprocessor=texts, module=lambda: BagOfNgrams(texts.num_ids, width=place.width, options=options)
    )
