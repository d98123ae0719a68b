"""Preflight: every built-in part passes every check, in every unit and way of clipping; a run that fails is refused."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from client import preflight as package
from client.preflight import assert_sound, preflight
from client.preflight.chance import FALSE_ALARM, coins_are_plausible, scale_is_plausible
from client.private_training import train_round
from shared.config import PrivacySettings, RunConfig
from shared.errors import ModelError
from shared.model.encoders import encoder_registry
from shared.model.heads import head_registry
from shared.model.multimodal import MultimodalModel
from shared.model.registry import fusion_registry
from shared.preflight import PreflightCheck
from tests.shared.example_runs import OF_KIND, example_run, small

LOCAL_CHECKS = (
    "own-gradient",
    "bounded",
    "independent",
    "empty-batch",
    "absent-modality",
    "noise-scale",
    "noise-fresh",
    "poisson-sampling",
    "public-denominator",
    "composition",
    "allow-list",
)
PRIVACY: Mapping[str, object] = {
    "unit": "record",
    "trust": "nobody",
    "epsilon": 8.0,
    "delta": 1e-3,
    "clip_norm": 0.3,
}
TWO = {"photo": small("cnn"), "vector": small("linear")}


def private(run: RunConfig, **changes: object) -> RunConfig:
    """The run with a privacy of its own; `records_per_subject` goes to its training settings."""
    records = changes.pop("records_per_subject", 1)
    training = run.training.model_copy(update={"records_per_subject": records})
    privacy = PrivacySettings.model_validate({**PRIVACY, **changes})
    return RunConfig.model_validate({**run.model_dump(), "training": training.model_dump(), "privacy": privacy})


def failed(checks: tuple[PreflightCheck, ...]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    package.forget()
    yield
    package.forget()


@pytest.mark.parametrize(("modality", "name"), [(kind, name) for kind, names in OF_KIND.items() for name in names])
def test_every_encoder_passes(modality: str, name: str) -> None:
    checks = preflight(private(example_run({modality: small(name)})))

    assert failed(checks) == {}
    assert tuple(check.name for check in checks) == LOCAL_CHECKS


