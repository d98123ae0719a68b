"""A Ray cluster on loopback: nodes that `ray start` starts, each with an address of its own, ended by their ids.

in        nothing but a free address under 127.0.0.0/8 for each node
out       a cluster as its owner would have started it on several machines, with a token
relies on /proc to tell which node a process belongs to
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.machine import free_port, wait_for_port

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""not 127.0.0.1, in place of which Ray takes the machine's address in its network"""
OBJECT_STORE_BYTES = 80_000_000


@dataclass
class RayNode:
    """A `ray start --block`, leader of a session in which its daemon and all workers are."""

    host: str
    process: subprocess.Popen[bytes]
    log: Path

    def raylet(self) -> int:
        """The process that starts this node's workers."""
        (found,) = [int(process.name) for process in self._of_session() if _words(process)[0].endswith(b"/raylet")]
        return found

    def with_torch(self) -> list[int]:
        """Workers of this node that have answered for a site: only an answer loads torch.

        A worker's title overwrites what /proc shows of its environment, so that the run's variables tell nothing.
        """
        found, raylet = list[int](), self.raylet()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == raylet and b"libtorch" in (process / "maps").read_bytes():
                    found.append(int(process.name))
        return found

    def _of_session(self) -> Iterator[Path]:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(process.name)) == self.process.pid and _words(process):
                    yield process

    def end(self) -> None:
        """As its owner would; then whatever is left of its session by force."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=30)
        for process in list(self._of_session()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@dataclass
class RayCluster:
    """Its nodes, and what whoever uses it must have in the environment."""

    folder: Path
    port: int
    variables: dict[str, str]
    nodes: list[RayNode] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{HOSTS[0]}:{self.port}"

    def environment(self) -> dict[str, str]:
        return os.environ | self.variables

    def add(self, *, cores: int = 1, before: Sequence[str] = ()) -> RayNode:
        """Start one more node; the first is the head.

        Args:
            before: words of a command that runs `ray start` in its turn.
        """
        number = len(self.nodes)
        host, log = HOSTS[number], self.folder / f"{number}.log"
        head = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}", "--include-dashboard=false"]
        command = [
            *before, str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={host}", f"--num-cpus={cores}", f"--object-store-memory={OBJECT_STORE_BYTES}",
            # by themselves, all nodes of one machine would take the same ports
            "--min-worker-port=0", "--max-worker-port=0",
            *([*head, f"--ray-client-server-port={free_port()}"] if number == 0 else [f"--address={self.address}"]),
        ]  # fmt: skip
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=self.environment(), cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self.nodes.append(RayNode(host=host, process=process, log=log))
        if number == 0:
            wait_for_port(self.port, within_s=60, host=host)
        return self.nodes[-1]

    def look(self) -> dict[str, float]:
        """Address of every node that is up -> its free cores, as a program that joins the cluster sees it."""
        done = subprocess.run(
            [sys.executable, "-c", _LOOK, self.address], env=self.environment(), check=True, timeout=90,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return {host: float(cores) for host, cores in (line.split() for line in done.stdout.splitlines())}

    def wait_for(self, hosts: Sequence[str], *, free: float = 0.0, within_s: float = 90) -> None:
        """Until just these nodes are up, each with so many free cores at least."""
        deadline = time.monotonic() + within_s
        while sorted(found := self.look()) != sorted(hosts) or min(found.values()) < free:
            logs = "\n".join(node.log.read_text(errors="replace")[-500:] for node in self.nodes)
            assert time.monotonic() < deadline, f"{found} instead of {hosts}\n{logs}"
            time.sleep(1)


@contextlib.contextmanager
def ray_cluster(*, cores: Sequence[int] = (1, 1)) -> Iterator[RayCluster]:
    """A cluster of so many nodes; all of its processes are gone afterwards."""
    # a short path: Ray puts Unix sockets deep into it, and the kernel takes a hundred characters
    folder = Path(tempfile.mkdtemp(prefix="mray", dir="/tmp"))
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TMPDIR": str(folder),
    }
    cluster = RayCluster(folder=folder, port=free_port(), variables=variables)
    try:
        for each in cores:
            cluster.add(cores=each)
        cluster.wait_for(HOSTS[: len(cores)])
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            node.end()
        shutil.rmtree(folder, ignore_errors=True)


def _words(process: Path) -> list[bytes]:
    return (process / "cmdline").read_bytes().split(b"\0")


_LOOK = """
import sys, ray
from ray._private.state import available_resources_per_node
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
free = available_resources_per_node()
for node in ray.nodes():
    if node["Alive"]:
        print(node["NodeManagerAddress"], free.get(node["NodeID"], {}).get("CPU", 0))
ray.shutdown()
"""
