"""Nothing that is read can run code: no pickle or its kin, no evaluated text, in client, server and shared."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("client", "server", "shared")
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "pickletools",
    "copyreg",
}
HARMLESS = {"pickle.UnpicklingError"}
"""what torch raises in the place of running something"""
BUILT_IN = {"eval", "exec", "compile", "__import__", "execfile"}
CALLS = {"yaml.load": "SafeLoader", "yaml.unsafe_load": None, "yaml.full_load": None, "torch.jit.load": None,
         "torch.package.PackageImporter": None, "numpy.lib.format.read_array": None, "pandas.read_pickle": None,
         "jsonpickle.decode": None, "os.system": None, "os.popen": None, "runpy.run_path": None}  # fmt: skip
RISKY = {"allow_pickle", "trust_remote_code", "shell"}
"""words that are nothing but false"""


def findings(text: str) -> Iterator[str]:
    """What in a module's text could run what it reads, each with its line."""
    tree = ast.parse(text)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            within = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            modules = [f"{within}{each.name}" for each in node.names]
            risky = [each for each in modules if set(each.split(".")) & MODULES and each not in HARMLESS]
            yield from (f"{node.lineno}: imports {each}" for each in risky)
        if isinstance(node, ast.Attribute | ast.Name):
            # also where it is handed on and called elsewhere
            name = _full_name(node, names=names)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and name in BUILT_IN:
                yield f"{node.lineno}: uses {name}"
            if name is not None and name not in HARMLESS and set(name.split(".")[:-1]) & MODULES:
                yield f"{node.lineno}: uses {name}"
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {fault}" for fault in _faults(node, names=names))


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name -> full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.asname or each.name.split(".")[0], each.name if each.asname else each.name.split(".")[0])
                        for each in node.names)  # fmt: skip
        if isinstance(node, ast.ImportFrom):
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def _full_name(node: ast.expr, *, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = _full_name(node.value, names=names)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def _faults(call: ast.Call, *, names: dict[str, str]) -> Iterator[str]:
    name = _full_name(call.func, names=names) or ""
    given = {each.arg: each.value for each in call.keywords}
    if name == "torch.load" and not _is("weights_only", True, given=given):
        yield "torch.load without weights_only=True"
    if name in CALLS:
        safe = CALLS[name]
        loaders = [*call.args[1:], *(value for key, value in given.items() if key == "Loader")]
        if safe is None or not any(safe in ast.unparse(each) for each in loaders):
            yield f"calls {name}"
    for key, value in given.items():
        if key is None and isinstance(value, ast.Dict):
            passed = {each.value: held for each, held in zip(value.keys, value.values, strict=True)
                      if isinstance(each, ast.Constant)}  # fmt: skip
            yield from (f"passes {word!r}" for word, held in passed.items() if word in RISKY and not _is_false(held))
        elif key is not None and key in RISKY and not _is_false(value):
            yield f"passes {key}={ast.unparse(value)}"
    if name == "numpy.load" and not _is("allow_pickle", False, given=given):
        yield "numpy.load without allow_pickle=False"


def _is(word: str, wanted: bool, *, given: dict[str | None, ast.expr]) -> bool:
    value = given.get(word)
    return isinstance(value, ast.Constant) and value.value is wanted


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_nothing_that_is_read_can_run_code() -> None:
    found = [f"{path.relative_to(ROOT)}:{each}" for path in sources() for each in findings(path.read_text("utf-8"))]
    assert found == []
    assert len(sources()) > 200


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle", "import pickle as p\np.loads(b'')", "from pickle import loads", "import marshal", "import shelve",
        "from torch.utils import cloudpickle", "from joblib import load", "import _pickle",
        "import torch\ntorch.load('a')", "import torch\ntorch.load('a', weights_only=False)", "import torch as t\nt.load('a')",
        "from torch import load\nload('a')", "from torch import load as read\nread('a', weights_only=is_safe)",
        "import torch\ntorch.jit.load('a')", "import torch\ntorch.serialization.pickle.loads(b'')",
        "eval('1')", "exec('1')", "compile('1', '', 'exec')", "run = eval\nrun('1')", "__import__('os')", "map(eval, [])",
        "import yaml\nyaml.load(text)", "import yaml\nyaml.load(text, Loader=yaml.Loader)", "import yaml\nyaml.unsafe_load(text)",
        "import numpy as np\nnp.load('a')", "import numpy as np\nnp.load('a', allow_pickle=True)",
        "from numpy import load\nload('a', allow_pickle=permitted)", "from transformers import AutoModel\nAutoModel.from_pretrained('a', trust_remote_code=True)",
        "f(**{'trust_remote_code': True})", "import subprocess\nsubprocess.run('ls', shell=True)", "import os\nos.system('ls')",
    ],
)  # fmt: skip
def test_the_same_walk_finds_what_is_planted(planted: str) -> None:
    assert list(findings(planted)) != []


@pytest.mark.parametrize(
    "harmless",
    [
        "import torch\ntorch.load('a', weights_only=True)", "import numpy as np\nnp.load('a', allow_pickle=False)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "import re\nre.compile('a')", "model.eval()",
        "import ast\nast.literal_eval('1')", "from pickle import UnpicklingError\nraise UnpicklingError", "import json\njson.load(file)", "pickled = 1",
    ],
)  # fmt: skip
def test_the_same_walk_lets_pass_what_runs_nothing(harmless: str) -> None:
    assert list(findings(harmless)) == []
