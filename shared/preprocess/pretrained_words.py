"""Pretrained words: local networks say what a picture shows, or write down what is said in a recording.

in        a picture and the folder of a captioning network; a recording and that of a speech recogniser
out       a text, the most probable word taken each time, so that equal values get equal words
relies on pretrained.py for what must happen before transformers is imported; nothing is fetched, and no code from a
          folder is run
"""

import functools
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image

from shared.errors import ModelError
from shared.media import Waveform
from shared.preprocess import RawValue, wrong_kind
from shared.preprocess.audio import resampled
from shared.preprocess.pretrained import Checkpoint, may_import_transformers

MOST_WORDS = 48
"""tokens that a network may say of one value"""
MOST_SECONDS = 30.0
"""of a recording that are listened to"""


class Captioner:
    """A network that says what a picture shows, such as BLIP or a vision encoder with a text decoder.

    Source: Li et al. 2022, arXiv:2201.12086, section 3.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __call__(self, value: RawValue) -> str:
        """What the network says of the picture."""
        if not isinstance(value, Image.Image):
            raise wrong_kind(value, wanted="an image")
        network, looks, tokenizer = _captioning(self.checkpoint)
        with torch.no_grad():
            seen = looks(value.convert("RGB"), return_tensors="pt")["pixel_values"]
            said = network.generate(pixel_values=seen, max_new_tokens=MOST_WORDS, do_sample=False, num_beams=1)
        return str(tokenizer.decode(said[0], skip_special_tokens=True)).strip()


class Recogniser:
    """A network that writes down what is said, of wav2vec 2.0's kind (CTC) or of Whisper's.

    Source: Baevski et al. 2020, arXiv:2006.11477, section 3.3; Radford et al. 2022, arXiv:2212.04356, section 2.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __call__(self, value: RawValue) -> str:
        """What the network hears."""
        if not isinstance(value, Waveform):
            raise wrong_kind(value, wanted="a waveform")
        network, listens, tokenizer, is_ctc = _recognising(self.checkpoint)
        rate_hz = int(listens.sampling_rate)
        samples = torch.as_tensor(value.samples, dtype=torch.float32).mean(dim=0)
        samples = resampled(samples, sample_rate_hz=value.sample_rate_hz, to_hz=rate_hz)
        samples = samples[: round(MOST_SECONDS * rate_hz)]
        with torch.no_grad():
            heard = listens(samples.numpy(), sampling_rate=rate_hz, return_tensors="pt")
            if is_ctc:
                said = network(heard["input_values"]).logits.argmax(dim=2)
            else:
                said = network.generate(
                    heard["input_features"], max_new_tokens=MOST_WORDS, do_sample=False, num_beams=1
                )
        return str(tokenizer.decode(said[0], skip_special_tokens=True)).strip()


@functools.lru_cache(maxsize=2)
def _captioning(checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
    """Network, image processor and tokenizer."""
    may_import_transformers()
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, VisionEncoderDecoderModel

    local: Any = {"local_files_only": True, "trust_remote_code": False}
    kinds: Any = (
        VisionEncoderDecoderModel if checkpoint.kind == "vision-encoder-decoder" else AutoModelForImageTextToText
    )
    try:
        network = kinds.from_pretrained(checkpoint.path, **local)
        looks = AutoImageProcessor.from_pretrained(checkpoint.path, **local)  # type: ignore[no-untyped-call]
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **local)
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise ModelError(f"{checkpoint.path}: no captioning network that transformers can read: {error}") from None
    return _at_rest(network), looks, tokenizer


@functools.lru_cache(maxsize=2)
def _recognising(checkpoint: Checkpoint) -> tuple[Any, Any, Any, bool]:
    """Network, feature extractor, tokenizer, and whether it says a letter for every moment."""
    may_import_transformers()
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

    local: Any = {"local_files_only": True, "trust_remote_code": False}
    is_ctc = checkpoint.kind in MODEL_FOR_CTC_MAPPING_NAMES
    try:
        network = (AutoModelForCTC if is_ctc else AutoModelForSpeechSeq2Seq).from_pretrained(checkpoint.path, **local)
        listens = AutoFeatureExtractor.from_pretrained(checkpoint.path, **local)  # type: ignore[no-untyped-call]
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **local)
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise ModelError(f"{checkpoint.path}: no speech recogniser that transformers can read: {error}") from None
    return _at_rest(network), listens, tokenizer, is_ctc


def _at_rest(network: Any) -> Any:
    network.requires_grad_(False)
    network.train(False)
    return network
