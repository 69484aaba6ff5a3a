"""What a process may use: by affinity and what is free, and by the limits of a container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gati.system import resources
from gati.system.resources import GROUPS, cores, memory

MANY = 64
Groups = dict[str, dict[str, str]]
Contain = Callable[[str | None, Groups], None]
SAID = "from gati.system.resources import cores; print(cores())"


def group(path: Path, files: dict[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(content)


def v2(limit: str) -> dict[str, str]:
    return {"cpu.max": f"{limit} 100000\n"}


def v1(limit: int) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{limit}\n", "cpu.cfs_period_us": "100000\n"}


@pytest.fixture
def contain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contain:
    """Has limits be read from given files of cgroups; there are 64 cores, and of 64 GiB half are available."""

    def at(own: str | None, groups: Groups) -> None:
        for name, files in groups.items():
            group(tmp_path / "groups" / name, files)
        if own is not None:
            (tmp_path / "own").write_text(own)

    (tmp_path / "meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n")
    for name, path in (("GROUPS", "groups"), ("OWN", "own"), ("MACHINE", "meminfo")):
        monkeypatch.setattr(resources, name, tmp_path / path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(MANY)))
    return at


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
def test_a_containers_cpu_limit_counts(own: str | None, groups: Groups, expected: int, contain: Contain) -> None:
    contain(own, groups)
    assert cores() == expected


def held(limit: str, used: int, idle: int) -> dict[str, str]:
    """Files of a cgroup, v2: limit, use, and what of that are pages of files."""
    return {
        "memory.max": limit,
        "memory.current": str(used << 30),
        "memory.stat": f"inactive_file {idle << 30}\n",
    }


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("0::/\n", {".": held(str(8 << 30), 5, 2)}, 5),
        ("0::/a/b\n", {"a": held(str(4 << 30), 1, 0), "a/b": held("max", 1, 0)}, 3),
        ("0::/\n", {".": held("max", 5, 2)}, 32),
        ("0::/\n", {".": held(str(1 << 30), 3, 1)}, 0),
        ("0::/\n", {}, 32),
        (
            "4:memory:/x\n",
            {
                "memory": {
                    "memory.limit_in_bytes": str(6 << 30),
                    "memory.usage_in_bytes": str(4 << 30),
                    "memory.stat": f"inactive_file 0\ntotal_inactive_file {1 << 30}\n",
                }
            },
            3,
        ),
        (None, {}, 32),
    ],
)
def test_a_containers_memory_limit_counts(own: str | None, groups: Groups, expected: int, contain: Contain) -> None:
    contain(own, groups)
    assert memory() == expected << 30


def test_there_is_memory_and_no_more_than_the_machine_has() -> None:
    assert 64 << 20 < memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
