"""What lies in docker/: valid by the schemas of its formats, and of one piece with itself and with gati."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from gati.inference.fuse import LARGEST
from gati.repository.workspace import workspace
from gati.serve import serve
from gati.settings import STORE
from gati.telemetry.minutes import KEPT, Minutes
from gati.triton.ports import Ports
from gati.triton.startup import BUILD_SECONDS, START_SECONDS
from gati_export.commands.refresh import refresh
from gati_export.commands.sync import sync
from gati_export.samples.store import default_store

DOCKER = Path(__file__).parents[2] / "docker"
BIN = Path(sys.executable).parent
KUBERNETES = {
    path.name: [*yaml.safe_load_all(path.read_text())] for path in sorted((DOCKER / "kubernetes").glob("*.yaml"))
}
KUSTOMIZATION = KUBERNETES.pop("kustomization.yaml")[0]
OBJECTS = {(thing["kind"], thing["metadata"]["name"]): thing for file in KUBERNETES.values() for thing in file}
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
RUNTIME, INFERENCE = yaml.safe_load_all((DOCKER / "kserve.yaml").read_text())
TEMPLATE = OBJECTS["Deployment", "gati-triton"]["spec"]["template"]
PODS = {
    "triton": TEMPLATE["spec"],
    "refresher": OBJECTS["CronJob", "gati-refresher"]["spec"]["jobTemplate"]["spec"]["template"]["spec"],
    "loader": OBJECTS["Pod", "gati-loader"]["spec"],
    "kserve": {key: RUNTIME["spec"][key] for key in ("containers", "volumes")},
}
OVERLAY = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((DOCKER / "kubernetes-objects").glob("*.yaml"))
}
COMMAND = json.loads(re.findall(r"^CMD (.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)[0])
REPOSITORY = Path(COMMAND[2])
VERSION = "1.34"


def lint(*command: str) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=DOCKER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def mounts(pod: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    return {Path(mount["mountPath"]): mount for mount in pod["containers"][0]["volumeMounts"]}


def room(pod: dict[str, Any], path: Path) -> int:
    """Bytes that may lie in the emptyDir that is mounted there."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    size = volumes[mounts(pod)[path]["name"]]["emptyDir"]["sizeLimit"]
    return int(size[:-2]) << {"Mi": 20, "Gi": 30}[size[-2:]]


def options(command: click.Command, arguments: list[str]) -> dict[str, Any]:
    """What a command understands of arguments; the folders that they name are on another machine."""
    parsed, rest, _ = command.make_parser(click.Context(command)).parse_args(arguments)
    assert not rest
    return parsed


def images() -> Iterator[str]:
    yield from (container["image"] for pod in PODS.values() for container in pod["containers"])
    yield from (service["image"] for service in COMPOSE["services"].values())


def test_the_dockerfile_is_good_and_ends_as_nobody_special() -> None:
    lint("hadolint", "Dockerfile")
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert re.search(r"^ARG TRITON=\d\d\.\d\d$", stages[0], re.MULTILINE)
    for stage in stages[1:]:
        assert re.findall(r"^USER (.+)$", stage, re.MULTILINE)[-1] == "1000:1000"


def test_the_compose_file_is_good() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


@pytest.mark.parametrize("thing", OBJECTS.values(), ids=lambda thing: f"{thing['kind']} {thing['metadata']['name']}")
def test_kubernetes_knows_every_field(thing: dict[str, Any]) -> None:
    kubernetes_validate.validate(thing, VERSION, strict=True)


def test_kubernetes_knows_every_field_of_the_runtime_s_pod() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gati"}, "spec": PODS["kserve"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    formats = {known["name"] for known in RUNTIME["spec"]["supportedModelFormats"]}
    model = INFERENCE["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_the_kustomization_names_every_file_and_image() -> None:
    assert {*KUSTOMIZATION["resources"], "loader.yaml"} == set(KUBERNETES)
    assert OVERLAY["kustomization"]["images"] == KUSTOMIZATION["images"]
    named = {image["name"] for image in KUSTOMIZATION["images"]}
    assert {pod["containers"][0]["image"] for name, pod in PODS.items() if name in ("triton", "refresher")} == named


def test_no_image_is_whatever_is_latest() -> None:
    for image in {*images()} - {"gati", "gati-offline"}:  # these two get their tags from the kustomization
        assert re.search(r":[^:/]+$", image), image
        assert not image.endswith(":latest")


def test_services_and_the_autoscaler_find_the_servers() -> None:
    labels = TEMPLATE["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in PODS["triton"]["containers"][0]["ports"]}
    assert ports == {"grpc": Ports.grpc, "http": Ports.http, "metrics": Ports.metrics}
    assert TEMPLATE["metadata"]["annotations"]["prometheus.io/port"] == str(Ports.metrics)
    assert OBJECTS["Deployment", "gati-triton"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service", "gati-replicas"]["spec"]["clusterIP"] == "None"
    for name in ("gati", "gati-replicas"):
        service = OBJECTS["Service", name]["spec"]
        assert service["selector"] == labels
        assert all(ports[port["targetPort"]] == port["port"] for port in service["ports"])
    autoscaler = OBJECTS["HorizontalPodAutoscaler", "gati-triton"]["spec"]
    target = autoscaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) in OBJECTS
    assert {metric["resource"]["name"] for metric in autoscaler["metrics"]} <= set(
        PODS["triton"]["containers"][0]["resources"]["requests"]
    )
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert PODS["triton"]["containers"][0][probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined_and_mounts_what_there_is(name: str) -> None:
    pod = PODS[name]
    container = pod["containers"][0]
    security = pod.get("securityContext", {}) | container["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] == 1000
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    if name != "loader":
        assert container["resources"]["limits"]["cpu"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim")
        assert claim is None or ("PersistentVolumeClaim", claim["claimName"]) in OBJECTS


@pytest.mark.parametrize("name", ["triton", "kserve"])
def test_a_server_may_write_where_gati_does_and_its_repository_is_read_only(name: str) -> None:
    container = PODS[name]["containers"][0]
    command = container.get("args", COMMAND)
    said = options(serve, command[2:])
    assert command[:2] == ["gati", "serve"]
    assert said["host"] == "0.0.0.0"
    places = mounts(PODS[name])
    repository = Path(said["repository"])
    assert not places[workspace(repository)].get("readOnly")
    memory = places[Path("/dev/shm")]["name"]
    assert [v["emptyDir"]["medium"] for v in PODS[name]["volumes"] if v["name"] == memory] == ["Memory"]
    if name == "triton":
        assert places[repository]["readOnly"]
        assert not places[Path(default_store(repository))].get("readOnly")
        assert places[workspace(repository) / "token"]["readOnly"]


def test_a_server_is_not_ended_while_gati_serve_still_waits_for_it() -> None:
    probe = PODS["triton"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > START_SECONDS
    assert COMPOSE["services"]["triton"]["healthcheck"]["start_period"] == f"{START_SECONDS}s"
    wanted = re.findall(r"then, (\d+) times", (DOCKER / "kubernetes" / "triton.yaml").read_text())
    assert probe["periodSeconds"] * int(wanted[0]) > BUILD_SECONDS


def test_a_network_that_is_optimised_as_a_whole_has_room_for_what_that_takes() -> None:
    assert room(PODS["triton"], Path("/tmp")) >= 2 * LARGEST


def test_server_and_refresher_mean_the_same_folders() -> None:
    served, refreshed = mounts(PODS["triton"]), mounts(PODS["refresher"])
    root = next(path for path, mount in refreshed.items() if mount["name"] == "data")
    shared = {path: mount["subPath"] for path, mount in served.items() if mount["name"] == "data"}
    told = [workspace(REPOSITORY) / name for name in ("minutes", "breaker")]  # by servers, and read by `gati report`
    wanted = [REPOSITORY, Path(default_store(REPOSITORY)), *told]
    assert shared == {path: str(path.relative_to(root)) for path in wanted}
    made = PODS["loader"]["containers"][0]["command"][-1]
    assert all(path.name in made for path in wanted)
    assert {path for path, mount in served.items() if mount["name"] == "token"} == {
        path for path, mount in refreshed.items() if mount["name"] == "token"
    }
    assert root in mounts(PODS["loader"])
    said = options(refresh, PODS["refresher"]["containers"][0]["args"][2:])
    assert Path(said["repository"]) == REPOSITORY
    host, _, port = str(said["server"]).strip("[]'").partition(":")
    service = OBJECTS["Service", host]["spec"]
    assert [p["port"] for p in service["ports"] if p["name"] == "grpc"] == [int(port)]


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge patch, as far as the overlay asks for one: lists of mounts and of named things go by that."""
    if isinstance(base, dict) and isinstance(patch, dict):
        both = base | {key: merged(base.get(key), value) for key, value in patch.items()}
        return {key: value for key, value in both.items() if value is not None}
    keys = [key for key in ("mountPath", "name") if isinstance(patch, list) and patch and key in patch[0]]
    if not keys or base is None:
        return patch
    changes = {item[keys[0]]: item for item in patch}
    found = [merged(item, changes.pop(item[keys[0]], {})) for item in base]
    return [item for item in [*found, *changes.values()] if "$patch" not in item]


def overlaid(name: str, kind: str, thing: str) -> dict[str, Any]:
    assert f"{name}.yaml" in {patch["path"] for patch in OVERLAY["kustomization"]["patches"]}
    result = merged(OBJECTS[kind, thing], OVERLAY[name])
    kubernetes_validate.validate(result, VERSION, strict=True)
    return result


def test_with_an_object_store_a_pod_has_a_copy_that_its_sidecar_keeps_in_step() -> None:
    pod = overlaid("triton", "Deployment", "gati-triton")["spec"]["template"]["spec"]
    (pull, sidecar), server = pod["initContainers"], pod["containers"][0]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "emptyDir" in volumes["data"]
    said = [options(sync, container["args"][2:]) for container in (pull, sidecar)]
    assert {(Path(s["repository"]), s["url"]) for s in said} == {(REPOSITORY, said[0]["url"])}
    assert "watch" not in said[0] and said[1]["watch"] and sidecar["restartPolicy"] == "Always"
    assert said[1]["server"] == (f"localhost:{Ports.grpc}",) or said[1]["server"] == [f"localhost:{Ports.grpc}"]
    for container in (pull, sidecar):
        places = {Path(mount["mountPath"]): mount for mount in container["volumeMounts"]}
        assert places[REPOSITORY.parent]["name"] == "data" == mounts(pod)[REPOSITORY]["name"]
        assert container["securityContext"] == server["securityContext"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
    token = workspace(REPOSITORY) / "token"
    assert token in mounts(pod) and str(token) in [mount["mountPath"] for mount in sidecar["volumeMounts"]]
    assert Path(default_store(REPOSITORY)) not in mounts(pod)
    assert {"name": STORE, "value": "s3://bucket/samples"} in server["env"]


def test_with_an_object_store_the_minutes_of_several_chains_have_room(tmp_path: Path) -> None:
    pod = overlaid("triton", "Deployment", "gati-triton")["spec"]["template"]["spec"]
    told = Minutes(tmp_path / "minutes.jsonl", 9, pytest.fail)
    told.served(Counter(dict.fromkeys(range(10), 10**6)), [(9, 1e-4 * 1.05**step) for step in range(120)])  # to 33 ms
    told.keep(100, (0, 1), (0.0, 1.0), now=True)
    line = (tmp_path / "minutes.jsonl").stat().st_size
    assert line > 2000
    assert room(pod, workspace(REPOSITORY)) > 5 * 3 * KEPT * line  # the newer half is written beside the whole


@pytest.mark.parametrize("name", ["triton", "refresher"])
def test_what_first_writes_to_an_empty_volume_finds_no_folder_of_root_s_there(name: str) -> None:
    spec = OVERLAY[name]["spec"]
    pull = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]["initContainers"][0]
    assert not [m for m in pull["volumeMounts"] if REPOSITORY.parent in Path(m["mountPath"]).parents]


def test_with_an_object_store_the_refresher_learns_from_where_servers_write() -> None:
    job = overlaid("refresher", "CronJob", "gati-refresher")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    said = options(refresh, job["containers"][0]["args"][2:])
    server = OVERLAY["triton"]["spec"]["template"]["spec"]["containers"][0]
    assert {"name": STORE, "value": said["store"]} in server["env"]
    pull = options(sync, job["initContainers"][0]["args"][2:])
    assert pull["repository"] == said["repository"]
    assert pull["url"] == OVERLAY["triton"]["spec"]["template"]["spec"]["initContainers"][0]["args"][2]
    claim = overlaid("volume", "PersistentVolumeClaim", "gati")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_compose_gives_each_the_folders_it_needs_and_the_world_nothing() -> None:
    services = COMPOSE["services"]
    triton, refresher = services["triton"], services["refresher"]
    folder = "${GATI_DATA:-./data}"
    assert triton["volumes"] == [
        f"{folder}/{REPOSITORY.name}:{REPOSITORY}:ro",
        f"{folder}/{workspace(REPOSITORY).name}:{workspace(REPOSITORY)}",
    ]
    assert refresher["volumes"] == [f"{folder}:{REPOSITORY.parent}"]
    assert {f"--repository={REPOSITORY}", f"--server=triton:{Ports.grpc}", "--watch"} <= set(refresher["command"])
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    sources = [v.partition(":")[0] for s in services.values() for v in s["volumes"] if v.startswith("./")]
    assert sources and all((DOCKER / source).exists() for source in sources)
    for service in (triton, refresher):
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_grafana_finds_prometheus_and_prometheus_finds_triton() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": [f"triton:{Ports.metrics}"]}]
    assert {"prometheus", "triton"} <= set(COMPOSE["services"])
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    provider = yaml.safe_load((provisioning / "dashboards" / "gati.yaml").read_text())["providers"][0]
    assert str(Path(home).parent) == provider["options"]["path"]
    assert any(volume.endswith(f":{home}:ro") for volume in COMPOSE["services"]["grafana"]["volumes"])
