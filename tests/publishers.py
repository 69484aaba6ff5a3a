"""Publishers as processes of their own, to be killed or raced.

They are forked off one clean process that has imported what they need, so that each takes milliseconds to start.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gati.errors import GatiError
from gati.repository.chain import Chain
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.refresh import refreshed
from gati_export.releases.publish import Draft, publish
from gati_export.releases.rollout import publish_to

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["gati_export.releases.rollout", "gati_export.refreshing.refresh"])

SECONDS = 60


def run(function: Callable[..., None], *arguments: Any) -> int:
    """Runs a function in a process of its own; returns its exit code, negative for a signal."""
    process = start(function, *arguments)
    process.join(SECONDS)
    assert process.exitcode is not None, "the process did not end"
    return process.exitcode


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts a function in a process of its own."""
    process = PROCESSES.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def publish_until(repository: Path, chain: Chain, draft: Draft, address: str | None, last: str) -> None:
    """Publishes, and is killed as a step begins."""

    def die(step: str) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    publish_to(repository, chain, draft, address, die)


CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove"}


def publish_changes(repository: Path, chain: Chain, draft: Draft, changes: int) -> None:
    """Publishes, and is killed before it changes the disk once more than so often."""
    made = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or written:
            made += 1
            if made > changes:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    publish(repository, chain, draft)


def publish_limited(repository: Path, chain: Chain, draft: Draft, size: int, said: Path) -> None:
    """Publishes where no file can grow beyond `size` bytes, as on a full disk; writes down what went wrong."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        publish(repository, chain, draft)
    except GatiError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said.write_text(str(error))


def publish_often(repository: Path, chain: Chain, draft: Draft, address: str | None, times: int, said: Path) -> None:
    """Publishes so often; writes down the numbers."""
    numbers = [publish_to(repository, chain, draft, address).release.number for _ in range(times)]
    said.write_text(" ".join(map(str, numbers)))


def refresh_once(repository: Path, chain: Chain, store: str, window: int, address: str) -> None:
    """Refreshes; what it can't do, it leaves."""
    with suppress(GatiError):
        refreshed(RefreshPlan(repository, chain, store, window, address, always=True), lambda *_: None)


def race(
    repository: Path, chain: Chain, draft: Draft, address: str | None, times: int, folder: Path
) -> list[list[int]]:
    """Two processes publish so often, at once; returns the numbers of each."""
    files = [folder / name for name in ("first", "second")]
    processes = [start(publish_often, repository, chain, draft, address, times, said) for said in files]
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0
    return [[int(number) for number in said.read_text().split()] for said in files]
