"""What becomes of a process whose parent is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

SECONDS = 0.25
"""Between two looks at who the parent is."""


def die_with_parent() -> None:
    """Has the kernel end this process with its parent (Linux: PR_SET_PDEATHSIG is 1); called between fork and exec."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def when_orphaned(then: Callable[[], None]) -> None:
    """Calls a function once the parent is gone, in a thread of its own: all others may wait for it for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS)
        then()

    threading.Thread(target=watch, name="gati-parent", daemon=True).start()
