"""The chain's metrics on Triton's own /metrics page.

To set a metric is a call to the server's process that holds Python's lock (the GIL) for 35 µs and more. So counts are
added up here, and sent by one thread that lets requests run between two calls. For the same reason latency is a summary
that is kept here, and not a histogram of dozens of metrics.

Triton's own latency metrics don't fit a chain: they end when `execute` returns, before the answer is known.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from threading import Lock
from typing import Any

import numpy as np

FAMILIES = {
    "gati_requests_total": ("COUNTER", "Requests (rows) answered, by the segment after which they left the chain"),
    "gati_audits_total": ("COUNTER", "Hits that were also run to the end, and whether the backbone agreed"),
    "gati_held_total": (
        "COUNTER",
        "Requests (rows) that the backbone answered in place of heads, while audits were in doubt about these",
    ),
    "gati_bypassed_total": (
        "COUNTER",
        "Requests (rows) that went past the heads, while these took more time than they saved",
    ),
    "gati_release": ("GAUGE", "The release that is live, 0 for none"),
    "gati_releases_refused_total": ("COUNTER", "Releases that were found and refused"),
    "gati_head_failures_total": ("COUNTER", "Lookups that failed, and counted as misses"),
    "gati_disagreement": ("GAUGE", "Bounds on the share of the live release's answers that differ, valid at all times"),
    "gati_breaker_open": ("GAUGE", "1 while heads are closed because audits contradict the certificate"),
    "gati_exit_closed": ("GAUGE", "1 while this exit's head is closed because audits contradict the certificate"),
    "gati_samples_dropped_total": ("COUNTER", "Served samples that the recorder could not keep"),
    "gati_segment_seconds_sum": (
        "COUNTER",
        "Time of runs, by the last segment that ran, seconds; joined: of several stages with the lookups between them",
    ),
    "gati_segment_seconds_count": (
        "COUNTER",
        "Runs, by the last segment that ran; joined: of several stages with the lookups between them",
    ),
    "gati_request_seconds": ("GAUGE", "Time from arrival to answer of the last requests, seconds, by quantile"),
    "gati_request_seconds_sum": ("COUNTER", "Time from arrival to answer, seconds"),
    "gati_request_seconds_count": ("COUNTER", "Requests answered"),
}

QUANTILES = (0.5, 0.9, 0.95, 0.99)
WINDOW = 2000
"""How many of the last values a summary's quantiles are taken from."""
PAUSE_SECONDS = 0.0005
"""Between two calls to the server, so that requests get Python's lock."""

Key = tuple[str, tuple[tuple[str, str], ...]]


class Metrics:
    """Collects counts and values from any thread, under `_lock`, and sends them to Triton when flushed.

    Args:
        pb_utils: Triton's `triton_python_backend_utils`.
        model: The chain's name, a label of every metric.
    """

    def __init__(self, pb_utils: Any, model: str) -> None:
        kinds = pb_utils.MetricFamily
        # A family lives only as long as its object: both are kept.
        self._families = {
            name: kinds(name=name, description=text, kind=getattr(kinds, kind))
            for name, (kind, text) in FAMILIES.items()
        }
        self._model = model
        self._metrics: dict[Key, Any] = {}
        self._pending: defaultdict[Key, float] = defaultdict(float)
        self._gauges: dict[Key, float] = {}
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._observed: set[str] = set()
        self._lock = Lock()

    def add(self, name: str, amount: float = 1, **labels: object) -> None:
        """Adds to a counter."""
        key = _key(name, labels)
        with self._lock:
            self._pending[key] += amount

    def observe(self, name: str, value: float) -> None:
        """Adds a value to the summary `name`."""
        self.add(f"{name}_sum", value)
        self.add(f"{name}_count")
        with self._lock:
            self._recent[name].append(value)
            self._observed.add(name)

    def set(self, name: str, value: float, **labels: object) -> None:
        """Sets a gauge."""
        key = _key(name, labels)
        with self._lock:
            self._gauges[key] = value

    def flush(self) -> None:
        """Sends what was collected since the last time; for one thread."""
        with self._lock:
            pending, self._pending = self._pending, defaultdict(float)
            gauges, self._gauges = self._gauges, {}
            recent = {name: list(self._recent[name]) for name in self._observed}
            self._observed.clear()
        for name, values in recent.items():
            quantiles = np.quantile(values, QUANTILES)
            gauges |= {_key(name, {"quantile": q}): float(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
        for key, amount in pending.items():
            self._metric(key).increment(amount)
            time.sleep(PAUSE_SECONDS)
        for key, value in gauges.items():
            self._metric(key).set(value)
            time.sleep(PAUSE_SECONDS)

    def _metric(self, key: Key) -> Any:
        if key not in self._metrics:
            name, labels = key
            self._metrics[key] = self._families[name].Metric(labels={"model": self._model, **dict(labels)})
        return self._metrics[key]

    def close(self) -> None:
        """Flushes, and drops the metrics before their families, as Triton requires."""
        self.flush()
        self._metrics.clear()
        self._families.clear()


def _key(name: str, labels: dict[str, object]) -> Key:
    return name, tuple((label, str(value)) for label, value in labels.items())
