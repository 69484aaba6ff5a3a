"""What adds up before it goes to Triton; that it arrives there, tests/server sees."""

from __future__ import annotations

from typing import Any

import numpy as np

from gati.telemetry.metrics import FAMILIES, QUANTILES, WINDOW, Metrics


class Page:
    """Triton's side: families of metrics that can be incremented and set."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.calls = 0
        page = self

        class Family:
            COUNTER, GAUGE = "counter", "gauge"

            def __init__(self, name: str, description: str, kind: str) -> None:
                self.name, self.kind = name, kind

            def Metric(self, labels: dict[str, str]) -> Any:  # Triton's name
                return Metric(self, tuple(labels.items()))

        class Metric:
            def __init__(self, family: Family, labels: tuple[tuple[str, str], ...]) -> None:
                self.family, self.key = family, (family.name, labels)

            def increment(self, amount: float) -> None:
                assert self.family.kind == "counter"
                assert amount >= 0
                page.calls += 1
                page.values[self.key] = page.values.get(self.key, 0) + amount

            def set(self, value: float) -> None:
                assert self.family.kind == "gauge"
                page.values[self.key] = value

        self.MetricFamily = Family

    def of(self, name: str, **labels: str) -> float:
        return self.values[name, (("model", "m"), *labels.items())]


def test_what_is_added_between_two_flushes_goes_out_at_once() -> None:
    page = Page()
    metrics = Metrics(page, "m")
    for _ in range(5):
        metrics.add("gati_requests_total", 2, exit=1)
    metrics.set("gati_release", 3)
    assert not page.values
    metrics.flush()
    metrics.flush()
    assert page.calls == 1
    metrics.add("gati_requests_total", 1, exit=1)
    metrics.flush()
    assert (page.of("gati_requests_total", exit="1"), page.of("gati_release")) == (11, 3)


def test_a_summary_counts_all_and_has_the_quantiles_of_the_last() -> None:
    page = Page()
    metrics = Metrics(page, "m")
    seen = np.random.default_rng(0).lognormal(-6, 2, WINDOW + 500)
    for part in np.array_split(seen, 4):
        for value in part:
            metrics.observe("gati_request_seconds", value)
        metrics.flush()
    for quantile in QUANTILES:
        expected = np.quantile(seen[-WINDOW:], quantile)
        np.testing.assert_allclose(page.of("gati_request_seconds", quantile=str(quantile)), expected)
    assert page.of("gati_request_seconds_count") == len(seen)
    np.testing.assert_allclose(page.of("gati_request_seconds_sum"), seen.sum())


def test_the_metrics_that_are_promised_exist() -> None:
    promised = {
        "gati_requests_total",
        "gati_audits_total",
        "gati_release",
        "gati_breaker_open",
        "gati_exit_closed",
        "gati_disagreement",
        "gati_held_total",
        "gati_bypassed_total",
        "gati_samples_dropped_total",
        "gati_segment_seconds_sum",
        "gati_segment_seconds_count",
    }
    assert promised <= set(FAMILIES)
