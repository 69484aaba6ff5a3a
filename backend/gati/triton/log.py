"""Triton's log: what it says of why a server did not start."""

from __future__ import annotations

import re
from pathlib import Path

from gati.errors import UnavailableError

STDERR = Path("-")
"""In place of a log file: Triton writes where this process does, as containers want it."""
TAKEN = re.compile(r'"(failed to start \w+ service: .*? already in use)')
"""What it says where a port is taken."""
LONGEST = 500
"""Characters of a reason: Triton gives that of a failed warm-up once for each of its requests."""


class PortTakenError(UnavailableError):
    """A port that was free has been taken."""


def failure(log: Path) -> str:
    """One sentence out of a failed server's log."""
    if log == STDERR:
        return "tritonserver ended while starting; its log is above."
    text = log.read_text(encoding="utf-8", errors="replace").replace("\0", "")  # written by one that ends late
    for pattern in (
        r"Poll failed for model directory ('[^']+': .+)",
        r"load failed for model ('[^']+'): version \d+ is at UNAVAILABLE state: (?:[\w ]+: )?(.+)",
        r"tritonserver: ((?:unrecognized|ambiguous) option .+|option .+)\nUsage: ",
        r"error: creating server: (?:Internal - )?(.+)",
        r"\nerror: (.+)",
        # Triton may die while it unloads the others, before it gives the reason once more as above.
        r"\"failed to load ('[^']+') version \d+: (?:[\w ]+: )?(.+?)(?:\\n|\"\n)",
    ):
        found = re.search(pattern, text)
        if found:
            reason = ": ".join(found.groups()).replace("TritonModelException: ", "").strip()[:LONGEST].rstrip('.;" ')
            return f"tritonserver did not start: {reason} (its log is {log})."
    last = next((line.strip()[:LONGEST] for line in reversed(text.splitlines()) if line.strip()), "nothing")
    return f"tritonserver ended while starting; the last that it said, in {log}, is: {last}"


def check_taken(log: Path) -> None:
    """Looks in the log of a server that has ended for a port that was taken after it had been chosen.

    Raises:
        PortTakenError: If there is one.
    """
    if found := TAKEN.search(log.read_text(encoding="utf-8", errors="replace")):
        raise PortTakenError(f"Another program has taken a port of the server's meanwhile: {found[1]}.")
