"""The multimodal model: an encoder a modality, a fusion, a head, built from the run's settings alone.

in        inputs {modality: [B, ...]} and present [B, M] from batch.py
out       logits [B, K] or ratings [B, 1], and the loss of each sample [B]
relies on parameters.py having refused every layer without an exact gradient for each sample

Rows are independent: what the model says of one sample, and its gradient, do not depend on the others in the batch.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from shared.config import RunConfig
from shared.errors import ModelError
from shared.model import fusion as _fusion  # noqa: F401  # enters the fusions in their registry
from shared.model import heads as _heads  # noqa: F401  # and the heads in theirs
from shared.model.augment import Augmentation, build_augmentation
from shared.model.costs import build_costs
from shared.model.dropout import SampleDropout
from shared.model.encoders import build_encoder, preprocessor
from shared.model.encoders.language import READ_ELSEWHERE
from shared.model.parameters import PerModality, PerTask, apply_each, check_per_sample
from shared.model.registry import (
    EmbeddingCost,
    Fusion,
    FusionPlace,
    HeadPlace,
    TokenPlace,
    fusion_registry,
    head_registry,
)
from shared.model.sample_draws import KEYS
from shared.model.seeding import seeded
from shared.model.tasks import Several, Task, task_of
from shared.model.transfer import apply_patterns
from shared.preprocess.pretrained_text import TokenPreprocessor


class MultimodalModel(nn.Module):
    """Encoders, fusion and head of one run; absent modalities have no influence and get no gradient, exactly."""

    def __init__(
        self,
        *,
        encoders: PerModality,
        fusion: Fusion,
        head: nn.Module,
        width: int,
        task: Task,
        dropout: float = 0.0,
        costs: Mapping[str, EmbeddingCost] | None = None,
        augment: Mapping[str, Augmentation] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        self.width, self.task = width, task
        self.encoders, self.fusion, self.head = encoders, fusion, head
        self.dropout = SampleDropout(dropout)
        self.costs = nn.ModuleDict(dict(costs or {}))
        self.augment = PerModality(augment or {})

    def forward(self, inputs: Mapping[str, Tensor], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        """Logits, ratings in the unit of the data, or what the task asks for; in training a column of each cost too.

        Args:
            inputs: what the samples can have; a modality left out counts as absent in all of them. In training with
                dropout or augmentation, a key for each sample.
            present: in the order of `RunConfig.modalities`.
        """
        if not all(name in inputs for name in self.modalities):
            present = present & torch.tensor([name in inputs for name in self.modalities], device=present.device)
        stacked = self.dropout(self.embeddings(inputs, present), inputs.get(KEYS))
        outputs = self.answers(stacked, present, inputs)
        if not self.training or not self.costs:
            return outputs
        return torch.cat([outputs, *(cost(stacked, present)[:, None] for cost in self.costs.values())], dim=1)

    def loss(self, outputs: Float[Tensor, "B K"], targets: Num[Tensor, "B *T"]) -> Float[Tensor, "B"]:
        """The loss of each sample, as the task has it, and what its embeddings cost by themselves."""
        if not self.costs or not self.training:
            return self.task.loss(outputs, targets)
        num = len(self.costs)
        return self.task.loss(outputs[:, :-num], targets) + outputs[:, -num:].sum(dim=1)

    def embeddings(self, inputs: Mapping[str, Tensor], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
        """What each encoder makes of each sample, before dropout; zeros where the modality is absent."""
        # asked of the numbers, which torch.func allows of no sample's, and which an exported model could not ask again
        is_looked_into = torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting()
        is_whole = not is_looked_into and all(name in inputs for name in self.modalities) and bool(present.all())
        embeddings = [
            self._encoded(name, inputs[name], inputs) if is_whole else self._embedding(name, inputs, present[:, place])
            for place, name in enumerate(self.modalities)
        ]
        return torch.stack(embeddings, dim=1)

    def answers(
        self,
        embeddings: Float[Tensor, "B M D"],
        present: Bool[Tensor, "B M"],
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B K"]:
        """What fusion, head and task make of embeddings that are zeros where absent.

        Args:
            embeddings: of all modalities.
            present: in their order.
            inputs: as of `forward`; a fusion of level "language" reads the tokens in it.
        """
        if self.fusion.level == "decision":
            outputs = self.fusion(apply_each(self.head, embeddings), present)
        elif self.fusion.level == "language":
            outputs = self.head(self.fusion(embeddings, present, inputs or {}))
        else:
            outputs = self.head(self.fusion(embeddings, present))
        return self.task.scaled(outputs)

    def _embedding(self, name: str, inputs: Mapping[str, Tensor], present: Bool[Tensor, "B"]) -> Float[Tensor, "B D"]:
        if name not in inputs:
            return torch.zeros(present.shape[0], self.width, device=present.device)
        # What stands where nothing is present must not matter, so it is 0, for which every encoder is finite.
        there = present.reshape(-1, *(1,) * (inputs[name].ndim - 1))
        embedding = self._encoded(name, inputs[name].masked_fill(~there, 0), inputs)
        # PRIVACY: masked after the encoder and not skipped, so that every sample's gradient is its own, and exactly
        # zero where the modality is absent. test_absent_modality_gets_no_gradient,
        # test_even_a_fusion_that_forgets_about_absent_modalities_is_given_zeros
        return embedding.masked_fill(~present[:, None], 0.0)

    def _encoded(self, name: str, values: Tensor, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B D"]:
        if self.training and name in self.augment:
            values = self.augment[name](values, inputs.get(KEYS))
        embedding: Tensor = self.encoders[name](values)
        return embedding


def build_model(run: RunConfig) -> MultimodalModel:
    """The run's model with its first weights, which follow from `run.seed` alone; no global generator is moved.

    Raises:
        ModelError: a part or option that does not exist or fit, or a layer without exact per-sample gradients.
    """
    task = task_of(run)
    encoders = PerModality({name: build_encoder(run, name) for name in run.modalities})
    width = run.model.embedding_width
    place = FusionPlace(modalities=run.modalities, width=width, task=task, tokens=_token_places(run))
    with seeded(run.seed, part="fusion"):
        fused = fusion_registry.build(run.model.fusion, place=place)
    if place.tokens and fused.level != "language":
        raise ModelError(
            f"fusion {run.model.fusion.name!r} joins embeddings, and {', '.join(place.tokens)} gives tokens; allowed: "
            "'prefix' or 'verbalise', or another encoder there"
        )
    head = _build_head(run, task=task, each=fused.level == "decision")
    dropout = run.model.dropout
    model = MultimodalModel(
        encoders=encoders,
        fusion=fused,
        head=head,
        width=width,
        task=task,
        dropout=dropout,
        costs=build_costs(run),
        augment=_augmentations(run),
    )
    check_per_sample(model)
    apply_patterns(model, run.model)
    return model


def _augmentations(run: RunConfig) -> dict[str, Augmentation]:
    """Of the modalities that the run augments."""
    return {
        name: build_augmentation(
            run.model.encoders[name],
            modality=name,
            kind=run.data.modalities[name].kind,
            preprocessor=preprocessor(run, name),
        )
        for name in run.modalities
        if run.model.encoders[name].augment
    }


def _token_places(run: RunConfig) -> dict[str, TokenPlace]:
    """Of the modalities that a language model reads."""
    ways = {name: preprocessor(run, name) for name in run.modalities if run.model.encoders[name].name in READ_ELSEWHERE}
    return {
        name: TokenPlace(digest=way.checkpoint.digest, num_tokens=way.num_tokens)
        for name, way in ways.items()
        if isinstance(way, TokenPreprocessor)
    }


def _build_head(run: RunConfig, *, task: Task, each: bool) -> nn.Module:
    """One head, or one a task; and that for each modality, where modalities decide by themselves.

    Raises:
        ModelError: the head does not exist or fit.
    """
    if isinstance(task, Several) and run.model.head.name == "identity":
        raise ModelError(
            f"head 'identity' gives one answer, and there are {len(task.tasks)} tasks; allowed: a head with weights of "
            "its own for each task, such as 'linear'"
        )

    def build(part: str, num_outputs: int) -> nn.Module:
        place = HeadPlace(inputs=run.model.embedding_width, outputs=num_outputs)
        with seeded(run.seed, part=part):
            return head_registry.build(run.model.head, place=place)

    def answers(part: str) -> nn.Module:
        if not isinstance(task, Several):
            return build(part, task.num_outputs)
        return PerTask({name: build(f"{part}.{name}", own.num_outputs) for name, own in task.tasks.items()})

    return PerModality({name: answers(f"head.{name}") for name in run.modalities}) if each else answers("head")
