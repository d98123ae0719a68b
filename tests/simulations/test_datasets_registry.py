"""Registry: builders by name, options by the names people write."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.settings import Option
from simulations.datasets.registry import BUILDERS, build, option_names


@pytest.mark.parametrize("name", list(BUILDERS))
def test_every_builder_is_there_and_tells_its_options(name: str) -> None:
    options = option_names(name)
    assert "target" not in options
    assert "seed" not in options
    assert ("from" in options) == (name != "moods")


def test_options_reach_the_builder(tmp_path: Path) -> None:
    options: dict[str, Option] = {"sites": 2, "rows_per_site": 10, "held_out_rows": 12, "alpha": 3}
    built = build("moods", tmp_path / "moods", seed=1, options=options)
    assert len(built.sites) == 2
    assert "Dirichlet(3.0)" in (built.folder / "README.md").read_text("utf-8")


def test_from_is_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"windows\.npz"):
        build("har", tmp_path / "har", seed=0, options={"from": str(tmp_path / "nowhere")})
    np.savez(tmp_path / "x.npz", a=np.ones(1))
    with pytest.raises(ConfigError, match=r"allowed: an \.npz with audio, text"):
        build("mosi", tmp_path / "mosi", seed=0, options={"from": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mood", {}, "allowed: moods, tuxpaint, tuxpaint-matching, har, mosi, emodb"),
        ("har", {"form": "x"}, "no option form; allowed: from, alpha, shards, acceleration"),
        ("har", {}, "--from PATH with motet data .* --set source.options.from=PATH with motet run"),
        ("har", {"from": "x", "acceleration": "none"}, "acceleration: .*'body' or 'total'.*none"),
        ("moods", {"sites": "many"}, "sites: .*integer.*many"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(
    tmp_path: Path, name: str, options: dict[str, Option], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, tmp_path / "data", seed=0, options=options)


def test_importing_the_registry_imports_no_builder() -> None:
    source = inspect.getsource(inspect.getmodule(build) or pytest)
    assert not any(f"datasets.{name} import" in source for name in BUILDERS)
