"""Motet's packages have plain names, so nothing else in its environment may own them."""

from importlib.metadata import packages_distributions

import pytest

OURS = ("client", "motet", "server", "shared", "simulations")


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_owns_the_name(name: str) -> None:
    assert set(packages_distributions().get(name, [])) <= {"motet"}


def test_owners_of_names_are_found_at_all() -> None:
    """The test above could not fail if they were not."""
    assert "pytest" in packages_distributions()["pytest"]


@pytest.mark.parametrize("name", OURS)
def test_the_name_imports_our_code(name: str) -> None:
    from importlib import import_module
    from pathlib import Path

    file = import_module(name).__file__
    assert file is not None
    assert Path(file).is_relative_to(Path(__file__).resolve().parents[1])
