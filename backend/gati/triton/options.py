"""The options of tritonserver: those that `gati serve` gives it, and those that a user hands on to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from gati.triton.model_control import EXIT_SECONDS, HEADER
from gati.triton.ports import Ports
from gati.triton.startup import is_complete

RESTRICTED = "model-repository,shared-memory,logging,trace"
OWN = frozenset(
    {
        "model-repository",
        "backend-directory",
        "model-control-mode",
        "load-model",
        "strict-readiness",
        "disable-auto-complete-config",
        *(f"{api}-{what}" for api in ("http", "grpc", "metrics") for what in ("address", "port")),
        *(f"allow-{api}" for api in ("http", "grpc", "metrics")),
        "http-restricted-api",
        "grpc-restricted-protocol",
        "exit-timeout-secs",
    }
)
"""What `gati serve` decides itself: a chain is controlled, watched and measured by it."""


def own_options(
    repository: Path, backends: Path, caches: Path, models: Iterable[str], *, host: str, ports: Ports, token: str
) -> list[str]:
    """What `gati serve` starts a tritonserver with.

    Args:
        repository: The model repository.
        backends: The prepared folder of backends.
        caches: The folder of response caches that came with Triton; it need not be there.
        models: What to load.
        host: Where to listen.
        ports: The ports there.
        token: What clients have to know that control models.
    """
    options: dict[str, object] = {
        "model-repository": repository,
        "backend-directory": backends,
        "cache-directory": caches,
        "model-control-mode": "explicit",
        # With strict readiness, a release that is being loaded in BLS mode, or was refused, would make the server
        # unready, although the release before still serves. It listens only when all models were loaded, anyway.
        "strict-readiness": "false",
        "http-address": host,
        "http-port": ports.http,
        "grpc-address": host,
        "grpc-port": ports.grpc,
        "metrics-address": host,
        "metrics-port": ports.metrics,
        "metrics-config": "summary_latencies=true",
        "http-restricted-api": f"{RESTRICTED}:{HEADER}={token}",
        "grpc-restricted-protocol": f"{RESTRICTED}:{HEADER}={token}",
        "exit-timeout-secs": EXIT_SECONDS - 5,
    }
    # Completing configurations would start each stub twice; those that gati exports are complete.
    flags = ["--disable-auto-complete-config"] if is_complete(repository) else []
    return (
        [f"--{key}={value}" for key, value in options.items()] + [f"--load-model={model}" for model in models] + flags
    )


def check_handed_on(options: Sequence[str]) -> Sequence[str]:
    """Checks options that a user hands on to tritonserver, and returns them.

    Raises:
        ValueError: If one is no option, or one that `gati serve` gives itself.
    """
    if options and not options[0].startswith("--"):
        raise ValueError(f"{options[0]!r} is no option of tritonserver")
    for option in options:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("--") and name in OWN:
            raise ValueError(f"tritonserver gets --{name} from gati serve itself")
    return options
