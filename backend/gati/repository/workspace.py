"""The workspace of a repository: a folder beside it."""

from __future__ import annotations

from pathlib import Path


def workspace(repository: Path) -> Path:
    """The folder beside a repository for what belongs to it but is no model: samples, staging, token, log.

    Beside, because Triton takes every folder inside for a model; and so on the same file system, where a staged
    release can be renamed into place.
    """
    repository = repository.resolve()
    return repository.with_name(repository.name + ".gati")
