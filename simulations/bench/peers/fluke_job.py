"""fluke-fl 0.8.1: clients one after another in one process. Of torchvision, which it imports, a mock will do."""

import sys
import types
from unittest.mock import MagicMock

for _name in (
    "torchvision",
    "torchvision.datasets",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.models",
    "clearml",
    "wandb",
):
    _place = types.SimpleNamespace(name=_name, origin=None, submodule_search_locations=[])
    sys.modules.setdefault(_name, MagicMock(__spec__=_place))

from fluke import DDict, FlukeENV  # noqa: E402  # after the mocks
from fluke.algorithms.fedavg import FedAVG  # noqa: E402
from fluke.data import FastDataLoader  # noqa: E402
from fluke.evaluation import ClassificationEval  # noqa: E402

from simulations.bench.clock import Clock  # noqa: E402
from simulations.bench.peers.job import (  # noqa: E402
    BATCH,
    CLIENTS,
    LABELS,
    LEARNING_RATE,
    accuracy,
    asked,
    data,
    make_model,
)


class Split:
    """Each client's records, as fluke asks for them."""

    def __init__(self) -> None:
        self.pictures, self.labels = data()

    def assign(self, num: int, batch_size: int = BATCH) -> tuple[tuple[list[FastDataLoader], list[None]], None]:
        """Loaders of the clients' training records; there are no others."""
        loaders = [
            FastDataLoader(
                self.pictures[client], self.labels[client], num_labels=LABELS, batch_size=batch_size, shuffle=True
            )
            for client in range(num)
        ]
        return (loaders, [None] * num), None


def main() -> None:
    """Train and tell."""
    job = asked()
    clock = Clock()
    env = FlukeENV()
    env.set_seed(0)
    env.set_inmemory(True)
    env.set_device("cpu")
    env.set_evaluator(ClassificationEval(eval_every=10**6, n_classes=LABELS))
    env.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)

    class Marked(FedAVG):  # type: ignore[misc]  # fluke is not installed where types are checked
        """Marks the end of every round."""

        def notify(self, event: str, **more: object) -> object:
            """As ever."""
            if event == "end_round":
                clock.mark()
            return super().notify(event, **more)

    settings = DDict(
        client=DDict(
            batch_size=BATCH,
            local_epochs=1,
            loss="CrossEntropyLoss",
            persistency=True,
            optimizer=DDict(name="SGD", lr=LEARNING_RATE),
            scheduler=DDict(name="StepLR", gamma=1, step_size=1),
        ),
        server=DDict(weighted=True),
        model=make_model(job.model),
    )
    algorithm = Marked(CLIENTS, Split(), settings)
    clock.mark()
    algorithm.run(n_rounds=job.rounds, eligible_perc=1.0, finalize=False)
    clock.tell(accuracy=accuracy(algorithm.server.model))


if __name__ == "__main__":
    main()
