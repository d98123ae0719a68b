"""Page: the one HTML page of the service, with its script and style in it.

in        page.toml, and the style of the reports
out       HTML that loads nothing but GET /model and POST /predict, and the policy that keeps it so
relies on Jinja to escape every value
"""

from pathlib import Path
from typing import cast

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from server.about import About
from server.report.words import FOLDER as REPORT_FOLDER
from server.service.headers import policy_for
from shared.settings import read_toml
from shared.version import VERSION

_TEXTS = Path(__file__).with_name("page.toml")


def render_page(about: About) -> tuple[str, str]:
    """The page, and its Content-Security-Policy."""
    texts = cast("dict[str, str]", read_toml(_TEXTS))
    report = cast("dict[str, str]", read_toml(REPORT_FOLDER / "page.toml"))
    style, script = report["style"] + texts["style"], texts["script"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(texts["page"]).render(
        about=about,
        version=VERSION,
        style=Markup(style),  # noqa: S704  ours
        script=Markup(script),  # noqa: S704  ours
    )
    return page, policy_for(style=style, script=script)
