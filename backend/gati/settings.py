"""Settings of a running chain, from the environment that the server was started with.

`gati serve` sets them from its options; in a container they are set on the container.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gati.errors import RepositoryError
from gati.inference.session import CPU, DEVICE, Device, parse_device
from gati.repository.chain import Mode
from gati.repository.workspace import workspace

STORE, STORE_BYTES, AUDIT, WORKERS = "GATI_STORE", "GATI_STORE_BYTES", "GATI_AUDIT", "GATI_WORKERS"
STORE_AGE, RECORD, RECORD_SHARE = "GATI_STORE_AGE", "GATI_RECORD", "GATI_RECORD_SHARE"
REPLICA, BYPASS = "GATI_REPLICA", "GATI_BYPASS"
NO_STORE = "none"
INPUTS, FEATURES, NOTHING = "inputs", "features", "nothing"
DEFAULT_AGE, FOREVER = "30d", "none"
UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
DEFAULT_WORKERS: dict[Mode, int] = {"inline": 0, "bls": 4}


def parse_age(text: str) -> float | None:
    """Seconds in an age such as `30d`, `12h`, `90m` or `45s`; None for `none`, which is any age.

    Raises:
        ValueError: If it is none of these.
    """
    if text == FOREVER:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([dhms])", text)
    if found is None or not int(found[1]):
        raise ValueError(f"{text!r} is no age such as 30d, 12h, 90m, 45s, or {FOREVER}")
    return float(int(found[1]) * UNITS[found[2]])


@dataclass(frozen=True)
class Settings:
    """How a chain is run.

    Attributes:
        store: fsspec URL of the folder that served samples go to, one folder a model below it; None records nothing.
        store_bytes: Budget of a model's samples, in bytes; the oldest shard goes first.
        store_age: Seconds after which a shard is deleted; None keeps any age.
        record: What is recorded: "inputs", "features" (what goes on at cut point `cut` in their place), or "nothing".
        cut: The cut point of features.
        record_share: Share of requests that are recorded, 0..1.
        audit_share: Share of requests drawn for an audit, 0..1.
        replica: Under which name this server keeps what its audits found, so that a restart goes on from there and
            servers of one repository don't mix. A name for a file; the host's, unless given.
        workers: Threads that serve requests at the same time; 0 serves them on the thread that Triton calls. None
            leaves it to the mode: 0 inline, where one request has all cores at work already and another thread in
            between costs a fifth of its time (measured), and 4 in BLS mode, where a thread mostly waits.
        device: Where an inline chain runs. In BLS mode, each model's own configuration says that.
        bypass: Whether requests go past heads while these take more time than they save; inline, on a processor.
    """

    store: str | None
    store_bytes: int = 1 << 30
    audit_share: float = 0.02
    workers: int | None = None
    replica: str = field(default_factory=socket.gethostname)
    store_age: float | None = parse_age(DEFAULT_AGE)
    record: str = INPUTS
    cut: int = 0
    record_share: float = 1.0
    device: Device = CPU
    bypass: bool = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], repository: Path) -> Settings:
        """Reads `GATI_STORE` (an fsspec URL, or "none"), and the other `GATI_` variables that are named above.

        Raises:
            RepositoryError: If one of them is not what it should be.
        """
        store = environment.get(STORE) or str(workspace(repository) / "samples")
        try:
            record, cut = parse_record(environment.get(RECORD) or INPUTS)
            settings = cls(
                store=None if store == NO_STORE else store,
                store_bytes=int(environment.get(STORE_BYTES, cls.store_bytes)),
                audit_share=float(environment.get(AUDIT, cls.audit_share)),
                workers=int(environment[WORKERS]) if environment.get(WORKERS) else None,
                replica=environment.get(REPLICA) or socket.gethostname(),
                store_age=parse_age(environment.get(STORE_AGE) or DEFAULT_AGE),
                record=record,
                cut=cut,
                record_share=float(environment.get(RECORD_SHARE, 1)),
                device=parse_device(environment.get(DEVICE) or str(CPU)),
                bypass=_flag(environment.get(BYPASS) or "1"),
            )
        except ValueError as error:
            raise RepositoryError(f"A GATI_ variable of the server's environment makes no sense: {error}.") from error
        shares = settings.audit_share, settings.record_share
        if not (all(0 <= share <= 1 for share in shares) and (settings.workers or 0) >= 0):
            raise RepositoryError(f"{AUDIT} and {RECORD_SHARE} are shares from 0 to 1, and {WORKERS} at least 0.")
        if not re.fullmatch(r"\w[\w.-]{0,199}", settings.replica):
            raise RepositoryError("GATI_REPLICA is a name for a file: letters, digits, '.', '_' and '-'.")
        return settings

    def workers_in(self, mode: Mode) -> int:
        """Threads that serve requests of a chain that is run in this mode."""
        return DEFAULT_WORKERS[mode] if self.workers is None else self.workers


def parse_record(text: str) -> tuple[str, int]:
    """What is recorded, and at which cut point: "inputs", "nothing", "features" (of the first), "features:2".

    Raises:
        ValueError: If it is none of these.
    """
    found = re.fullmatch(rf"({INPUTS}|{NOTHING}|{FEATURES})|{FEATURES}:([0-9]{{1,3}})", text)
    if found is None:
        raise ValueError(f"{text!r} is not {INPUTS}, {FEATURES}, {FEATURES}:CUT or {NOTHING}")
    return found[1] or FEATURES, int(found[2] or 0)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"{text!r} is not 0 or 1")
    return text == "1"
