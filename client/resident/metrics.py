"""Metrics: how the agent fares, in the numbers that Prometheus reads at agent.metrics_port.

in        each answered request, as the journal has it
out       a registry of metrics
relies on prometheus_client; shared/metrics_port.py shows them on loopback

Any user of the machine can ask, the one that runs the delivered app too. So nothing is shown that this one does not
know or see: no number that comes from records, nor the memory of the process, whose prepared rows can be counted by it;
and of the budget only the total that replies tell anyway.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class Metrics:
    """Counts of requests by kind and outcome, and what the agent holds."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry()
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
