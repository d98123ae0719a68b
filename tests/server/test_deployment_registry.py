"""The entry for the deployments registry holds what the registry's schema asks, and nothing that it does not know."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.records import RunRecord
from server.report.html import REGISTRY_FIELD, read_record, read_report, write_report
from server.report.levels import levels
from server.report.promise import bound_of
from server.report.registry import UNKNOWN, RegistryEntry, registry_entry
from tests.server.made_records import audited, build_record

# group -> field -> tier, of opendp/deployments-registry-data, schemas/deployments-schema.yaml,
# commit c1d3d30939608c9a448d6bec5bdcbd35d5facfea, written down by hand; 0: the schema names no tier
SCHEMA: dict[str, dict[str, int]] = {
    "basic": {
        "name": 1, "data_curators": 1, "intended_use": 1, "data_product_type": 1, "data_product_region": 1,
        "description": 1, "publication_date": 1, "data_product_sector": 1,
    },
    "dp_flavor": {"name": 2, "data_domain": 3, "unprotected_quantities": 3},
    "privacy_loss": {
        "privacy_unit": 2, "privacy_unit_description": 3, "privacy_parameters": 2, "privacy_parameters_description": 3,
    },
    "deployment_model": {
        "model_name": 2, "model_name_description": 0, "actors": 3, "release_type": 2, "release_type_description": 0,
        "data_source_type": 2, "data_source_type_description": 3, "access_type": 2, "access_type_description": 3,
    },
    "accounting": {"post_processing": 3, "composition": 3},
    "implementation": {"preprocessing_and_hyperparameter_tuning": 3, "mechanisms": 3, "justification": 3},
    "administrative": {"sources": 1, "notes": 1, "registry_authors": 0},
}  # fmt: skip
OPTIONAL = {"data_product_sector"}
"""of tier 1, the one field that is not required and that no program can know"""
ENUMERATIONS = {
    ("basic", "data_product_type"): {
        "Summary statistics", "Machine learning model", "Dataset", "Synthetic data", "Interactive API", "SQL queries",
    },
    ("dp_flavor", "name"): {"Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"},
    ("deployment_model", "model_name"): {"Local", "Central", "Shuffle", "Federated", "Varies"},
    ("deployment_model", "release_type"): {"One release", "Many releases"},
    ("deployment_model", "data_source_type"): {"Static", "Dynamic"},
    ("deployment_model", "access_type"): {"Interactive", "Non-interactive"},
}  # fmt: skip
STATUS = {
    "Converted", "Draft", "Pending", "Changes Required", "Approved", "Approved (Update Requested)", "Approved (Pending)",
}  # fmt: skip
RUNS: dict[str, Callable[[], RunRecord]] = {
    "record": lambda: build_record(rounds=3),
    "subject": lambda: audited(build_record(rounds=3, protection="subject", statistics=True)),
    "site": lambda: build_record(rounds=3, protection="site"),
    "site, secret": lambda: build_record(rounds=3, protection="site", secret=True),
    "both, secret": lambda: build_record(rounds=3, protection="subject+site", secret=True),
    "rating": lambda: build_record(rounds=3, rating=True),
}


def faults(held: object) -> Iterator[str]:
    """Where an entry breaks the schema above."""
    if not isinstance(held, dict):
        yield "no object"
        return
    if set(held) != {"url_slug", "status", "tier", "deployment"}:
        yield f"top level: {sorted(held)}"
    if held.get("status") not in STATUS or held.get("tier") not in {1, 2, 3}:
        yield "status or tier"
    deployment = held.get("deployment", {})
    if set(deployment) != set(SCHEMA):
        yield f"groups: {sorted(deployment)}"
    for group, fields in SCHEMA.items():
        values = deployment.get(group, {})
        yield from (f"{group}.{name}: not in the schema" for name in set(values) - set(fields))
        wanted = {name for name, tier in fields.items() if tier <= held.get("tier", 3)} - OPTIONAL
        yield from (f"{group}.{name}: missing" for name in wanted - set(values))
        for name, value in values.items():
            yield from _value_faults(group, name, value)


def _value_faults(group: str, name: str, value: object) -> Iterator[str]:
    if (group, name) in ENUMERATIONS and value not in ENUMERATIONS[group, name]:
        yield f"{group}.{name}: {value}"
    if name in {"data_curators", "registry_authors"}:
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            yield f"{group}.{name}: a list of one text or more"
    elif name == "privacy_parameters":
        if not isinstance(value, dict) or not set(value) <= {"epsilon", "delta", "rho"}:
            yield f"{group}.{name}: {value}"
        elif not all(isinstance(each, int | float) for each in value.values()):
            yield f"{group}.{name}: numbers"
    elif not isinstance(value, str) or not value:
        yield f"{group}.{name}: a text"


def entry_of(record: RunRecord) -> dict[str, object]:
    entry = registry_entry(record)
    assert entry is not None
    return dict(json.loads(entry.model_dump_json(exclude_none=True)))


@pytest.mark.parametrize("kind", RUNS)
def test_the_entry_keeps_the_registrys_schema(kind: str) -> None:
    assert list(faults(entry_of(RUNS[kind]()))) == []


def test_the_schema_test_finds_what_is_wrong() -> None:
    held = entry_of(RUNS["record"]())
    deployment = held["deployment"]
    assert isinstance(deployment, dict)
    del deployment["privacy_loss"]["privacy_unit"]
    deployment["basic"]["author"] = "?"
    deployment["dp_flavor"]["name"] = "Strong DP"
    found = list(faults(held))
    assert found == [
        "basic.author: not in the schema", "dp_flavor.name: Strong DP", "privacy_loss.privacy_unit: missing",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_the_entry_has_the_numbers_of_the_report(kind: str) -> None:
    record = RUNS[kind]()
    entry, first = registry_entry(record), levels(record)[0]
    assert entry is not None
    loss = entry.deployment.privacy_loss
    assert (loss.privacy_parameters.epsilon, loss.privacy_parameters.delta) == (bound_of(first), first.delta)
    assert loss.privacy_unit == f"{first.unit.capitalize()}-level"
    for level in levels(record):
        assert f"Per {level.unit}: epsilon" in loss.privacy_parameters_description


def test_who_has_to_be_trusted_decides_the_model() -> None:
    models = {kind: registry_entry(make()) for kind, make in RUNS.items()}
    assert {kind: entry.deployment.deployment_model.model_name for kind, entry in models.items() if entry} == {
        "record": "Federated", "subject": "Federated", "site": "Central", "site, secret": "Central",
        "both, secret": "Federated", "rating": "Federated",
    }  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_what_no_program_knows_is_left_to_the_operator(kind: str) -> None:
    entry = registry_entry(RUNS[kind]())
    assert entry is not None
    assert entry.deployment.basic.intended_use == UNKNOWN
    assert entry.deployment.basic.data_product_region == UNKNOWN
    assert entry.deployment.implementation.justification == UNKNOWN
    assert entry.deployment.basic.data_product_sector is None
    assert entry.status == "Draft"
    assert "A simulation on one machine." in entry.deployment.administrative.notes


@pytest.mark.parametrize("options", [{"private": False}, {"reproducible_noise": True}])
def test_a_run_that_protected_nobody_has_no_entry(tmp_path: Path, options: dict[str, bool]) -> None:
    record = build_record(rounds=2, **options)  # type: ignore[arg-type]
    assert registry_entry(record) is None
    write_report(record, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())[REGISTRY_FIELD] is None
    assert read_record(tmp_path) == record


def test_report_json_carries_the_entry_and_is_read_back(tmp_path: Path) -> None:
    record = RUNS["both, secret"]()
    write_report(record, tmp_path)
    again, held, _ = read_report(tmp_path)
    assert again == record
    assert list(faults(held)) == []
    assert RegistryEntry.model_validate_json(json.dumps(held)) == registry_entry(record)
