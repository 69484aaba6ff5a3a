"""The rules, alerts and dashboard of docker/, by the real Prometheus: its own tests, and what it says of a server."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MODEL, Exported, Serve
from running import Running, eventually, started

from gati.triton.ports import HOST
from gati_client import Client
from gati_export.report.scrape import Reading

DOCKER = Path(__file__).parents[2] / "docker"
PROMETHEUS = DOCKER / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DOCKER / "grafana" / "gati.json").read_text())
GRAFANA = {"$__rate_interval": "1m", "$model": ".*"}
QUERIES = {
    f"{panel['title']} {target['refId']}, panel {panel['id']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
REQUESTS, ROWS = 250, 4


def _program(name: str) -> str | None:
    """A program of Prometheus': on PATH, or where scripts/install-prometheus.sh puts it."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


pytestmark = pytest.mark.skipif(
    not (_program("prometheus") and _program("promtool")), reason="Prometheus is not installed"
)


@dataclass(frozen=True)
class Monitored:
    """A Prometheus that scrapes a server which has answered requests."""

    address: str
    running: Running

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.loads(response.read())["data"]

    def agrees(self, expression: str, reading: Callable[[Reading], float | None]) -> bool:
        """Whether an expression comes to say what the server's own page does."""
        return eventually(lambda: self.values(expression) == [pytest.approx(reading(self.running.reading()))])

    def values(self, expression: str) -> list[float]:
        """What an expression of PromQL, with Grafana's variables, is now."""
        for name, value in GRAFANA.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        return [float(sample["value"][1]) for sample in self.get("query", query=expression)["result"]]


@pytest.fixture(scope="module")
def monitored(exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """The configuration as it lies there, but scraping twice a second, and our server."""
    folder = tmp_path_factory.mktemp("prometheus")
    running = started(exported, serve_module, folder, "inline", GATI_AUDIT="1")
    shutil.copytree(PROMETHEUS, folder / "etc")
    config = yaml.safe_load((folder / "etc" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [running.served.metrics]}]
    (folder / "etc" / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind((HOST, 0))
        address = f"{HOST}:{free.getsockname()[1]}"
    options = {"config.file": folder / "etc/prometheus.yml", "storage.tsdb.path": folder, "web.listen-address": address}
    with (folder / "log").open("w") as log:
        command = [str(_program("prometheus")), *(f"--{key}={value}" for key, value in options.items())]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        monitored = Monitored(address, running)
        assert eventually(lambda: _scraped(monitored)), (folder / "log").read_text()
        with Client(running.served.grpc, MODEL) as client:
            for start in range(REQUESTS):
                client.infer(running.images[start * ROWS % 1000 :][:ROWS])
        assert eventually(lambda: _counted(monitored))
        yield monitored
    finally:
        process.terminate()
        process.wait(30)


def _scraped(monitored: Monitored) -> bool:
    try:
        return monitored.values('up{job="gati"}') == [1]
    except OSError:  # not up yet
        return False


def _counted(monitored: Monitored) -> bool:
    """Whether all requests have been scraped, and every rule has been evaluated on some."""
    counted = monitored.values("gati_request_seconds_count") == [REQUESTS]
    return counted and all(monitored.values(rule["record"]) for rule in RULES)


def test_promtool_approves_of_configuration_rules_and_alerts() -> None:
    for check in (["check", "config", "prometheus.yml"], ["test", "rules", "gati_test.yml"]):
        command = [str(_program("promtool")), *check]
        done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = yaml.safe_load((PROMETHEUS / "gati_test.yml").read_text())["tests"]
    raised = {t["alertname"] for test in tests for t in test.get("alert_rule_test", []) if t["exp_alerts"]}
    assert raised == {alert["alert"] for alert in ALERTS}
    for alert in ALERTS:
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in ("warning", "critical")


@pytest.mark.triton
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_of_the_dashboard_is_answered(monitored: Monitored, name: str) -> None:
    values = monitored.values(QUERIES[name])
    assert values
    assert all(math.isfinite(value) for value in values)


@pytest.mark.triton
def test_prometheus_and_the_server_agree(monitored: Monitored) -> None:
    assert 0 < monitored.values("model:gati_hits:ratio_rate5m")[0] < 1
    assert monitored.agrees("model:gati_hits:ratio_rate5m", lambda server: server.hit_rate)
    assert monitored.agrees("model:gati_agreement:ratio_increase1h", lambda server: server.agreement)
    assert monitored.agrees("model:gati_request_seconds:p99", lambda server: server.quantiles[0.99])
    assert monitored.get("label/model/values", **{"match[]": "gati_release"}) == [MODEL]


@pytest.mark.triton
def test_every_rule_can_be_evaluated_and_a_healthy_server_raises_no_alert(monitored: Monitored) -> None:
    rules = [rule for group in monitored.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES) + len(ALERTS)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def test_the_dashboard_explains_itself() -> None:
    panels = DASHBOARD["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
