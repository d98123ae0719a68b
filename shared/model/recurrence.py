"""Recurrence: a long short-term memory over whole sequences, forwards and backwards in time by hand.

in        what drives the gates at each step [B, T, 4H], from the inputs alone, and the recurrent weights
out       the states, and a function through which autograd sends the mean state's gradient to the gates of all steps
relies on encoders/recurrent.py calling its recurrent Linear once on all states of the course: from that call's gradient
          every engine finds the Linear's as that of any layer with T positions
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

SITE_WEIGHTS = "site_weights"
"""where a Linear has what gives the weights [K, 4H, H] of K sites while their rows stand in one batch, a Kth for each;
who takes them has to call the Linear afterwards (encoders/recurrent.py does)"""


@dataclass(frozen=True)
class Course:
    """What a sequence went through; time comes first, and K sites of R rows each."""

    gates: Float[Tensor, "T K R G"]
    """enter, forget, leave (sigmoid) and new (tanh), H of each"""
    memories: Float[Tensor, "T_1 K R H"]
    """before the first step, then after each"""
    bent: Float[Tensor, "T K R H"]
    """tanh of the memories after each step"""
    states: Float[Tensor, "T_1 K R H"]
    """before the first step, then after each"""
    weights: Float[Tensor, "K G H"]

    @property
    def before(self) -> Float[Tensor, "B T H"]:
        """The states that each step started from."""
        return self.states[:-1].flatten(1, 2).transpose(0, 1)


def site_weights(recurrent: nn.Linear) -> Float[Tensor, "K G H"]:
    """Weights of every site whose rows stand in the batch; of one, where nobody said otherwise."""
    taken: Callable[[], Tensor] | None = recurrent.__dict__.get(SITE_WEIGHTS)
    return recurrent.weight.detach()[None] if taken is None else taken()


@torch.no_grad()
def run_through(driven: Float[Tensor, "B T G"], *, weights: Float[Tensor, "K G H"]) -> Course:
    """The states of each sequence, from zeros on."""
    sites, hidden, steps = len(weights), weights.shape[2], driven.shape[1]
    gates = driven.detach().transpose(0, 1).reshape(steps, sites, -1, 4 * hidden).clone()
    memories, states = gates.new_zeros(2, steps + 1, *gates.shape[1:3], hidden)
    bent, turned = torch.empty_like(states[1:]), weights.detach().transpose(1, 2)
    for step in range(steps):
        now = gates[step].baddbmm_(states[step], turned)
        now[..., : 3 * hidden].sigmoid_()
        now[..., 3 * hidden :].tanh_()
        enter, forget, leave, new = now.chunk(4, dim=2)
        memory = torch.mul(forget, memories[step], out=memories[step + 1]).addcmul_(enter, new)
        torch.mul(leave, torch.tanh(memory, out=bent[step]), out=states[step + 1])
    return Course(gates, memories, bent, states, weights.detach())


class MeanState(torch.autograd.Function):
    """The mean state of each sequence, as a function of what the gates of all steps are computed from.

    Source: back-propagation through time, Hochreiter and Schmidhuber 1997, without their truncation.
    """

    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx", driven: Tensor, again: Tensor, course: Course, shares: Tensor | None
    ) -> Tensor:
        """[B, H]; the gates' two summands [B, T, 4H] are only there to have a gradient: the course was run already.

        Args:
            ctx: autograd's own.
            driven: of the inputs.
            again: of the states.
            course: the steps.
            shares: [B, T], what each step counts for in the mean of its sequence; all the same, if None.
        """
        del driven, again
        ctx.course = course  # type: ignore[attr-defined]
        if shares is None:
            ctx.shares = None  # type: ignore[attr-defined]
            return course.states[1:].mean(dim=0).flatten(0, 1)
        each = shares.transpose(0, 1).reshape(*course.bent.shape[:3], 1)
        ctx.shares = each  # type: ignore[attr-defined]
        return (course.states[1:] * each).sum(dim=0).flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: "torch.autograd.function.FunctionCtx", gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradient of the gates' sums, [B, T, 4H], which is that of either summand."""
        course: Course = ctx.course  # type: ignore[attr-defined]
        shares: Tensor | None = ctx.shares  # type: ignore[attr-defined]
        steps, sites, rows, hidden = course.bent.shape
        enter, forget, leave, new = course.gates.chunk(4, dim=3)
        found = torch.empty_like(course.gates).view(steps, sites, rows, 4, hidden)
        # each gate's slope, but for the gradient of the memory or of the state that it is multiplied with
        torch.mul(new * enter, 1 - enter, out=found[..., 0, :])
        torch.mul(course.memories[:-1] * forget, 1 - forget, out=found[..., 1, :])
        torch.mul(course.bent * leave, 1 - leave, out=found[..., 2, :])
        torch.mul(enter, 1 - new * new, out=found[..., 3, :])
        kept = leave * (1 - course.bent * course.bent)
        of_mean = gradient.reshape(sites, rows, hidden)
        # a view where all steps count the same: nothing is written T times
        of_steps = (of_mean / steps).expand(steps, -1, -1, -1) if shares is None else of_mean * shares
        of_state, of_memory = of_steps[-1], torch.zeros_like(of_mean)
        for step in reversed(range(steps)):
            of_memory = of_memory.addcmul(of_state, kept[step])
            now = found[step]
            now[..., :2, :] *= of_memory[..., None, :]
            now[..., 2, :] *= of_state
            now[..., 3, :] *= of_memory
            if step:
                of_memory = of_memory * forget[step]
                of_state = torch.baddbmm(of_steps[step - 1], now.flatten(2), course.weights)
        of_sums = found.flatten(3).flatten(1, 2).transpose(0, 1)
        return of_sums, of_sums, None, None
