"""Actor pool: Flower's, but for workers that are lost: what one was at fails, and no other message is given to it.

in        messages for the sites, from Flower's simulation
out       the site's answer, or Ray's error where the machine or process that was at it is gone
relies on names inside flwr 1.41, listed in `_REPLACED`. test_what_is_replaced_in_flower_is_there

Flower 1.41 puts a worker back to the free ones after an error of any kind. One whose process is gone fails each message
at once, is free again first, and so eats the rest of every round. It also runs no more messages at once than the
starting machine's cores and four, at most 32, however many cores the cluster has.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any  # Ray and what Flower hands through it are untyped

import ray
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, pool_size_from_resources

MOST_AT_ONCE = 4096
NO_WORKER_FOR_S = 60.0
"""so long a message waits where every worker is lost; its site has then failed in this round"""
_POLL_S = 0.5


class MendedActorPool(BasicActorPool):
    """Gives a message only to a worker that lives, waits for one if need be, and replaces lost ones where cores are."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._changed = threading.Condition()
        self._starting: dict[Any, Any] = {}

    def submit(self, actor_fn: Any, job: Any) -> Any:
        """Put a message to a free worker; there are as many callers as there were workers at first.

        Raises:
            RuntimeError: no worker has been alive for a while.
        """
        with self._changed:
            deadline = time.monotonic() + NO_WORKER_FOR_S
            while not self.pool:
                self._take_in_started()
                if self.num_actors:  # each is at some message, and free after it
                    deadline = time.monotonic() + NO_WORKER_FOR_S
                elif time.monotonic() > deadline:
                    raise RuntimeError(f"no worker of the Ray cluster has been alive for {NO_WORKER_FOR_S:.0f} s")
                self._changed.wait(_POLL_S)
            return super().submit(actor_fn, job)

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> tuple[Any, Any]:
        """The answer to a message; a worker that is lost is not free again."""
        try:
            _, message, context = ray.get(future)
        except ray.exceptions.RayTaskError:
            raise  # the app's own error, in a worker that lives: Flower's backend gives that back
        except ray.exceptions.RayError:
            self._give_up(future)
            raise
        self.add_actor_back_to_pool(future)
        return message, context

    def add_actor_back_to_pool(self, future: Any) -> None:
        """Free the worker of a message, unless it was given up."""
        with self._changed:
            if future in self._future_to_actor:
                super().add_actor_back_to_pool(future)
                self._changed.notify()

    def _give_up(self, future: Any) -> None:
        with self._changed:
            lost: Any = self._future_to_actor.pop(future)
            self.num_actors -= 1
            with contextlib.suppress(Exception):  # of one that only cannot be reached: its cores are needed
                ray.kill(lost)
            with contextlib.suppress(ValueError):  # Flower's way to say that there is no room at all
                if pool_size_from_resources(self.client_resources) > self.num_actors + len(self._starting):
                    started: Any = self.create_actor_fn()  # type: ignore[no-untyped-call]
                    self._starting[started.__ray_ready__.remote()] = started
            self._changed.notify_all()

    def _take_in_started(self) -> None:
        """Replacements are free only once they run: one that waits for cores would hold a message until they are."""
        ready, _ = (
            ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0) if self._starting else ((), ())
        )
        for each in ready:
            actor = self._starting.pop(each)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(each)
                self.pool.append(actor)
                self.num_actors += 1


_REPLACED = (
    (raybackend, "BasicActorPool", MendedActorPool),
    (vce_api, "ThreadPoolExecutor", functools.partial(ThreadPoolExecutor, max_workers=MOST_AT_ONCE)),
)


@contextlib.contextmanager
def mended_flower() -> Iterator[None]:
    """Flower's simulation with this pool and without its bound on messages at once; as it was afterwards."""
    before = [(module, name, getattr(module, name)) for module, name, _ in _REPLACED]
    for module, name, mended in _REPLACED:
        setattr(module, name, mended)
    try:
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)
