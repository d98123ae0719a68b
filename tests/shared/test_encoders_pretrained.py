"""Pretrained encoders and modes: the network is the one in the folder, and what trains is what the mode says."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shared.config import EncoderSettings, RunConfig
from shared.errors import ConfigError, ModelError
from shared.model.encoders import build_encoder, preprocessor
from shared.model.encoders.pretrained import pretrained_part
from shared.model.encoders.projection import FixedVectorOptions
from shared.model.multimodal import build_model
from shared.model.parameters import trainable_names
from shared.model.registry import EncoderPlace
from shared.preprocess.pretrained import efficientnet_checkpoint, local_checkpoint
from shared.preprocess.pretrained_efficientnet import efficientnet
from shared.preprocess.pretrained_network import read_network
from tests.shared.example_runs import OF_KIND, example_run, finished, raw_value, small
from tests.shared.pretrained_folders import KIND_OF, TEXT_KINDS, encoder_table, pretrained_folder

Folder = Callable[[str], Path]
OURS = [(modality, name) for modality, names in OF_KIND.items() for name in names]
ONE_TABLE = ("bag-of-ngrams",)  # no linear layer
ONE_LINEAR = ("embedding-mean", "mel-statistics", "statistics", "linear")  # nothing before the last layer but tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder with a network of a kind, made once."""
    root = tmp_path_factory.mktemp("networks")
    return lambda kind: root / kind if (root / kind).exists() else pretrained_folder(root / kind, kind=kind)


def run_of(folder: Folder, kind: str, mode: str | None, **more: object) -> RunConfig:
    table = encoder_table(folder(kind), kind=kind, mode=mode)
    return example_run({modality: {**settings, **more} for modality, settings in table.items()})


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def tokens_of(*texts: str, run: RunConfig) -> Tensor:
    door = preprocessor(run, "words")
    return door.finish(torch.stack([door.read(text) for text in texts]))


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_text_network_gives_what_transformers_gives_of_the_tokens_that_are_there(kind: str, folder: Folder) -> None:
    """Numbers, places and attention: of a text by itself, unpadded, by transformers' own code and attention."""
    run = run_of(folder, kind, "train")
    network = build_encoder(run, "words").get_submodule("network")
    tokens = tokens_of("good day", "bad days good", "good", run=run)
    own = own_network(folder(kind))

    with torch.no_grad():
        vectors = network(tokens)
        for row, vector in zip(tokens, vectors, strict=True):
            numbers = row[row > 0][None] - 1
            states = own(input_ids=numbers, attention_mask=torch.ones_like(numbers)).last_hidden_state[0]
            wanted = states[-1] if kind == "gpt2" else states.mean(dim=0)
            torch.testing.assert_close(vector, wanted, rtol=1e-5, atol=2e-6)
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def own_network(folder: Path) -> nn.Module:
    """As transformers gives it to anybody: its own attention, dropout and layers."""
    from transformers import AutoModel

    network: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True).train(False)
    return network


@pytest.mark.parametrize("kind", ["vit", "wav2vec2", "ast"])
def test_other_networks_give_what_transformers_gives(kind: str, folder: Folder) -> None:
    run, modality = run_of(folder, kind, "train"), KIND_OF[kind]
    door, network = preprocessor(run, modality), build_encoder(run, modality).get_submodule("network")
    values = door.finish(torch.stack([door.read(raw_value(modality, seed=seed)) for seed in range(2)]))

    with torch.no_grad():
        states = own_network(folder(kind))(values).last_hidden_state
        wanted = {"vit": states[:, 0], "ast": states[:, :2].mean(dim=1), "wav2vec2": states.mean(dim=1)}[kind]
        torch.testing.assert_close(network(values), wanted, rtol=1e-5, atol=2e-6)


def test_efficientnet_with_its_batch_norm_folded_away_is_the_packages() -> None:
    packaged = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    checkpoint = efficientnet_checkpoint()
    packaged.load_state_dict(torch.load(checkpoint.path, weights_only=True))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = packaged.eval().extract_features(pixels).mean(dim=(2, 3))
        torch.testing.assert_close(efficientnet(checkpoint)(pixels), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", list(KIND_OF))
def test_training_draws_nothing_and_gives_what_evaluation_gives(kind: str, folder: Folder) -> None:
    """The folders say dropout .1, layer drop .1 and masked spans, as transformers' own settings do."""
    run, modality = run_of(folder, kind, "lora"), KIND_OF[kind]
    encoder, door = build_encoder(run, modality), preprocessor(run, modality)
    values = door.finish(torch.stack([door.read(raw_value(modality))]))
    before = torch.random.get_rng_state()
    with torch.no_grad():
        training, evaluation = encoder.train()(values), encoder.eval()(values)

    assert torch.equal(training, evaluation)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_text_without_tokens_is_zeros_and_gives_the_network_no_gradient(kind: str, folder: Folder) -> None:
    network = build_encoder(run_of(folder, kind, "train"), "words").get_submodule("network")
    vectors = network(torch.zeros(2, 6, dtype=torch.int64))
    gradients = torch.autograd.grad(vectors.sum(), list(network.parameters()), allow_unused=True)

    assert (vectors == 0).all()
    assert all(each is None or (each == 0).all() for each in gradients)


def test_a_text_is_cut_to_the_places_that_the_network_has(folder: Folder) -> None:
    for kind, places in (("bert", 16), ("roberta", 14), ("gpt2", 16)):
        run = run_of(folder, kind, "train", preprocess={"max_tokens": 64})
        tokens = tokens_of("good " * 40, run=run)
        assert tokens.shape == (1, places)
        assert build_encoder(run, "words")(tokens).isfinite().all()


@pytest.mark.parametrize("kind", list(KIND_OF))
def test_all_that_the_embedding_depends_on_trains_and_nothing_else_does(kind: str, folder: Folder) -> None:
    """BERT's pooler and wav2vec2's vector for masked spans would only be given noise."""
    encoder = build_encoder(run_of(folder, kind, "train"), KIND_OF[kind])
    assert not any("pooler" in name or "masked_spec" in name for name in trained(encoder))
    assert {"projection.linear.weight", "projection.linear.bias"} < trained(encoder)
    assert len(trained(encoder)) > 25
    assert len({parameter for name, parameter in encoder.named_parameters() if name not in trained(encoder)}) <= 1


def test_a_parameter_that_no_embedding_depends_on_does_not_train() -> None:
    """As that of a token for masked patches, which some networks have."""
    network = nn.Linear(5, 4)
    network.register_parameter("spare", nn.Parameter(torch.ones(3)))
    run = example_run({"vector": {"name": "linear"}})
    place = EncoderPlace("vector", run.data.modalities["vector"], width=6, preprocess_table={}, mode="train")
    door, options = preprocessor(run, "vector"), FixedVectorOptions()
    part = pretrained_part(
        place, frozen=lambda: door, inputs=door, network=lambda: network, network_width=4, options=options
    )
    assert trained(part.module().get_submodule("network")) == {"weight", "bias"}


@pytest.mark.parametrize("kind", list(KIND_OF))
def test_in_mode_lora_the_additions_and_the_last_layer_train_and_the_base_never_travels(
    kind: str, folder: Folder
) -> None:
    run, modality = run_of(folder, kind, "lora"), KIND_OF[kind]
    model = build_model(run)
    names = [name for name in trainable_names(model, (modality,)) if name.startswith("encoders.")]

    additions = [name for name in names if ".lora_" in name]
    assert set(names) - set(additions) == {
        f"encoders.{modality}.projection.linear.{each}" for each in ("weight", "bias")
    }
    # queries and values of both layers, two factors each; of GPT-2 all three in one
    assert len(additions) == (4 if kind == "gpt2" else 8)
    assert all(model.get_parameter(name).shape.count(4) for name in additions)


def test_additions_change_nothing_at_first_and_all_runs_of_a_seed_begin_with_the_same(folder: Folder) -> None:
    encoders = [build_encoder(run_of(folder, "bert", mode), "words") for mode in ("train", "lora", "lora")]
    tokens = torch.tensor([[3, 6, 8, 4, 0, 0]])
    whole, adapted, again = encoders
    torch.testing.assert_close(adapted.get_submodule("network")(tokens), whole.get_submodule("network")(tokens))
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_layers_that_are_adapted_can_be_chosen_by_their_endings(folder: Folder) -> None:
    lora = {"rank": 2, "layers": ("output.dense", "key")}
    names = trained(build_encoder(run_of(folder, "bert", "lora", lora=lora), "words"))
    adapted = {name.partition(".lora_")[0].rpartition(".layer.")[2] for name in names if ".lora_" in name}
    ends = {"attention.self.key", "attention.output.dense", "output.dense"}
    assert adapted == {f"{layer}.{end}" for layer in (0, 1) for end in ends}

    with pytest.raises(ModelError, match=r"lora.layers \['no_such'\] fit no layer; allowed: endings of .*self.query"):
        build_encoder(run_of(folder, "bert", "lora", lora={"layers": ("no_such",)}), "words")


def test_settings_of_lora_without_its_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match='settings of mode = "lora", and mode is None'):
        example_run({"vector": {"name": "linear", "lora": {"rank": 2}}})


def test_no_mode_means_frozen_for_public_weights_and_train_for_all_others(folder: Folder) -> None:
    assert trained(build_encoder(run_of(folder, "bert", None), "words")) == {"linear.weight", "linear.bias"}
    assert preprocessor(run_of(folder, "bert", None), "words").shape == (8,)
    encoder = build_encoder(example_run({"photo": small("cnn")}), "photo")
    assert trained(encoder) == {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize(("modality", "name"), OURS)
def test_an_encoder_of_no_public_weights_can_be_frozen_but_for_its_last_layer(modality: str, name: str) -> None:
    run = example_run({modality: {**small(name), "mode": "frozen"}})
    if name in ONE_TABLE:
        with pytest.raises(ModelError, match='mode = "frozen" trains the last linear layer, and it has none'):
            build_encoder(run, modality)
        return
    encoder, whole = build_encoder(run, modality), build_encoder(example_run({modality: small(name)}), modality)
    assert {each.rpartition(".")[0].rpartition(".")[2] for each in trained(encoder)} == {"linear"}
    assert len(trained(encoder)) == 2
    values = finished(modality, shape=preprocessor(run, modality).shape, rows=2)
    torch.testing.assert_close(encoder(values), whole(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("modality", "name"), OURS)
def test_an_encoder_of_no_public_weights_can_be_adapted_where_it_has_layers_for_it(modality: str, name: str) -> None:
    run = example_run({modality: {**small(name), "mode": "lora", "lora": {"rank": 2}}})
    if name in (*ONE_TABLE, *ONE_LINEAR):
        with pytest.raises(ModelError, match='mode = "lora"'):
            build_encoder(run, modality)
        return
    encoder = build_encoder(run, modality)
    names = trained(encoder)
    assert len([each for each in names if ".lora_" not in each]) == 2
    assert any(".lora_A" in each for each in names)
    assert not any("recurrent" in each for each in names)
    values = finished(modality, shape=preprocessor(run, modality).shape, rows=2)
    whole = build_encoder(example_run({modality: small(name)}), modality)
    torch.testing.assert_close(encoder(values), whole(values))


def test_a_name_that_says_frozen_is_frozen_for_ever(folder: Folder) -> None:
    table = {"words": {"name": "frozen-transformers", "mode": "lora", "options": {"path": str(folder("bert"))}}}
    with pytest.raises(ModelError, match="mode is 'lora'; allowed: 'frozen': name encoder 'pretrained-text'"):
        build_encoder(example_run(table), "words")


def test_other_weights_than_the_run_asks_for_are_refused_in_every_mode(folder: Folder) -> None:
    right = local_checkpoint(folder("bert")).digest
    for mode in ("train", "frozen", "lora"):
        options = {"path": str(folder("bert")), "weights_digest": "0" * 64}
        with pytest.raises(ModelError, match=f"have the digest {right}; allowed: 0000"):
            build_encoder(run_of(folder, "bert", mode, options=options), "words")


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Folder, tmp_path: Path) -> None:
    """transformers would fill them with random numbers of its own."""
    import safetensors.torch

    for file in folder("bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack .*query\.weight"):
        read_network(local_checkpoint(tmp_path))


def test_a_network_of_an_encoder_and_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(d_model=8, vocab_size=14).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="it is an encoder and a decoder"):
        read_network(local_checkpoint(tmp_path))


@pytest.mark.parametrize("kind", list(KIND_OF))
def test_the_size_of_a_model_is_known_without_its_weights(kind: str, folder: Folder) -> None:
    for mode in ("train", "lora"):
        run = run_of(folder, kind, mode)
        with torch.device("meta"):
            blank = build_model(run)
        shapes = {name: value.shape for name, value in build_model(run).named_parameters()}
        assert {name: value.shape for name, value in blank.named_parameters()} == shapes
        assert all(value.is_meta for value in blank.parameters())


def test_a_mode_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="mode"):
        EncoderSettings(name="cnn", mode="half")  # type: ignore[arg-type]


def test_libraries_of_networks_are_imported_by_runs_that_use_them_and_no_others() -> None:
    program = (
        "import sys, shared.model.multimodal; "
        "print([name for name in ('transformers', 'peft', 'onnxruntime', 'torchaudio') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
