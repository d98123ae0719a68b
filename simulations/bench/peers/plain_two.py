"""Plain loop in two processes that live all along; weights and sums lie in shared memory, nothing is pickled."""

from multiprocessing.synchronize import Barrier

import torch
import torch.multiprocessing as processes
from torch import Tensor

from simulations.bench.clock import Clock
from simulations.bench.peers.job import CLIENTS, Asked, Flat, accuracy, asked, data, noised

WORKERS = 2


def work(number: int, job: Asked, weights: Tensor, sums: Tensor, begin: Barrier, end: Barrier) -> None:
    """Every other client of each round, summed into a row of `sums`."""
    torch.set_num_threads(1)
    torch.manual_seed(100 + number)
    pictures, labels = data()
    flat = Flat(job.model)
    for _ in range(job.rounds):
        begin.wait()
        sums[number].zero_()
        for client in range(number, CLIENTS, WORKERS):
            sums[number] += flat.update(weights, pictures[client], labels[client], private=job.private)
        end.wait()


def main() -> None:
    """Train and tell."""
    import torch._dynamo  # the first step of an optimizer would import it, for a second in every worker

    job = asked()
    flat = Flat(job.model)
    weights = flat.first_weights().share_memory_()  # type: ignore[no-untyped-call]
    sums = torch.zeros(WORKERS, weights.numel()).share_memory_()  # type: ignore[no-untyped-call]
    context = processes.get_context("fork")
    begin, end = context.Barrier(WORKERS + 1), context.Barrier(WORKERS + 1)
    for number in range(WORKERS):
        context.Process(target=work, args=(number, job, weights, sums, begin, end), daemon=True).start()
    clock = Clock()
    clock.mark()
    for _ in range(job.rounds):
        begin.wait()
        end.wait()
        weights += noised(sums.sum(0), private=job.private) / CLIENTS
        clock.mark()
    flat.load(weights)
    clock.tell(accuracy=accuracy(flat.model))


if __name__ == "__main__":
    main()
