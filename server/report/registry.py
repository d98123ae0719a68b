"""Registry: a run as an entry of the Differential Privacy Deployments Registry.

in        a RunRecord, as levels
out       RegistryEntry, in report.json and privacy.json; None where nothing was protected
relies on the operator to fill in what no program knows, before it is published: those fields say so

Source: the hierarchical schema of Nanayakkara, Ghazi and Vadhan 2025, arXiv:2509.13509, in the machine-readable form
that the registry keeps: github.com/opendp/deployments-registry-data, schemas/deployments-schema.yaml, commit
c1d3d30939608c9a448d6bec5bdcbd35d5facfea. Names, nesting, required fields, enumerations and tiers are that file's.
Not verified: later commits, whose entries rename some fields (`dp_variant` for `dp_flavor`, `..._details` for
`..._description`, curators with a type); and the paper's own table, which was not at hand.
"""

from typing import Literal

from pydantic import Field

from server.records import RunRecord
from server.report.aim import answer_words, short_aim
from server.report.exactly import disagreement_text, neighbours_name
from server.report.levels import Level, is_protected, levels
from server.report.numbers import delta_text, epsilon_text, listed
from server.report.privacy_words import PrivacyWords, read_privacy_words
from server.report.promise import bound_of, seen_by_server
from server.report.trust import not_protected
from server.report.words import Words, read_words
from shared.settings import Settings

UNKNOWN = "Not known to this program: to be filled in by the operator."


class Basic(Settings):
    """Tier 1: what was published, by whom, what for."""

    name: str = Field(description="of the data product")
    data_curators: tuple[str, ...] = Field(min_length=1, description="who publishes it; here, the sites of the run")
    intended_use: str
    data_product_type: Literal[
        "Summary statistics",
        "Machine learning model",
        "Dataset",
        "Synthetic data",
        "Interactive API",
        "SQL queries",
    ]
    data_product_region: str = Field(description="what the data describes, or whose laws apply")
    description: str
    publication_date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$", description="here, the day on which the run began")
    data_product_sector: Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"] | None = (
        Field(default=None, description="left out: a program cannot know it")
    )


class DpFlavor(Settings):
    """Tiers 2 and 3: which kind of differential privacy, of which data."""

    name: Literal["Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"]
    data_domain: str
    unprotected_quantities: str


class PrivacyParameters(Settings):
    """How much."""

    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)


class PrivacyLoss(Settings):
    """Tiers 2 and 3: whose protection, and how strong. Where two units are protected, the sites' own comes first."""

    privacy_unit: str
    privacy_unit_description: str
    privacy_parameters: PrivacyParameters
    privacy_parameters_description: str


class DeploymentModel(Settings):
    """Tiers 2 and 3: who trusts whom, and how often something is released."""

    model_name: Literal["Local", "Central", "Shuffle", "Federated", "Varies"]
    model_name_description: str
    actors: str
    release_type: Literal["One release", "Many releases"]
    release_type_description: str
    data_source_type: Literal["Static", "Dynamic"]
    data_source_type_description: str
    access_type: Literal["Interactive", "Non-interactive"]
    access_type_description: str


class Accounting(Settings):
    """Tier 3: how losses add up."""

    post_processing: str
    composition: str


class Implementation(Settings):
    """Tier 3: how it is done, and why so."""

    preprocessing_and_hyperparameter_tuning: str
    mechanisms: str
    justification: str


class Administrative(Settings):
    """About the entry itself."""

    sources: str
    notes: str
    registry_authors: tuple[str, ...] = Field(min_length=1, description="who filled in the entry")


class Deployment(Settings):
    """A deployment of differential privacy, in the registry's groups."""

    basic: Basic
    dp_flavor: DpFlavor
    privacy_loss: PrivacyLoss
    deployment_model: DeploymentModel
    accounting: Accounting
    implementation: Implementation
    administrative: Administrative


class RegistryEntry(Settings):
    """A record of the registry."""

    url_slug: str = Field(pattern=r"^[a-z0-9-]+$")
    status: Literal["Draft"] = Field(default="Draft", description="it takes the operator to make more of it")
    tier: Literal[1, 2, 3] = Field(default=3, description="every field of tier 3 is there, if to be completed")
    deployment: Deployment


def registry_entry(record: RunRecord) -> RegistryEntry | None:
    """The entry of a run; None for one that protected nobody, whose numbers would mislead in a registry."""
    found = [level for level in levels(record) if bound_of(level) is not None]
    if not found or not is_protected(record):
        return None
    words, sentences = read_words(), read_privacy_words()
    slug = f"motet-{record.run.name.replace('_', '-')}-{record.started[:10]}"
    return RegistryEntry(
        url_slug="".join(each if each in "abcdefghijklmnopqrstuvwxyz0123456789-" else "-" for each in slug),
        deployment=Deployment(
            basic=_basic(record),
            dp_flavor=_flavor(record, sentences=sentences),
            privacy_loss=_loss(found, sentences=sentences),
            deployment_model=_model(record, found, sentences=sentences),
            accounting=_accounting(found, words=words, sentences=sentences),
            implementation=_implementation(record, found, sentences=sentences),
            administrative=_administrative(record),
        ),
    )


def _basic(record: RunRecord) -> Basic:
    return Basic(
        name=record.run.name,
        data_curators=record.sites,
        intended_use=UNKNOWN,
        data_product_type="Machine learning model",
        data_product_region=UNKNOWN,
        description=f"A model that learned to {short_aim(record.run.data)} from {listed(list(record.run.modalities))}, "
        f"trained by {len(record.sites)} sites together in {len(record.rounds)} rounds.",
        publication_date=record.started[:10],
    )


def _flavor(record: RunRecord, *, sentences: PrivacyWords) -> DpFlavor:
    title = f"“{record.card.title}”" if record.card else "the data folders of the sites"
    return DpFlavor(
        name="Approximate DP",
        data_domain=f"Any data folder of the form the run declares ({listed(list(record.run.modalities))}; "
        f"{answer_words(record.run.data)}); here: {title}.",
        unprotected_quantities=" ".join(not_protected(record, sentences=sentences)),
    )


def _loss(found: list[Level], *, sentences: PrivacyWords) -> PrivacyLoss:
    first = found[0]
    described = []
    for level in found:
        most = "at most " if level.epsilon is None else ""
        earlier = ", earlier runs included" if level.counts_earlier else ""
        said = f"epsilon {most}{epsilon_text(bound_of(level))} at delta {delta_text(level.delta)}"
        described.append(f"Per {level.unit}: {said}, over all rounds of the run{earlier}.")
    return PrivacyLoss(
        privacy_unit=f"{first.unit.capitalize()}-level",
        privacy_unit_description=" ".join(f"{sentences.exact[neighbours_name(level)]}." for level in found),
        privacy_parameters=PrivacyParameters(epsilon=bound_of(first) or 0.0, delta=first.delta),
        privacy_parameters_description=" ".join(described),
    )


def _model(record: RunRecord, found: list[Level], *, sentences: PrivacyWords) -> DeploymentModel:
    local = [level for level in found if not level.is_central]
    said = [sentences.exact["trust_site" if level.is_central else "trust_local"] for level in found]
    trusted = " ".join(f"{text}." for text in said).format(seen=seen_by_server(record))
    return DeploymentModel(
        model_name="Federated" if local else "Central",
        model_name_description="Each site adds noise before anything leaves it; records stay there."
        if local
        else "Records stay at the sites; the server, which is trusted, adds the noise to the sum of their updates.",
        actors=f"The sites' owners; whoever runs the server; whoever gets the model. Trusted: {trusted}",
        release_type="Many releases",
        release_type_description="Every round releases a model to the sites; all rounds are accounted together, and a "
        "cap over all runs, which is never reset, ends the releases about a data set.",
        data_source_type="Static",
        data_source_type_description="Each site's folder as it was during the run.",
        access_type="Non-interactive",
        access_type_description="Nobody queries the records; the run's settings are fixed before its first round.",
    )


def _accounting(found: list[Level], *, words: Words, sentences: PrivacyWords) -> Accounting:
    parts = []
    for level in found:
        low, high = level.steps or (0.0, 0.0)
        steps = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
        unit = "rounds" if level.is_central else "local steps"
        text = sentences.exact["composition_site" if level.is_central else "composition_local"]
        parts.append(text.format(steps=f"{steps} {unit}"))
        parts.append(disagreement_text(level, words=words, sentences=sentences))
    return Accounting(
        post_processing="Averaging, the server's optimizer, the choice of the round that is kept, and every score.",
        composition=" ".join(f"{part}." for part in parts),
    )


def _implementation(record: RunRecord, found: list[Level], *, sentences: PrivacyWords) -> Implementation:
    mechanisms = [sentences.exact[f"mechanism_{level.unit}"] for level in found]
    noises = sorted({sentences.exact[f"noise_{kind}"] for level in found for kind in level.noise})
    versions = listed([f"{name} {version}" for name, version in record.versions.items()])
    return Implementation(
        preprocessing_and_hyperparameter_tuning="Preprocessing works on each sample by itself, with public constants. "
        "Every run on a data set counts in its ledger, runs made to tune included; what was tuned outside: "
        + UNKNOWN.lower(),
        mechanisms=" ".join(f"{text}." for text in (*mechanisms, *noises))
        + f" Versions: {versions}. SHA-256 of the program: {record.code_digest or 'not recorded'}.",
        justification=UNKNOWN,
    )


def _administrative(record: RunRecord) -> Administrative:
    simulated = {
        "cohort": "A simulation on one machine. ",
        "local": "A simulation on one machine. ",
        "flower": "A simulation by Flower. ",
    }.get(record.engine, "")
    generated = "The data was made by a program. " if record.card is not None and record.card.generated else ""
    return Administrative(
        sources=f"report.json of the run with settings {record.run.digest}.",
        notes=f"{simulated}{generated}Written by a program from the record of a run; fields that say so are to be "
        "filled in by the operator before anything is submitted.",
        registry_authors=("motet report (generated)",),
    )
