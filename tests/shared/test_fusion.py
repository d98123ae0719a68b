"""Fusions: each is what its name says over the modalities present."""

import pytest
import torch
from torch import Tensor, nn

from shared.config import PartSettings
from shared.errors import ModelError
from shared.model.attention import TransformerBlock, masked_mean
from shared.model.registry import Fusion, FusionPlace, fusion_registry
from shared.model.tasks import SingleLabel
from shared.settings import Option
from tests.shared.example_runs import FUSIONS

PLACE = FusionPlace(modalities=("photo", "words", "sound"), width=4, task=SingleLabel(num_outputs=3))


def build(name: str, **options: Option) -> Fusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return fusion_registry.build(PartSettings(name=name, options=options), place=PLACE)


def example() -> tuple[Tensor, Tensor]:
    embeddings = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    return embeddings, torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)


def test_all_fusions_of_the_issue_are_there() -> None:
    assert set(fusion_registry.names()) - {"pair", "prefix", "verbalise"} == set(
        FUSIONS
    )  # those have tests of their own


def test_mean_and_sum_are_over_the_modalities_present() -> None:
    embeddings, present = example()
    total = torch.stack([embeddings[0].sum(0), embeddings[1, 0] + embeddings[1, 2], embeddings[2, 1]])

    torch.testing.assert_close(build("sum")(embeddings, present), total)
    torch.testing.assert_close(build("mean")(embeddings, present), total / torch.tensor([[3.0], [2.0], [1.0]]))


def test_concat_is_one_linear_layer_over_all_embeddings_side_by_side() -> None:
    embeddings, _ = example()
    fusion = build("concat")
    weights = dict(fusion.named_parameters())
    side_by_side = torch.cat([weights[f"project.{name}.weight"] for name in PLACE.modalities], dim=1)
    bias = torch.stack([weights[f"project.{name}.bias"] for name in PLACE.modalities]).sum(dim=0)

    fused = fusion(embeddings, torch.ones(3, 3, dtype=torch.bool))

    torch.testing.assert_close(fused, nn.functional.linear(embeddings.flatten(1), side_by_side, bias))


def test_the_gates_of_those_present_add_up_to_one() -> None:
    _, present = example()
    same = torch.ones(3, 3, 4)
    torch.testing.assert_close(build("gated", project=False)(same, present), torch.ones(3, 4))


def test_a_gate_can_choose() -> None:
    embeddings, present = example()
    fusion = build("gated", project=False)
    with torch.no_grad():
        fusion.get_parameter("gate.sound.bias").fill_(50.0)

    fused = fusion(embeddings, present)

    torch.testing.assert_close(fused[:2], embeddings[:2, 2])
    torch.testing.assert_close(fused[2], embeddings[2, 1])


def test_learned_weights_start_equal_and_add_up_to_one_over_those_present() -> None:
    embeddings, present = example()
    fusion = build("weighted")

    torch.testing.assert_close(fusion(embeddings, present), build("mean")(embeddings, present))

    with torch.no_grad():
        for modality, weight in zip(PLACE.modalities, (3.0, 1.0, 2.0), strict=True):
            fusion.get_parameter(f"weights.score.{modality}.weight").fill_(torch.tensor(weight).log())
    first, second, third = embeddings.unbind(dim=1)
    fused = fusion(embeddings, present)
    torch.testing.assert_close(fused[0], (3 * first + second + 2 * third)[0] / 6)
    torch.testing.assert_close(fused[1], (3 * first + 2 * third)[1] / 5)
    torch.testing.assert_close(fused[2], second[2])


def test_product_multiplies_what_is_present() -> None:
    embeddings, present = example()
    fusion = build("product")
    weights = dict(fusion.named_parameters())
    first, second, third = (
        1
        + nn.functional.linear(
            embeddings[:, place], weights[f"project.{name}.weight"], weights[f"project.{name}.bias"]
        ).tanh()
        for place, name in enumerate(PLACE.modalities)
    )

    expected = torch.stack([(first * second * third)[0], (first * third)[1], second[2]])
    torch.testing.assert_close(fusion(embeddings, present), expected)


def test_bilinear_is_the_whole_tensor_of_low_rank() -> None:
    """Of two modalities: all products of numbers of the one and the other, and of each with 1, by weights in a tensor."""
    place = FusionPlace(modalities=("photo", "words"), width=4, task=SingleLabel(num_outputs=3))
    fusion = fusion_registry.build(PartSettings(name="bilinear", options={"rank": 3}), place=place)
    embeddings, _ = example()
    one = torch.ones(3, 1)
    first, second = (torch.cat([one, embeddings[:, place]], dim=1) for place in range(2))
    weights = dict(fusion.named_parameters())
    factors = [
        torch.cat([1 + weights[f"factor.{name}.bias"][:, None], weights[f"factor.{name}.weight"]], dim=1).reshape(
            3, 4, 5
        )
        for name in place.modalities
    ]
    tensor = torch.einsum("rdi,rdj->dij", *factors) / 3

    fused = fusion(embeddings[:, :2], torch.ones(3, 2, dtype=torch.bool))

    torch.testing.assert_close(fused, torch.einsum("dij,bi,bj->bd", tensor, first, second))


def test_products_over_nothing_are_one() -> None:
    embeddings, present = example()
    for name in ("product", "bilinear"):
        assert torch.equal(build(name)(embeddings, torch.zeros_like(present)), torch.ones(3, 4))


def test_only_what_multiplies_learns_a_product_of_signs() -> None:
    """Whether two numbers have the same sign: a sum of them says nothing of it."""
    draws = torch.Generator().manual_seed(0)
    embeddings = torch.randn(128, 2, 4, generator=draws)
    targets = (embeddings[:, 0, 0] * embeddings[:, 1, 0] > 0).long()
    place = FusionPlace(modalities=("photo", "words"), width=4, task=SingleLabel(num_outputs=2))
    right = {}
    for name in ("concat", "weighted", "product", "bilinear", "mlp"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.ModuleList([fusion_registry.build(PartSettings(name=name), place=place), nn.Linear(4, 2)])
        steps = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(60):
            outputs = model[1](model[0](embeddings, torch.ones(128, 2, dtype=torch.bool)))
            steps.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(outputs, targets))
            steps.step()
        right[name] = float((outputs.argmax(dim=1) == targets).float().mean())

    assert max(right["concat"], right["weighted"]) < 0.75
    assert min(right["product"], right["bilinear"], right["mlp"]) > 0.8


def test_mlp_of_one_layer_is_concat_with_a_bend() -> None:
    embeddings, present = example()
    fusion, concat = build("mlp", layers=1, activation="tanh"), build("concat", activation="tanh")
    concat.load_state_dict(fusion.state_dict())

    torch.testing.assert_close(fusion(embeddings, present), concat(embeddings, present))


def test_mlp_has_the_layers_that_are_asked_for() -> None:
    shapes = [
        tuple(value.shape) for key, value in build("mlp", layers=3, hidden=5).named_parameters() if "weight" in key
    ]
    assert shapes == [(5, 4)] * 3 + [(5, 5), (4, 5)]
    assert build("mlp").get_parameter("layers.0.weight").shape == (4, 8)


def test_attention_lets_modalities_see_each_other_but_no_absent_one() -> None:
    embeddings, _ = example()
    block = TransformerBlock(4, heads=2, hidden=8)
    there = torch.tensor([[True, True, False]]).expand(3, 3)
    changed_there, changed_absent = embeddings.clone(), embeddings.clone()
    changed_there[:, 1] = embeddings[:, 1].flip(1)
    changed_absent[:, 2] = embeddings[:, 2].flip(1)

    assert not torch.allclose(block(embeddings, there)[:, 0], block(changed_there, there)[:, 0])
    assert torch.equal(block(embeddings, there)[:, :2], block(changed_absent, there)[:, :2])


def test_the_attention_block_equals_that_of_torch() -> None:
    embeddings, there = example()
    ours = TransformerBlock(4, heads=2, hidden=8)
    theirs = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_": ours.query_key_value,
        "self_attn.out_proj.": ours.mix,
        "linear1.": ours.widen,
        "linear2.": ours.narrow,
        "norm1.": ours.attention_norm,
        "norm2.": ours.hidden_norm,
    }
    with torch.no_grad():
        for name, module in pairs.items():
            theirs.get_parameter(f"{name}weight").copy_(module.get_parameter("weight"))
            theirs.get_parameter(f"{name}bias").copy_(module.get_parameter("bias"))

    expected = theirs(embeddings, src_key_padding_mask=~there)

    torch.testing.assert_close(ours(embeddings, there)[there], expected[there], atol=1e-5, rtol=1e-4)


def test_the_decision_is_the_average_of_those_present() -> None:
    answers, present = example()
    likely = answers.log_softmax(dim=2)
    expected = torch.stack([likely[0].mean(0), (likely[1, 0] + likely[1, 2]) / 2, likely[2, 1]])

    torch.testing.assert_close(build("average")(answers, present), expected)
    torch.testing.assert_close(build("average", of="logits")(answers, present)[2], answers[2, 1])


def test_a_mean_over_nothing_is_zero() -> None:
    embeddings, present = example()
    assert torch.equal(masked_mean(embeddings, torch.zeros_like(present)), torch.zeros(3, 4))


def test_attention_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ModelError, match=r"heads is 3; allowed: a divisor of model.embedding_width, which is 4"):
        build("attention", heads=3)
