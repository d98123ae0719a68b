"""Doors: what a library gives comes in through one file, or the few that are named, where whoever reads the code for it finds all of it."""

import ast

import pytest

from tests.check_documents import ROOT, tracked

DOORS = {
    # the cipher behind the noise, keys that sign, certificates: three uses that share nothing
    "cryptography": {"shared/privacy/noise.py", "shared/keys.py", "server/deployment/certificates.py"},
    "faiss": {"server/nearest.py"},
    "onnx": {"server/onnx_file.py"},
    "onnxruntime": {"shared/onnx_network.py"},
    "peft": {"shared/model/encoders/lora.py"},
    "pyarrow": {"shared/table.py"},
    # the second is used in a process that loads no torch, too
    "safetensors": {"shared/float32_file.py", "shared/tensor_file.py"},
}


@pytest.fixture(scope="module")
def imported_by() -> dict[str, set[str]]:
    """Library -> the files of the product that import it, wherever in the file."""
    found = dict[str, set[str]]()
    for path in tracked(".py"):
        if path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("library", DOORS)
def test_a_library_comes_in_through_its_door(library: str, imported_by: dict[str, set[str]]) -> None:
    assert imported_by[library] == DOORS[library]
