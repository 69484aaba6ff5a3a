"""Cores that a process may use: by affinity, and by the CPU limit of a container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gati import cores as module
from gati.cores import GROUPS, cores

MANY = 64
SAID = "from gati.cores import cores; print(cores())"


def group(path: Path, files: dict[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(content)


def v2(limit: str) -> dict[str, str]:
    return {"cpu.max": f"{limit} 100000\n"}


def v1(limit: int) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{limit}\n", "cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("0::/\n", {".": v2("400000")}, 4),  # as in a container with a namespace of its own
        ("0::/\n", {".": v2("max")}, MANY),
        ("0::/\n", {".": v2("10000")}, 1),
        ("0::/\n", {".": v2("250000")}, 3),
        ("0::/\n", {}, MANY),  # the root of all has no file
        ("0::/docker/abc\n", {".": v2("200000")}, 2),  # its own is not to be seen
        ("0::/pods/pod7/c\n", {"pods": v2("900000"), "pods/pod7": v2("300000"), "pods/pod7/c": v2("max")}, 3),
        ("4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n", {"cpu/x": v1(200000), "cpu": v1(-1)}, 2),
        ("4:memory:/x\n1:cpu,cpuacct:/x\n", {"cpu": v1(500000)}, 5),
        ("1:cpu:/\n", {"cpu": v1(-1)}, MANY),
        ("0::/\n", {".": {"cpu.max": "nonsense"}}, MANY),
        (None, {}, MANY),
    ],
)
def test_a_containers_limit_counts(
    own: str | None,
    groups: dict[str, dict[str, str]],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder, files in groups.items():
        group(tmp_path / "groups" / folder, files)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(module, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(module, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(MANY)))
    assert cores() == expected


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real cgroup that may use one core."""
    old = (GROUPS / "cpu" / "cpu.cfs_quota_us").exists()
    path = (GROUPS / "cpu" if old else GROUPS) / f"gati-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"a cgroup can't be made here: {error.strerror}")
    try:
        if not (path / ("cpu.cfs_quota_us" if old else "cpu.max")).exists():
            pytest.skip("cgroups have no CPU limit here")
        group(path, {"cpu.cfs_quota_us": "50000"} if old else {"cpu.max": "50000 100000"})
        yield path
    finally:
        path.rmdir()


def test_a_real_limit_counts(limited: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is but one core")
    joins = f'echo $$ > "$0" && exec "$1" -c "{SAID}"'
    command = ["sh", "-c", joins, str(limited / "cgroup.procs"), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
