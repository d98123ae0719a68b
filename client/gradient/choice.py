"""Choice: which engine computes the per-sample gradients of a model.

in        TrainingSettings.gradient_engine, a model
out       a GradientEngine
relies on all engines agreeing (test_engines_agree); the choice moves time and memory, never the numbers
"""

from typing import Literal

from torch import nn

from client.gradient.engine import GradientEngine
from client.gradient.functional import FunctionalEngine
from client.gradient.reference import ReferenceEngine

EngineName = Literal["auto", "reference", "hooks", "functional"]


def choose_engine(name: EngineName, model: nn.Module, *, microbatch_size: int = 64) -> GradientEngine:
    """The named engine; "auto" decides by the model's layers."""
    if name == "reference":
        return ReferenceEngine()
    if name == "hooks":
        from client.gradient.hooks import HooksEngine

        return HooksEngine()
    return FunctionalEngine(microbatch_size=microbatch_size)
