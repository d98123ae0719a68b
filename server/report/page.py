"""Page: Jinja's environment for both pages, and the privacy report as one of them.

in        a Document, or the parts of a run's page
out       one HTML text that loads nothing
relies on page.toml for the pages and their style, and on Jinja to escape every value
"""

from typing import cast

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from server.report.document import Document
from server.report.words import FOLDER
from shared.settings import read_toml


def render_page(document: Document) -> str:
    """The privacy report; the same document gives the same bytes."""
    return render_template("privacy", document=document)


def render_template(name: str, **values: object) -> str:
    """A template of page.toml with its style; every value but our own markup is escaped."""
    templates = cast("dict[str, str]", read_toml(FOLDER / "page.toml"))
    environment = Environment(
        loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # the style is ours, and a quote in it must stay a quote
    return environment.get_template(name).render(style=Markup(templates["style"]), **values)  # noqa: S704
