"""What a chain's configuration must not say: Triton would do it, and break what the chain promises."""

from __future__ import annotations

import json

from gati.errors import RepositoryError


def check_configuration(text: str) -> None:
    """Checks the configuration that Triton gives a model, as JSON.

    Raises:
        RepositoryError: If a chain can't be run so.
    """
    config = json.loads(text)
    if config.get("response_cache", {}).get("enable"):
        raise RepositoryError(
            f"{config['name']}: Triton's response cache does not tell exact requests and probes from others, and keeps "
            "answers that audits have found wrong; take response_cache out of its config.pbtxt."
        )
    if config.get("model_warmup"):
        raise RepositoryError(
            f"{config['name']}: Triton's warm-up is recorded and audited as clients' requests are, and in BLS mode "
            "comes before there are segments, which ends the server; a chain warms itself: take model_warmup out of "
            "its config.pbtxt."
        )
    instances = sum(
        int(group.get("count", 1)) * max(1, len(group.get("gpus", ()))) for group in config.get("instance_group", ())
    )
    if instances > 1:
        raise RepositoryError(
            f"{config['name']}: {instances} instances would not know of each other's audits and memories, and one uses "
            "all cores; give it an instance_group of one in its config.pbtxt."
        )
