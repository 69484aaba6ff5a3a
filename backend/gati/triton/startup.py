"""What a server loads when it starts, and how long that may take."""

from __future__ import annotations

import re
from pathlib import Path

from gati.errors import RepositoryError
from gati.repository.chain import find_chains, read_chain

START_SECONDS = 300
"""How long a server may take to start, or a model to be loaded again: a large network takes minutes to warm up."""
BUILD_SECONDS = 1800
"""How long a server may take to start if TensorRT builds engines first."""
STATED = [
    re.compile(rf"(?:^|\s)(?:{field})\s*[:\[{{]") for field in ("backend|platform", "max_batch_size", "input", "output")
]
"""Fields that a configuration has if Triton need not complete it."""
COMMENT = re.compile("#.*")


def startup_models(repository: Path) -> list[str]:
    """What to load at start: chains, models that are none of gati's, and in BLS mode what the chains call.

    Raises:
        RepositoryError: If there is no model in the repository.
    """
    models = _models(repository)
    if not models:
        raise RepositoryError(f"{repository} is no model repository: no folder in it has a config.pbtxt.")
    for name in find_chains(repository):
        chain = read_chain(repository, name)
        heads = {chain.head_model(index) for index in chain.heads}
        if chain.mode == "inline":
            models -= heads | {chain.segment_model(segment.index) for segment in chain.segments}
        else:
            models -= {h for h in heads & models if not any(f.name.isdecimal() for f in (repository / h).iterdir())}
    return sorted(models)


def chain_parts(repository: Path) -> set[str]:
    """Names of the models that are segments and heads of chains."""
    chains = [read_chain(repository, name) for name in find_chains(repository)]
    heads = {chain.head_model(index) for chain in chains for index in chain.heads}
    return heads | {chain.segment_model(segment.index) for chain in chains for segment in chain.segments}


def is_complete(repository: Path) -> bool:
    """Whether no model's configuration needs to be completed by Triton. Those of chains do not."""
    others = _models(repository) - {*find_chains(repository), *chain_parts(repository)}
    return all(_says_all(repository / model / "config.pbtxt") for model in others)


def _says_all(config: Path) -> bool:
    try:
        text = COMMENT.sub("", config.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # there is none, or it can't be read: Triton will report that
        return False
    return all(field.search(text) for field in STATED)


def _models(repository: Path) -> set[str]:
    """Names of all models; those without a configuration are recognised as Triton does, by the files of versions."""
    configured = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    return configured | {path.parents[1].name for path in repository.glob("*/[1-9]*/model.*")}


def start_seconds(repository: Path) -> int:
    """Seconds that a server of a repository may take to start."""
    engines = {read_chain(repository, name).engine for name in find_chains(repository)}
    return BUILD_SECONDS if "tensorrt" in engines else START_SECONDS
