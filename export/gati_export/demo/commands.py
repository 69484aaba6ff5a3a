"""Runs `gati`'s own commands as a user would, each shown before it is run."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gati.errors import UnavailableError

START_SECONDS = 120


def gati(*arguments: str | Path) -> None:
    """Runs a command to its end, its output shown.

    Raises:
        UnavailableError: If it fails; it has said why.
    """
    show(*arguments)
    code = subprocess.run(_command(arguments), check=False).returncode
    if code:
        raise UnavailableError(f"gati {arguments[0]} ended with {code}; it says why above.")


@contextmanager
def serving(repository: Path, work: Path) -> Iterator[dict[str, Any]]:
    """`gati serve` on free ports, until left; gives its addresses, as its `--json` has them."""
    ready = work / "server.json"
    ready.unlink(missing_ok=True)
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    arguments = ["serve", repository, *ports, "--json", ready]
    show(*arguments)
    server = subprocess.Popen(_command(arguments))
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError("gati serve did not start; it says why above.")
            time.sleep(0.1)
        time.sleep(0.1)  # the file is small, but it is written after it is made
        yield json.loads(ready.read_text(encoding="utf-8"))
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        server.wait()


def show(*arguments: str | Path) -> None:
    """Prints a command as one would type it."""
    click.echo(f"\n$ gati {shlex.join(str(argument) for argument in arguments)}")


def _command(arguments: tuple[str | Path, ...] | list[str | Path]) -> list[str]:
    return [sys.executable, "-c", "from gati.cli import main; main()", *(str(argument) for argument in arguments)]
