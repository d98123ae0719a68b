"""Documents and conventions that no other tool checks: run by `make check` as `python -m tests.check_documents`.

in        the tracked files of the repository
out       one line a fault, exit code 1 if there is any
relies on the documents using fenced blocks: toml blocks parse, `motet` commands exist, links lead somewhere
"""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def tracked(*endings: str) -> list[Path]:
    """Files git knows or would take, by ending."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )  # fmt: skip
    paths = (ROOT / line for line in listed.stdout.splitlines())
    return sorted(path for path in paths if path.suffix in endings and path.is_file())


def sizes() -> Iterator[str]:
    """Files and functions that hold more than a reader can."""
    for path in tracked(".py"):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE_LINES:
            yield f"{path}: {text.count(chr(10))} lines; allowed: {MAX_FILE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} is longer than {MAX_FUNCTION_LINES} lines"


def back_imports() -> Iterator[str]:
    """Packages that import the command; import-linter, which watches the rest, takes packages only."""
    for path in tracked(".py"):
        if path.parent != ROOT and not path.is_relative_to(ROOT / "tests"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
                if "motet" in names:
                    yield f"{path}: imports motet, the command that stands above all packages"


def named_tests() -> Iterator[str]:
    """PRIVACY comments and documents that name a test which does not exist."""
    defined = {
        node.name
        for path in tracked(".py")
        if path.is_relative_to(ROOT / "tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    for path in tracked(".py", ".md"):
        if path.is_relative_to(ROOT / "tests"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            # a comment may go on over several lines; the test's name stands in one of them
            comment = line + "".join(after for after in lines[number : number + 4] if after.strip().startswith("#"))
            if path.suffix == ".py" and "# PRIVACY:" in line and not re.search(r"\btest_\w+", comment):
                yield f"{path}:{number}: a PRIVACY line names no test"
            if path.suffix == ".md" or "#" in line:
                for name in re.findall(r"\btest_\w+(?!\w*\.py)", line):
                    if name not in defined and f"{name}.py" not in line:
                        yield f"{path}:{number}: names {name}, which is no test"


def blocks(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, language and text of the fenced blocks of a document."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 2, found[1], found[2]


def documents() -> Iterator[str]:
    """TOML that does not parse, commands and options that do not exist, links that lead nowhere."""
    import typer

    from motet import app

    group = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for path in tracked(".md"):
        for line, language, text in blocks(path):
            if language == "toml":
                try:
                    tomllib.loads(text)
                except tomllib.TOMLDecodeError as error:
                    yield f"{path}:{line}: {error}"
            if language in {"sh", "console", "bash"}:
                for command in text.replace("\\\n", " ").splitlines():
                    yield from (
                        f"{path}:{line}: {fault}" for fault in _command_faults(command, group=group, targets=targets)
                    )
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text(encoding="utf-8")):
            if not (path.parent / target).exists():
                yield f"{path}: link to {target}, which is not there"


def _command_faults(command: str, *, group: object, targets: set[str]) -> Iterator[str]:
    words = shlex.split(command.removeprefix("$ "), comments=True)
    if words[:1] == ["make"]:
        yield from (f"make {word}: no such target" for word in words[1:] if "=" not in word and word not in targets)
    if words[:1] != ["motet"]:
        return
    words, here = words[1:], group
    while words and words[0] in getattr(here, "commands", {}):
        here = here.commands[words.pop(0)]  # type: ignore[attr-defined]
    if hasattr(here, "commands") and words and words != ["--help"]:
        yield f"motet {words[0]}: no such command"
        return
    known = {option for each in getattr(here, "params", []) for option in each.opts} | {"--help"}
    yield from (
        f"{word}: no such option" for word in words if word.startswith("--") and word.split("=")[0] not in known
    )


def main() -> int:
    """Print every fault; 1 if there is any."""
    faults = [*sizes(), *back_imports(), *named_tests(), *documents()]
    for fault in faults:
        print(fault.replace(f"{ROOT}/", ""))
    print(f"{len(faults)} faults in documents and conventions")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
