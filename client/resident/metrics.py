"""Metrics: how the agent fares, for Prometheus and for whoever asks whether it is well; on loopback.

in        each answered request, as the journal has it
out       http://127.0.0.1:PORT/metrics and /health
relies on prometheus_client for the format

Any user of the machine can ask, the one that runs the delivered app too. So nothing is shown that this one does not
know or see: no number that comes from records, and of the budget only the total that replies tell anyway.
"""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from shared.errors import ConfigError

Checks = Callable[[], Mapping[str, bool]]
"""what must be so for the agent to be well -> whether it is"""
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_HOST = "127.0.0.1"


class Metrics:
    """Counts of requests by kind and outcome, and what the agent holds."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("motet_agent", "The site agent", registry=self.registry).info({"version": version})
        self._requests = Counter(
            "motet_agent_requests", "Requests answered", ["kind", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "motet_agent_request_seconds", "Time of a request", ["kind"], buckets=_SECONDS, registry=self.registry
        )
        self._busy = Gauge("motet_agent_busy", "1 while a round is trained or counts are made", registry=self.registry)
        self._again = Gauge("motet_agent_sent_again", "Answers sent again without a charge", registry=self.registry)
        self._kept = Gauge("motet_agent_kept_bytes", "Answers kept on the disk", registry=self.registry)
        self._epsilon = Gauge(
            "motet_agent_epsilon_spent", "Bound over all runs, as the last reply told it", registry=self.registry
        )

    def began(self) -> None:
        """A request is being answered."""
        self._busy.set(1)

    def answered(self, *, kind: str, outcome: str, seconds: float, epsilon: float | None) -> None:
        """A request has been."""
        self._busy.set(0)
        self._requests.labels(kind=kind, outcome=outcome).inc()
        self._seconds.labels(kind=kind).observe(seconds)
        if epsilon is not None:
            self._epsilon.set(epsilon)

    def holds(self, *, num_sent_again: int, kept_bytes: int) -> None:
        """What lies on the disk."""
        self._again.set(num_sent_again)
        self._kept.set(kept_bytes)


class MetricsServer:
    """Answers in a thread of its own until it is closed."""

    def __init__(self, port: int, *, metrics: Metrics, checks: Checks) -> None:
        """Listens.

        Raises:
            ConfigError: the port is taken.
        """
        handler = type("Handler", (_Handler,), {"metrics": metrics, "checks": staticmethod(checks)})
        try:
            self._server = ThreadingHTTPServer((_HOST, port), handler)
        except OSError as error:
            raise ConfigError(
                f"agent.metrics_port: {_HOST}:{port} cannot be listened on: {error.strerror}; name another, or none"
            ) from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="motet-agent-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    metrics: Metrics
    checks: Checks
    timeout = 5.0

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._reply(200, generate_latest(self.metrics.registry), kind=CONTENT_TYPE_LATEST)
        elif self.path == "/health":
            found = dict(self.checks())
            body = json.dumps({"well": all(found.values()), **found}).encode()
            self._reply(200 if all(found.values()) else 503, body, kind="application/json")
        else:
            self._reply(404, b"allowed: /metrics, /health\n", kind="text/plain")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: each scrape would be a line."""

    def _reply(self, status: int, body: bytes, *, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
