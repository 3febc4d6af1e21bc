"""`GET /metrics`: the director's numbers for Prometheus. Labels are states and never names, so that they are few."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from openfl_audio.protocol.page import FederationTotals

PREFIX = "openfl_audio"


class _Totals(Collector):
    def __init__(self, totals: FederationTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        totals = self._totals
        yield _labelled(GaugeMetricFamily, "envoys", "Envoys that are registered.", "state", totals.envoys)
        yield _labelled(GaugeMetricFamily, "experiments", "Experiments on the director.", "status", totals.experiments)
        yield GaugeMetricFamily(f"{PREFIX}_experiments_waiting", "Experiments that wait.", totals.waiting)
        yield CounterMetricFamily(f"{PREFIX}_rounds", "Rounds that were closed.", totals.rounds)
        yield CounterMetricFamily(f"{PREFIX}_round_seconds", "Seconds that these were open.", totals.seconds)
        yield _labelled(CounterMetricFamily, "updates", "Updates of closed rounds.", "result", totals.updates)
        directions = {"received": totals.bytes_down, "sent": totals.bytes_up}
        yield _labelled(
            CounterMetricFamily, "transferred_bytes", "Bytes that envoys transferred.", "direction", directions
        )
        if totals.certificate_expires is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}_first_certificate_expiry_timestamp_seconds",
                "When the first of the envoys' certificates expires.",
                totals.certificate_expires,
            )


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    description: str,
    label: str,
    values: dict[str, int],
) -> Metric:
    family = kind(f"{PREFIX}_{name}", description, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def exposition(totals: FederationTotals, director_pid: int) -> bytes:
    """Return the numbers in Prometheus' text format, and those of the director's process beside them."""
    registry = CollectorRegistry()
    registry.register(_Totals(totals))
    ProcessCollector(namespace=f"{PREFIX}_director", pid=lambda: director_pid, registry=registry)
    return generate_latest(registry)
