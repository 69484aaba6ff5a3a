"""What a server loads when it starts, and how long that may take."""

from __future__ import annotations

import re
from pathlib import Path

from gati.chain import find_chains, read_chain
from gati.errors import RepositoryError

START_SECONDS = 300
"""How long a server may take to start, or a model to be loaded again: a large network is warmed for minutes."""
BUILD_SECONDS = 1800
"""How long a server may take to start that has TensorRT build engines first."""
STATED = [
    re.compile(rf"(?:^|\s)(?:{field})\s*[:\[{{]") for field in ("backend|platform", "max_batch_size", "input", "output")
]
"""What a configuration says if Triton need not find it out."""
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


def parts(repository: Path) -> set[str]:
    """Names of the segments and heads of all chains."""
    chains = [read_chain(repository, name) for name in find_chains(repository)]
    heads = {chain.head_model(index) for chain in chains for index in chain.heads}
    return heads | {chain.segment_model(segment.index) for chain in chains for segment in chain.segments}


def is_complete(repository: Path) -> bool:
    """Whether all models' configurations say what Triton has to find out of others: those of chains do."""
    others = _models(repository) - {*find_chains(repository), *parts(repository)}
    return all(_says_all(repository / model / "config.pbtxt") for model in others)


def _says_all(config: Path) -> bool:
    try:
        text = COMMENT.sub("", config.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # there is none; or Triton will say what is wrong with it
        return False
    return all(field.search(text) for field in STATED)


def _models(repository: Path) -> set[str]:
    """Names of all models; Triton takes one without a configuration for what the files of its versions say."""
    configured = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    return configured | {path.parents[1].name for path in repository.glob("*/[1-9]*/model.*")}


def start_seconds(repository: Path) -> int:
    """Seconds that a server of a repository may take to start."""
    engines = {read_chain(repository, name).engine for name in find_chains(repository)}
    return BUILD_SECONDS if "tensorrt" in engines else START_SECONDS
