"""Registry: the data sets that can be built by name, with options as a scenario file or a command line gives them.

in        a name such as "har" and options such as {"from": "...", "alpha": 5}
out       the data set folder that the builder of that name writes
relies on the builders' own signatures for what options there are; a builder is imported when it is called
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from pydantic import Field, create_model
from pydantic_core import PydanticUndefined

from shared.errors import ConfigError
from shared.settings import Option, Settings, parse_settings
from simulations.datasets.writer import BuiltDataset


@dataclass(frozen=True)
class Builder:
    """Where a builder is found, and what people are told about it."""

    name: str
    summary: str
    module: str
    function: str


BUILDERS: dict[str, Builder] = {
    builder.name: builder
    for builder in (
        Builder("moods", "generated faces, sentences and voices with a mood", "moods", "build_moods"),
        Builder("tuxpaint", "drawings with written and spoken names, nine languages", "tuxpaint", "build_tuxpaint"),
        Builder(
            "tuxpaint-matching",
            "drawings and their names, to be matched",
            "tuxpaint_matching",
            "build_tuxpaint_matching",
        ),
        Builder("har", "UCI-HAR: acceleration and gyroscope windows, 105 sites", "har", "build_har"),
        Builder("mosi", "CMU-MOSI: film reviews as transcripts and feature vectors", "mosi", "build_mosi"),
        Builder("emodb", "EmoDB: emotional speech, ten speakers", "emodb", "build_emodb"),
    )
}


def build(name: str, target: Path, *, seed: int, options: Mapping[str, Option]) -> BuiltDataset:
    """Build a data set by name. The option `from` is the builder's `source`.

    Raises:
        ConfigError: no builder has this name, an option is unknown, missing or out of range, or the build failed.
    """
    function, allowed = _function(name), option_names(name)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(f"data set {name}: no option {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    # Any: pydantic's create_model takes what no type can say
    fields: dict[str, Any] = {
        parameter: (hints[parameter], Field(default=_default(parameters[parameter]), alias=option))
        for option, parameter in allowed.items()
    }
    form = create_model(f"{name.title()}Options", __base__=Settings, **fields)
    if "from" in allowed and _default(parameters["source"]) is PydanticUndefined and "from" not in options:
        raise ConfigError(
            f"data set {name}: made from a public source, which README names; say where it is: --from PATH with motet "
            "data and motet simulate, --set source.options.from=PATH with motet run and motet prepare"
        )
    settings = parse_settings(form, options, place=f"options of data set {name}")
    return function(target, seed=seed, **{key: getattr(settings, key) for key in allowed.values()})


def _default(parameter: inspect.Parameter) -> object:
    return PydanticUndefined if parameter.default is inspect.Parameter.empty else parameter.default


def option_names(name: str) -> dict[str, str]:
    """Options of a builder -> the parameters they stand for.

    Raises:
        ConfigError: no builder has this name.
    """
    parameters = list(inspect.signature(_function(name)).parameters)
    return {"from" if key == "source" else key: key for key in parameters if key not in ("target", "seed")}


def _function(name: str) -> Callable[..., BuiltDataset]:
    builder = BUILDERS.get(name)
    if builder is None:
        raise ConfigError(f"data set {name!r}: not known; allowed: {', '.join(BUILDERS)}")
    module = importlib.import_module(f"simulations.datasets.{builder.module}")
    return cast("Callable[..., BuiltDataset]", getattr(module, builder.function))
