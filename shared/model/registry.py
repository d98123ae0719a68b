"""Registries: the parts of a model by name, ours and those of a user's own file.

in        a name and a table of options from the run's settings
out       the part, built; or a ModelError that lists what there is
relies on every file of parts having been imported: model/encoders/, fusion/ and heads.py are by multimodal.py,
          a user's own by `load_extensions`

A user adds a part in a Python file of their own (here `brightness.py`, given to `load_extensions`):

    from pydantic import Field
    from torch import nn
    from shared.config import Settings
    from shared.model.registry import EncoderPart, EncoderPlace, encoder_registry
    from shared.preprocess.image import ImageOptions, ImagePreprocessor

    class BrightnessOptions(Settings):
        squares: int = Field(default=4, ge=1, le=16, description="a side is cut into so many")

    @encoder_registry.register("brightness", options=BrightnessOptions, takes="image")
    def brightness(place: EncoderPlace, options: BrightnessOptions) -> EncoderPart:
        pictures = ImagePreprocessor(place.preprocess(ImageOptions))
        inputs = pictures.shape[0] * options.squares**2
        return EncoderPart(
            preprocessor=pictures,
            module=lambda: nn.Sequential(
                nn.AdaptiveAvgPool2d(options.squares), nn.Flatten(), nn.Linear(inputs, place.width)
            ),
        )

after which a run may say `encoders.photo = { name = "brightness", options = { squares = 8 } }`.
"""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from torch import nn

from shared.config import EncoderMode, PartSettings
from shared.errors import ConfigError, ModelError
from shared.model.tasks import Task
from shared.preprocess import Preprocessor
from shared.schema import ModalitySchema
from shared.settings import Option, Settings, parse_settings

Place = TypeVar("Place")
Built = TypeVar("Built")
AnyOptions = TypeVar("AnyOptions", bound=Settings)


@dataclass(frozen=True)
class Part(Generic[Place, Built]):
    """One entry of a registry."""

    name: str
    options: type[Settings]
    takes: str
    """encoders: the kind of modality; empty elsewhere"""
    build: Callable[[Place, Mapping[str, Option]], Built]
    about: str = ""
    """its docstring: the promise, then what docs/model.md takes the source from"""


class Registry(Generic[Place, Built]):
    """Parts of one kind by name; each says which options it takes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part[Place, Built]] = {}

    def register(
        self, name: str, *, options: type[AnyOptions], takes: str = ""
    ) -> Callable[[Callable[[Place, AnyOptions], Built]], Callable[[Place, AnyOptions], Built]]:
        """Enter a function or class under a name; it is called with the part's place and its checked options.

        Raises:
            ModelError: the name is taken.
        """
        if name in self._parts:
            raise ModelError(f"{self.kind} {name!r} is registered already; allowed: a name of its own")

        def enter(factory: Callable[[Place, AnyOptions], Built]) -> Callable[[Place, AnyOptions], Built]:
            def build(place: Place, table: Mapping[str, Option]) -> Built:
                return factory(place, checked_options(options, table, of=f"{self.kind} {name!r}"))

            about = inspect.getdoc(factory) or ""
            self._parts[name] = Part(name=name, options=options, takes=takes, build=build, about=about)
            return factory

        return enter

    def names(self, *, takes: str = "") -> tuple[str, ...]:
        """All names, or those for one kind of modality."""
        return tuple(sorted(name for name, part in self._parts.items() if takes in ("", part.takes)))

    def get(self, name: str, *, takes: str = "") -> Part[Place, Built]:
        """The part of this name.

        Raises:
            ModelError: there is none, or it takes another kind of modality; the text lists those that fit.
        """
        fitting = self.names(takes=takes)
        if name in fitting:
            return self._parts[name]
        near = difflib.get_close_matches(name, fitting, n=1)
        what = f"{self.kind} {name!r}" + (f" for a modality of kind {takes}" if takes else "")
        why = f"takes {self._parts[name].takes}" if name in self._parts else "is not known"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"{what} {why}; allowed: {', '.join(fitting) or 'none registered'}{hint}")

    def build(self, settings: PartSettings, *, place: Place, takes: str = "") -> Built:
        """The part that the settings name, with their options."""
        return self.get(settings.name, takes=takes).build(place, settings.options)


@dataclass(frozen=True)
class EncoderPart:
    """How one modality becomes an embedding: what is done once to each value, and what is trained."""

    preprocessor: Preprocessor
    module: Callable[[], nn.Module]
    """makes the module that takes [B, *preprocessor.shape] to [B, width]"""


@dataclass(frozen=True)
class EncoderPlace:
    """Where an encoder stands: its modality, and how wide its embedding must be."""

    modality: str
    schema: ModalitySchema
    width: int
    preprocess_table: Mapping[str, Option]
    mode: EncoderMode | None = None
    """what the run asks to be trained; encoders of public weights look at it, for all others encoders/modes.py does"""

    def preprocess(self, options: type[AnyOptions]) -> AnyOptions:
        """The run's preprocessing options of this modality.

        Raises:
            ModelError: an option that is not among them, or a value outside its range.
        """
        return checked_options(options, self.preprocess_table, of=f"preprocess of modality {self.modality!r}")


@dataclass(frozen=True)
class TokenPlace:
    """A modality as tokens of a language model."""

    digest: str
    """of the model whose tokens they are"""
    num_tokens: int
    """most of a sample"""


@dataclass(frozen=True)
class FusionPlace:
    """Where a fusion stands: the model's modalities in order, the width of what it fuses, the task."""

    modalities: tuple[str, ...]
    width: int
    task: Task
    tokens: Mapping[str, TokenPlace] = field(default_factory=dict)
    """of the modalities whose encoder gives no embedding, because a language model is to read their tokens"""


@dataclass(frozen=True)
class HeadPlace:
    """Where a head stands: from a vector of `inputs` numbers to `outputs`."""

    inputs: int
    outputs: int


class Fusion(nn.Module):
    """What all fusions share: from [B, M, D] and present [B, M] to [B, D], absent modalities without any weight."""

    level: Literal["embedding", "decision", "language"] = "embedding"
    """decision: it is given what one head a modality says, [B, M, K], and returns [B, K]; language: it is given the
    tokens of some modalities too, {modality: [B, L]}"""


class EmbeddingCost(nn.Module):
    """What a sample's embeddings cost by themselves in training: [B, M, D] and present [B, M] to [B]."""


encoder_registry: Registry[EncoderPlace, EncoderPart] = Registry("encoder")
fusion_registry: Registry[FusionPlace, Fusion] = Registry("fusion")
head_registry: Registry[HeadPlace, nn.Module] = Registry("head")


def checked_options(options: type[AnyOptions], table: Mapping[str, Option], *, of: str) -> AnyOptions:
    """Options from a table of the run's settings.

    Raises:
        ModelError: every fault in the table, and each allowed option with its default and meaning.
    """
    try:
        return parse_settings(options, table, place=of)
    except ConfigError as error:
        lines = [f"  {name} = {field.default!r}" for name, field in options.model_fields.items()]
        notes = [f"  ({field.description})" if field.description else "" for field in options.model_fields.values()]
        allowed = "\n".join(line + note for line, note in zip(lines, notes, strict=True)) or "  none"
        raise ModelError(f"{error}\nallowed options and their defaults:\n{allowed}") from None


def load_extensions(path: Path) -> None:
    """Run a Python file that registers parts of its own; a file already loaded is not run again.

    It is a program and can do all that its user can. It comes from whoever gives the path on this machine: never call
    this with a path or content that arrived over the network.

    Raises:
        ModelError: the file is missing or fails.
    """
    path = path.expanduser().resolve()
    module_name = f"motet_extension_{path.stem}_{abs(hash(path)):x}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ModelError(f"{path}: no Python file there; allowed: a file that registers parts and ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ModelError(f"{path}: could not be loaded: {type(error).__name__}: {error}") from error
