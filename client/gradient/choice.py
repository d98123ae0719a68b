"""Choice: which engine computes the per-sample gradients of a model.

in        TrainingSettings.gradient_engine, a model
out       a GradientEngine
relies on all engines agreeing (tests/client/test_gradient.py); the choice moves time and memory, never the numbers
"""

from typing import Literal

from torch import nn

from client.gradient.engine import GradientEngine
from client.gradient.functional import FunctionalEngine
from client.gradient.reference import ReferenceEngine

EngineName = Literal["auto", "reference", "hooks", "functional"]


def choose_engine(name: EngineName, model: nn.Module, *, microbatch_size: int = 64) -> GradientEngine:
    """The named engine; "auto" is "functional" unless the model holds Opacus' own recurrent layers.

    Args:
        microbatch_size: most rows whose gradients are held at once; fewer of a large model.
    """
    if name == "reference":
        return ReferenceEngine()
    if name == "hooks" or (name == "auto" and _has_opacus_recurrence(model)):
        from client.gradient.hooks import HooksEngine

        return HooksEngine(microbatch_size=microbatch_size)
    # Measured on one x86 core, batches of 16 and 64, every encoder of the registry and heads of 3,000 to 800,000
    # weights: as fast as hooks within noise (0.6 to 1.4 times) on most, 2.4 times on the text transformer and up to
    # 7 times on heads; with bounded memory; and weights used from outside their layer are no trap for it.
    return FunctionalEngine(microbatch_size=microbatch_size)


def _has_opacus_recurrence(model: nn.Module) -> bool:
    """DPLSTM and its like: 29 ms a step by hooks against 41 by torch.func at batch 16, 49 against 61 at 64."""
    return any(type(module).__module__.startswith("opacus.layers.dp_rnn") for module in model.modules())
