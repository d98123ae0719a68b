"""pfl 0.6.0 (Granqvist et al. 2024, arXiv:2404.06430): simulated backend, in one process or, by torchrun, two."""

import os

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from torch import Tensor, nn

from simulations.bench.clock import Clock
from simulations.bench.peers.job import (
    BATCH,
    CLIENTS,
    CLIP_NORM,
    LEARNING_RATE,
    NOISE_MULTIPLIER,
    accuracy,
    asked,
    data,
    make_model,
)


class PflModel(nn.Module):
    """The job's model with the two methods that pfl calls."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = make_model(name)

    def loss(self, pictures: Tensor, labels: Tensor, is_eval: bool = False) -> Tensor:
        """Mean cross-entropy."""
        self.train(not is_eval)
        return nn.functional.cross_entropy(self.model(pictures), labels)

    @torch.no_grad()
    def metrics(self, pictures: Tensor, labels: Tensor, is_eval: bool = True) -> dict[str, Weighted]:
        """The loss, for pfl to sum."""
        self.train(not is_eval)
        total = nn.functional.cross_entropy(self.model(pictures), labels, reduction="sum")
        return {"loss": Weighted(float(total), len(labels))}


class Marks(TrainingProcessCallback):  # type: ignore[misc]  # pfl is not installed where types are checked
    """Marks the end of every round."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_central_iteration(
        self, aggregate_metrics: object, model: object, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Goes on."""
        del aggregate_metrics, model, central_iteration
        self.clock.mark()
        return False, Metrics()


def main() -> None:
    """Train and tell; of two processes, only the first tells."""
    job = asked()
    np.random.seed(0)  # pfl draws from numpy's own state
    pictures, labels = data()
    net = PflModel(job.model)
    model = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )
    users = FederatedDataset(
        lambda user: Dataset(raw_data=[pictures[user], labels[user]], user_id=str(user)),
        get_user_sampler("minimize_reuse", list(range(CLIENTS))),
    )
    after = [WeightByUser()]
    if job.private:
        after.append(CentrallyAppliedPrivacyMechanism(GaussianMechanism(CLIP_NORM, NOISE_MULTIPLIER)))
    several = "LOCAL_RANK" in os.environ
    # torchrun has started the processes, so they are its descendants
    clock = Clock(os.getppid() if several else None)
    clock.mark()
    FederatedAveraging().run(
        backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=after),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=CLIENTS,
            val_cohort_size=0,
        ),
        callbacks=[Marks(clock)],
        send_metrics_to_platform=False,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=LEARNING_RATE, local_num_epochs=1, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=100),
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        clock.tell(accuracy=accuracy(net.model))


if __name__ == "__main__":
    main()
