"""Arithmetic: on which device, and how precisely, a cohort of simulated sites is computed.

in        what the person who simulates asked for
out       Arithmetic, read by cohort_training.py
relies on torch; noise is always made on the processor, and sums and weights are float32 whatever is asked
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from shared.errors import ConfigError

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Arithmetic:
    """Float32 on the processor, unless something else is asked for by name."""

    device: str = "cpu"
    """as torch names it: cpu, cuda, cuda:1"""
    precision: str = "float32"
    """tf32: products of float32 numbers are rounded to 10 bits, on cards that have it; bf16: the model's layers compute
    in bfloat16, while norms, clipped sums, noise and weights stay float32"""

    def __post_init__(self) -> None:
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = "unknown"
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"--device {self.device!r}; allowed: cpu, cuda, or cuda:NUMBER")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"--device {self.device!r}: torch finds no such card here; allowed: cpu")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        if self.precision == "tf32" and kind != "cuda":
            raise ConfigError("--precision tf32; allowed with --device cuda, whose cards have it")

    @property
    def place(self) -> torch.device:
        """The device as torch's own type."""
        return torch.device(self.device)

    def narrowed(self) -> AbstractContextManager[object]:
        """In the thread that enters it, a model's layers compute in bfloat16 where that was asked."""
        return torch.autocast(self.place.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """While it lasts a card's products are as precise as was asked, in all threads; nothing else is rounded."""
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        wanted = self.precision == "tf32"
        # PRIVACY: cuDNN rounds to TF32 unless told otherwise, and a norm is only as good as the product it comes from.
        # test_nothing_is_rounded_that_nobody_asked_to_round
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


PLAIN = Arithmetic()
