"""LoRA: low-rank additions to layers whose own weights stay as they are. The only door to peft.

in        an encoder, LoraSettings, the layers that may have additions
out       the same encoder; the additions are plain layers called once a pass, and they alone ask for gradients
relies on preprocess/pretrained.py for what must happen before peft is imported, which imports transformers
"""

import re
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from shared.config import LoraSettings
from shared.errors import ModelError
from shared.model.parts import mark_parts, parts_of
from shared.preprocess.pretrained import may_import_transformers

RECURRENT = "recurrent"
"""last part of the names of layers whose weights recurrence.py computes with apart from their calls"""


def additions_fit(path: str, module: nn.Module) -> bool:
    """Whether a layer can have low-rank additions that every gradient engine follows.

    Embeddings cannot: peft keeps their additions as bare parameters, outside any layer. Nor can convolutions of several
    groups, whose additions peft cannot make of any rank, nor layers whose weights are used apart from their calls.
    """
    if path.rpartition(".")[2] == RECURRENT:
        return False
    is_whole = type(module) in (nn.Conv1d, nn.Conv2d) and getattr(module, "groups", 1) == 1
    return type(module) is nn.Linear or is_whole


def add_lora(
    encoder: nn.Module, settings: LoraSettings, *, layers: Mapping[str, nn.Module], usual: Sequence[str], of: str
) -> None:
    """Puts additions on an encoder's layers, in place; afterwards nothing else of it asks for a gradient.

    Their first weights come from torch's generator (the first factor) and are 0 (the second): the encoder gives what it
    gave before.

    Args:
        layers: those that may have additions, by name.
        usual: endings of names, of which those that fit some layer count where the settings name none; if none fits,
            all layers do.
        of: the encoder, for errors.

    Raises:
        ModelError: no layer may have additions, or an ending in the settings fits none.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; under DP-SGD: Yu et al. 2022, arXiv:2110.06500.
    """
    chosen = _chosen(settings, layers=tuple(layers), usual=usual, of=of)
    may_import_transformers()
    with warnings.catch_warnings():
        # that a merge with the layer's own weights would not do; nothing is merged here
        warnings.filterwarnings("ignore", message=".*[Mm]erg.*")
        from peft import LoraConfig, inject_adapter_in_model

        # whole names: peft takes the entries of a list for endings
        pattern = "|".join(re.escape(name) for name in chosen)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # divided by r, and no more
            lora_dropout=0.0,
            bias="none",
            target_modules=f"({pattern})",
        )
        inject_adapter_in_model(config, encoder)
    for name in chosen:
        # PRIVACY: additions see as many rows of each sample as their layer. test_additions_to_frames_are_a_clip_s_own
        mark_parts(encoder.get_submodule(name), parts=parts_of(layers[name]))


def _chosen(settings: LoraSettings, *, layers: Sequence[str], usual: Sequence[str], of: str) -> list[str]:
    """Names of the layers that get additions."""
    if not layers:
        raise ModelError(
            f'{of}: mode = "lora" needs a linear layer or ungrouped convolution before the last one, and there is '
            'none; allowed: mode = "train"'
        )
    unknown = [ending for ending in settings.layers if not _ending(layers, (ending,))]
    if unknown:
        raise ModelError(f"{of}: lora.layers {unknown} fit no layer; allowed: endings of {_short(layers)}")
    return _ending(layers, settings.layers) or _ending(layers, usual) or list(layers)


def _ending(layers: Sequence[str], endings: Sequence[str]) -> list[str]:
    return [name for name in layers if any(name == end or name.endswith(f".{end}") for end in endings)]


def _short(layers: Sequence[str]) -> str:
    """The last parts of the names, each once."""
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in layers}))
