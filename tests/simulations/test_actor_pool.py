"""Workers that are lost, seen from the pool: Ray's answers are made up here, so that no Ray process is needed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from flwr.simulation.ray_transport.ray_actor import BasicActorPool

from simulations.engine import actor_pool
from simulations.engine.actor_pool import MendedActorPool, mended_flower


class Worker:
    """Answers a message, or is gone."""

    def __init__(self, name: str) -> None:
        self.name, self.is_gone, self.__ray_ready__ = name, False, self

    def remote(self) -> tuple["Worker", str]:
        return self, "ready"


class Cluster:
    """Workers as Ray shows them: a future is the worker and what it was given."""

    def __init__(self, names: str, *, room: int) -> None:
        self.workers, self.room, self.ready, self.killed = [Worker(each) for each in names], room, True, list[str]()
        self._next = iter(self.workers)

    def get(self, future: tuple[Worker, str]) -> tuple[str, str, str]:
        if future[0].is_gone:
            raise ray.exceptions.ActorDiedError
        if future[1] == "fails":
            raise ray.exceptions.RayTaskError("run", "", ValueError("of the app"))  # type: ignore[no-untyped-call]
        return "0", f"{future[1]} by {future[0].name}", "context"

    def wait(self, futures: list[object], **_: object) -> tuple[list[object], list[object]]:
        return (futures, []) if self.ready else ([], futures)

    def pool(self, *, workers: int) -> MendedActorPool:
        made = MendedActorPool(None, {"num_cpus": 1}, {})
        made.create_actor_fn = lambda: next(self._next)
        made.add_actors_to_pool(workers)
        return made


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster("abc", room=2)
    monkeypatch.setattr(ray, "get", made.get)
    monkeypatch.setattr(ray, "wait", made.wait)
    monkeypatch.setattr(ray, "kill", lambda worker: made.killed.append(worker.name))
    monkeypatch.setattr(actor_pool, "pool_size_from_resources", lambda _: made.room)
    monkeypatch.setattr("flwr.simulation.ray_transport.ray_actor.pool_size_from_resources", lambda _: made.room)
    return made


def ask(pool: BasicActorPool, message: str) -> str:
    """What Flower's backend does with a message."""
    future = None
    try:
        future = pool.submit(lambda worker, app, given, cid, state: (worker, given), (None, message, "0", None))  # type: ignore[arg-type]
        return str(pool.fetch_result_and_return_actor_to_pool(future)[0])
    except Exception:
        if future is not None:
            pool.add_actor_back_to_pool(future)
        raise


def test_a_lost_worker_fails_one_message_and_gets_no_other(cluster: Cluster) -> None:
    pool = cluster.pool(workers=2)
    cluster.workers[1].is_gone, cluster.room = True, 1

    with pytest.raises(ray.exceptions.ActorDiedError):
        ask(pool, "first")
    assert [ask(pool, "next") for _ in range(3)] == ["next by a"] * 3
    assert (pool.num_actors, cluster.killed) == (1, ["b"])


def test_flowers_own_pool_gives_the_lost_worker_everything(cluster: Cluster) -> None:
    """What is mended here; should this fail, Flower has mended it."""
    pool = BasicActorPool(None, {"num_cpus": 1}, {})  # type: ignore[arg-type]
    pool.create_actor_fn = iter(cluster.workers).__next__
    pool.add_actors_to_pool(2)
    cluster.workers[1].is_gone = True

    for _ in range(3):
        with pytest.raises(ray.exceptions.ActorDiedError):
            ask(pool, "any")


def test_where_there_is_room_a_lost_worker_is_replaced_once_the_new_one_runs(cluster: Cluster) -> None:
    pool = cluster.pool(workers=1)
    cluster.workers[0].is_gone, cluster.room, cluster.ready = True, 1, False
    with pytest.raises(ray.exceptions.ActorDiedError):
        ask(pool, "first")

    answers = list[str]()
    asking = threading.Thread(target=lambda: answers.append(ask(pool, "next")))
    asking.start()
    asking.join(timeout=0.2)
    assert asking.is_alive()
    cluster.ready = True
    asking.join(timeout=30)
    assert answers == ["next by b"]


def test_a_message_waits_for_a_worker_that_is_at_another(cluster: Cluster) -> None:
    pool = cluster.pool(workers=1)
    busy = pool.submit(lambda worker, *_: (worker, "long"), (None, None, "0", None))

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(ask, pool, "next")
        assert not waiting.done()
        pool.fetch_result_and_return_actor_to_pool(busy)
        assert waiting.result(timeout=30) == "next by a"


def test_without_any_worker_a_message_fails_in_bounded_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pool, "NO_WORKER_FOR_S", 0.1)
    pool = cluster.pool(workers=1)
    cluster.workers[0].is_gone, cluster.room = True, 0

    with pytest.raises(ray.exceptions.ActorDiedError):
        ask(pool, "first")
    with pytest.raises(RuntimeError, match="no worker of the Ray cluster"):
        ask(pool, "next")


def test_an_error_of_the_app_leaves_its_worker_free(cluster: Cluster) -> None:
    pool = cluster.pool(workers=1)

    with pytest.raises(ray.exceptions.RayTaskError):
        ask(pool, "fails")
    assert ask(pool, "next") == "next by a"


def test_what_is_replaced_in_flower_is_there() -> None:
    """Names inside flwr 1.41; another release may have others, and then this engine is to be looked at again."""
    names = [(module, name) for module, name, _ in actor_pool._REPLACED]
    before = [getattr(module, name) for module, name in names]
    assert before == [BasicActorPool, ThreadPoolExecutor]

    with mended_flower():
        pool, threads = (getattr(module, name) for module, name in names)
        assert pool is MendedActorPool
        with threads() as started:
            assert started._max_workers == actor_pool.MOST_AT_ONCE

    assert [getattr(module, name) for module, name in names] == before
