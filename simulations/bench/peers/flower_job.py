"""Flower 1.41: its simulation by Ray on two cores, message API; private by its server-side fixed clipping."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch  # after the settings that Flower and Ray read when they are imported
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from flwr.simulation import run_simulation
from torch import Tensor

from simulations.bench.clock import Clock
from simulations.bench.peers.job import (
    CLIENTS,
    CLIP_NORM,
    LEARNING_RATE,
    NOISE_MULTIPLIER,
    RECORDS,
    accuracy,
    asked,
    data,
    make_model,
    train_one,
)

client = ClientApp()
_kept: dict[str, tuple[Tensor, Tensor]] = {}


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch at one client; a worker keeps the data from round to round."""
    torch.set_num_threads(1)
    if not _kept:
        _kept["data"] = data()
    pictures, labels = _kept["data"]
    number = int(context.node_config["partition-id"])
    weights = message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    # told by their names, as the worker does not know the options of the run
    model = make_model("cnn" if "first.weight" in weights else "mlp")
    model.load_state_dict(weights)
    train_one(model, pictures[number], labels[number], optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": RECORDS})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def main() -> None:
    """Train and tell."""
    job = asked()
    server, model, clock = ServerApp(), make_model(job.model), Clock()

    def mark(round_number: int, arrays: ArrayRecord) -> None:
        del round_number, arrays
        clock.mark()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        del context
        strategy: Strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=CLIENTS,
            min_evaluate_nodes=0,
            min_available_nodes=CLIENTS,
        )
        if job.private:
            strategy = DifferentialPrivacyServerSideFixedClipping(
                strategy, noise_multiplier=NOISE_MULTIPLIER, clipping_norm=CLIP_NORM, num_sampled_clients=CLIENTS
            )
        result = strategy.start(
            grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=job.rounds, evaluate_fn=mark
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
    clock.tell(accuracy=accuracy(model))


if __name__ == "__main__":
    main()
