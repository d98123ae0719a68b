"""Page: docs/performance.md, whose tables are made from the stored results and from nothing else.

in        `python -m simulations.bench.page`: results/*.json and the page as it is
out       the page with the text between its markers made anew
relies on the markers; what people wrote around them stays
"""

import re
from collections.abc import Mapping
from pathlib import Path

from shared.errors import RunError
from simulations.bench.benchmarks import BENCHMARKS
from simulations.bench.results import BenchResult, read_results
from simulations.bench.table import render

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
NOTHING = "Not measured yet."


def with_tables(text: str, *, results: Mapping[str, BenchResult]) -> str:
    """The page with every marked part made from its benchmark's result.

    Raises:
        RunError: the page marks a benchmark that there is not, or leaves one out.
    """
    pattern = re.compile(r"(<!-- results of (\w+) -->\n)(.*?)(<!-- end of \2 -->)", flags=re.DOTALL)
    marked = [found[2] for found in pattern.finditer(text)]
    if sorted(marked) != sorted(BENCHMARKS):
        raise RunError(f"the page marks {sorted(marked)}; allowed: each of {sorted(BENCHMARKS)} once")

    def made(found: re.Match[str]) -> str:
        result = results.get(found[2])
        lines = render(result) if result else [NOTHING]
        return found[1] + "\n".join(lines) + "\n" + found[4]

    return pattern.sub(made, text)


def main() -> None:
    """Write the page."""
    text = with_tables(PAGE.read_text(encoding="utf-8"), results=read_results(tuple(BENCHMARKS)))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
