"""Monitor: how the server fares, for Prometheus and for whoever asks whether it is well; on loopback.

in        the states of the supervised programs, the enrolled keys, the run folders
out       http://127.0.0.1:PORT/metrics and /health
relies on prometheus_client for the format; shows nothing of what sites sent but how many were used and why not
"""

import json
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from server.deployment.certificates import expires
from server.deployment.latest import latest_round
from server.deployment.settings import Deployment
from server.enrolment import enrolments
from shared.errors import ConfigError
from shared.supervise import Supervisor
from shared.version import VERSION

_HOST = "127.0.0.1"


class Monitor:
    """Answers in a thread of its own until it is closed."""

    def __init__(self, deployment: Deployment, *, supervisor: Supervisor) -> None:
        """Listens.

        Raises:
            ConfigError: the port is taken.
        """
        registry = CollectorRegistry()
        registry.register(_Collector(deployment, supervisor))
        handler = type("Handler", (_Handler,), {"registry": registry, "supervisor": supervisor})
        port = deployment.settings.monitor_port or 0
        try:
            self._server = ThreadingHTTPServer((_HOST, port), handler)
        except OSError as error:
            raise ConfigError(f"monitor_port: {_HOST}:{port} cannot be listened on: {error.strerror}") from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="motet-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector(Collector):
    """All of it is read when Prometheus asks, so that nothing can be out of date."""

    def __init__(self, deployment: Deployment, supervisor: Supervisor) -> None:
        self._deployment, self._supervisor = deployment, supervisor

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        info = InfoMetricFamily("motet_server", "The server of a deployment")
        info.add_metric([], {"version": VERSION})
        yield info
        up = GaugeMetricFamily("motet_server_program_up", "1 while a program runs", labels=["program"])
        restarts = CounterMetricFamily("motet_server_program_restarts", "Times started again", labels=["program"])
        for state in self._supervisor.states():
            up.add_metric([state.name], float(state.pid is not None))
            restarts.add_metric([state.name], state.restarts)
        yield from (up, restarts)
        now, listed = datetime.now(UTC), enrolments(self._deployment.enrolled)
        keys = GaugeMetricFamily("motet_server_enrolled_sites", "Enrolled keys", labels=["state"])
        keys.add_metric(["valid"], sum(not each.has_expired(now) for each in listed))
        keys.add_metric(["expired"], sum(each.has_expired(now) for each in listed))
        yield keys
        ends = expires(self._deployment.tls.certificate)
        yield GaugeMetricFamily(
            "motet_server_certificate_seconds", "Until the server's certificate expires", (ends - now).total_seconds()
        )
        found = latest_round(self._deployment)
        if found is not None:
            yield GaugeMetricFamily("motet_server_last_round", "Last round of the latest run", found.round)
            sites = GaugeMetricFamily("motet_server_last_round_sites", "Sites by outcome", labels=["outcome"])
            for outcome, number in sorted(Counter(site.outcome for site in found.sites).items()):
                sites.add_metric([outcome], number)
            yield sites


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    supervisor: Supervisor
    timeout = 5.0

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._reply(200, generate_latest(self.registry), kind=CONTENT_TYPE_LATEST)
        elif self.path == "/health":
            found = {state.name: state.pid is not None for state in self.supervisor.states()}
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
