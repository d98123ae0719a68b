"""Metrics port: /metrics for Prometheus and /health for whoever asks whether a process is well; on loopback.

in        a registry of metrics, and what must be so for the process to be well
out       http://127.0.0.1:PORT/metrics and /health; 503 with the check that failed where one did
relies on prometheus_client for the format; whoever fills the registry answers for what is shown
"""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from shared.errors import ConfigError

Checks = Callable[[], Mapping[str, bool]]
"""what must be so for a process to be well -> whether it is"""
_HOST = "127.0.0.1"


class MetricsPort:
    """Answers in a thread of its own until it is closed."""

    def __init__(self, port: int, *, registry: CollectorRegistry, checks: Checks, setting: str) -> None:
        """Listens.

        Args:
            port: 0 takes a free one.
            setting: what the port is called in the settings, for the error.

        Raises:
            ConfigError: the port is taken.
        """
        handler = type("Handler", (_Handler,), {"registry": registry, "checks": staticmethod(checks)})
        try:
            self._server = ThreadingHTTPServer((_HOST, port), handler)
        except OSError as error:
            raise ConfigError(
                f"{setting}: {_HOST}:{port} cannot be listened on: {error.strerror}; name another, or none"
            ) from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="motet-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    checks: Checks
    timeout = 5.0

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._reply(200, generate_latest(self.registry), kind=CONTENT_TYPE_LATEST)
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
