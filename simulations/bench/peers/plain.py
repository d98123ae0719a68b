"""Plain loop: the common job in one process and no framework; what any framework adds to is above this."""

import torch

from simulations.bench.clock import Clock
from simulations.bench.peers.job import CLIENTS, Flat, accuracy, asked, data, noised


def main() -> None:
    """Train and tell."""
    job = asked()
    pictures, labels = data()
    flat, clock = Flat(job.model), Clock()
    weights = flat.first_weights()
    clock.mark()
    for _ in range(job.rounds):
        total = torch.zeros_like(weights)
        for client in range(CLIENTS):
            total += flat.update(weights, pictures[client], labels[client], private=job.private)
        weights = weights + noised(total, private=job.private) / CLIENTS
        clock.mark()
    flat.load(weights)
    clock.tell(accuracy=accuracy(flat.model))


if __name__ == "__main__":
    main()
