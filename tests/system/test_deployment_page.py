"""The deployment page says what the code reads; its commands are run by test_deployment.py."""

import re
import tomllib
from pathlib import Path

from client.limits import OwnerLimits
from client.node import template
from client.site import AgentSettings, OwnerPrivacy, SiteConfig, read_site
from shared.settings import Settings
from tests.system.machine import PAGE


def site_toml() -> str:
    (text,) = re.findall(r"^```toml\n(# What the owner .*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(text)


def test_the_pages_site_settings_name_every_field_and_explain_it() -> None:
    # those that only some sites need stand there as comments
    settings = [line for line in site_toml().splitlines() if re.match(r"(# )?\w+ =", line)]
    named = {line.removeprefix("# ").split(" =")[0] for line in settings}
    tables: dict[str, type[Settings]] = {"agent": AgentSettings, "limits": OwnerLimits, "privacy": OwnerPrivacy}
    assert named == {
        *SiteConfig.model_fields,
        *(field for table in tables.values() for field in table.model_fields),
    } - {*tables}
    assert set(tomllib.loads(site_toml())["privacy"]) == set(OwnerPrivacy.model_fields)
    settings = [line.removeprefix("# ") for line in settings]
    assert [line for line in settings if "#" not in line] == []


def test_the_pages_site_settings_are_what_motet_site_init_writes() -> None:
    assert site_toml() == template.site_toml(
        name="clinic-a", data="/srv/clinic-a/data", data_set="clinic-a: Moods", size=1000, subjects=300,
        modalities=["image", "text"], tasks=None, users=["motet-node"], epsilon=8.0, delta=1e-5, unit="record",
    )  # fmt: skip


def test_the_pages_site_settings_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "site.toml").write_text(site_toml().replace("/srv/clinic-a/data", "data"), encoding="utf-8")
    assert read_site(tmp_path / "site.toml").data == (tmp_path / "data").resolve()


def test_the_page_allows_nothing_that_is_off_by_default() -> None:
    privacy = tomllib.loads(site_toml())["privacy"]
    assert [name for name, field in OwnerPrivacy.model_fields.items() if field.default is False and privacy[name]] == []
