"""Settings of a running chain, from the environment that the server was started with.

`gati serve` sets them from its options; in a container they are set on the container.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gati.chain import Mode
from gati.errors import RepositoryError
from gati.session import CPU, DEVICE, Device, parse_device

STORE, STORE_BYTES, AUDIT, WORKERS = "GATI_STORE", "GATI_STORE_BYTES", "GATI_AUDIT", "GATI_WORKERS"
REPLICA = "GATI_REPLICA"
NO_STORE = "none"
DEFAULT_WORKERS: dict[Mode, int] = {"inline": 0, "bls": 4}


@dataclass(frozen=True)
class Settings:
    """How a chain is run.

    Attributes:
        store: fsspec URL of the folder that served samples go to, one folder a model below it; None records nothing.
        store_bytes: Budget of a model's samples, in bytes; the oldest shard goes first.
        audit_share: Share of requests drawn for an audit, 0..1.
        replica: Under which name this server keeps what its audits found, so that a restart goes on from there and
            servers of one repository don't mix. A name for a file; the host's, unless given.
        workers: Threads that serve requests at the same time; 0 serves them on the thread that Triton calls. None
            leaves it to the mode: 0 inline, where one request has all cores at work already and another thread in
            between costs a fifth of its time (measured), and 4 in BLS mode, where a thread mostly waits.
        device: Where an inline chain runs. In BLS mode, each model's own configuration says that.
    """

    store: str | None
    store_bytes: int = 1 << 30
    audit_share: float = 0.02
    workers: int | None = None
    replica: str = field(default_factory=socket.gethostname)
    device: Device = CPU

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], repository: Path) -> Settings:
        """Reads `GATI_STORE` (a URL, or "none"), and `GATI_` `STORE_BYTES`, `AUDIT`, `WORKERS`, `REPLICA` and `DEVICE`.

        Raises:
            RepositoryError: If one of them is not what it should be.
        """
        store = environment.get(STORE) or str(workspace(repository) / "samples")
        try:
            settings = cls(
                store=None if store == NO_STORE else store,
                store_bytes=int(environment.get(STORE_BYTES, cls.store_bytes)),
                audit_share=float(environment.get(AUDIT, cls.audit_share)),
                workers=int(environment[WORKERS]) if environment.get(WORKERS) else None,
                replica=environment.get(REPLICA) or socket.gethostname(),
                device=parse_device(environment.get(DEVICE) or str(CPU)),
            )
        except ValueError as error:
            raise RepositoryError(f"A GATI_ variable of the server's environment is not a number: {error}.") from error
        if not (0 <= settings.audit_share <= 1 and (settings.workers or 0) >= 0):
            raise RepositoryError("GATI_AUDIT is a share from 0 to 1, and GATI_WORKERS at least 0.")
        if not re.fullmatch(r"\w[\w.-]{0,199}", settings.replica):
            raise RepositoryError("GATI_REPLICA is a name for a file: letters, digits, '.', '_' and '-'.")
        return settings

    def workers_in(self, mode: Mode) -> int:
        """Threads that serve requests of a chain that is run in this mode."""
        return DEFAULT_WORKERS[mode] if self.workers is None else self.workers


def workspace(repository: Path) -> Path:
    """The folder beside a repository for what belongs to it but is no model: samples, staging, token, log.

    Beside, because Triton takes every folder inside for a model; and so on the same file system, where a staged
    release can be renamed into place.
    """
    repository = repository.resolve()
    return repository.with_name(repository.name + ".gati")
