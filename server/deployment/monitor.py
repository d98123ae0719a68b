"""Monitor: how the server fares, for Prometheus and for whoever asks whether it is well; on loopback.

in        the states of the supervised programs, the enrolled keys and whether Flower knows them, the run folders
out       http://127.0.0.1:PORT/metrics and /health
relies on prometheus_client for the format; shows nothing of what sites sent but how many were used and why not
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from server.deployment.certificates import expires
from server.deployment.latest import latest_round
from server.deployment.settings import Deployment
from server.enrolment import enrolments
from shared.metrics_port import MetricsPort
from shared.supervise import Supervisor
from shared.version import VERSION


def open_monitor(deployment: Deployment, *, supervisor: Supervisor, in_step: Callable[[], bool]) -> MetricsPort:
    """The port of a deployment's metrics and health, until it is closed.

    Args:
        in_step: whether Flower knows the sites' keys as they are; without that a site that was let in cannot connect.

    Raises:
        ConfigError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(deployment, supervisor, in_step=in_step))
    return MetricsPort(
        deployment.settings.monitor_port or 0,
        registry=registry,
        checks=lambda: {
            **{state.name: state.pid is not None for state in supervisor.states()},
            "keys_in_step": in_step(),
        },
        setting="monitor_port",
    )


class _Collector(Collector):
    """All of it is read when Prometheus asks, so that nothing can be out of date."""

    def __init__(self, deployment: Deployment, supervisor: Supervisor, *, in_step: Callable[[], bool]) -> None:
        self._deployment, self._supervisor, self._in_step = deployment, supervisor, in_step

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
        yield GaugeMetricFamily(
            "motet_server_keys_in_step", "1 while Flower knows the enrolled keys as they are", float(self._in_step())
        )
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
