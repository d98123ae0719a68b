"""BlazeFL 2.0.2: one client after another (--mode single), or two threads (--mode thread). It has no privacy.

Its pool of processes is left out: it starts anew in every round, which alone takes longer than the round.
"""

import torch
from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from blazefl.core import ModelSelector, PartitionedDataset
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from simulations.bench.clock import Clock
from simulations.bench.peers.job import BATCH, CLIENTS, LEARNING_RATE, accuracy, asked, data, make_model


class Selector(ModelSelector):  # type: ignore[misc]  # BlazeFL is not installed where types are checked
    """Makes the job's model by name."""

    def select_model(self, model_name: str) -> nn.Module:
        """A new one."""
        return make_model(model_name)


class Parts(PartitionedDataset):  # type: ignore[misc]
    """Each client's records."""

    def __init__(self) -> None:
        self.pictures, self.labels = data()

    def get_dataset(self, type_: str, cid: int | None) -> TensorDataset:
        """Of one client; without a number, what the server evaluates on."""
        del type_
        if cid is None:
            return TensorDataset(self.pictures.flatten(0, 1)[:100], self.labels.flatten()[:100])
        return TensorDataset(self.pictures[cid], self.labels[cid])

    def get_dataloader(
        self, type_: str, cid: int | None, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> DataLoader:  # type: ignore[type-arg]
        """Batches, of a client's records in a new order each time."""
        records = self.get_dataset(type_, cid)
        return DataLoader(records, batch_size=batch_size or len(records), shuffle=cid is not None, generator=generator)


def main() -> None:
    """Train and tell."""
    job = asked()
    parts, selector = Parts(), Selector()
    same = {"model_selector": selector, "model_name": job.model, "dataset": parts, "device": "cpu", "seed": 0}
    handler = FedAvgBaseServerHandler(
        global_round=job.rounds, num_clients=CLIENTS, sample_ratio=1.0, batch_size=BATCH, **same
    )
    local = {"num_clients": CLIENTS, "epochs": 1, "batch_size": BATCH, "lr": LEARNING_RATE, **same}
    if job.mode == "thread":
        trainer = FedAvgThreadPoolClientTrainer(num_parallels=2, **local)
    else:
        trainer = FedAvgBaseClientTrainer(**local)
    clock = Clock()
    clock.mark()
    while not handler.if_stop():
        clients, package = handler.sample_clients(), handler.downlink_package()
        trainer.local_process(package, clients)
        for update in trainer.uplink_package():
            handler.load(update)
        clock.mark()
    clock.tell(accuracy=accuracy(handler.model))


if __name__ == "__main__":
    main()
