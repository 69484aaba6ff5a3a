"""The files of a chain, as they travel between repositories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gati.errors import RepositoryError
from gati.repository.chain import Chain
from gati.repository.release import LARGEST_FILE, LARGEST_MANIFEST
from gati_export.releases.repository import check_config, configs

LARGEST_SEGMENT = 2 << 30
"""Bytes: what one ONNX file can hold."""


class ChainFile(NamedTuple):
    """A file of a chain: its path in a repository, its largest size, and what checks it in the repository given."""

    key: str
    limit: int
    check: Callable[[Path], object]


def chain_files(chain: Chain) -> Iterator[ChainFile]:
    """All files of a chain but its heads' and, as what makes it one, its manifest."""
    for segment in chain.segments:
        key = str(chain.segment_path(Path(), segment.index))
        yield ChainFile(key, LARGEST_SEGMENT, partial(chain.check_segment, index=segment.index))
    for config in configs(chain):
        key = f"{config.name}/config.pbtxt"
        yield ChainFile(key, LARGEST_MANIFEST, lambda there, key=key, config=config: check_config(there / key, config))
    if chain.tail:
        yield ChainFile(str(chain.tail_path(Path())), LARGEST_FILE, chain.read_tail)
    if chain.trained:
        yield ChainFile(str(chain.trained_path(Path())), LARGEST_FILE, chain.read_trained)
    for place in chain.labelled:
        yield ChainFile(str(chain.labels_path(Path(), place)), LARGEST_FILE, partial(chain.read_labels, place=place))


def check_portable(chain: Chain) -> None:
    """Refuses a chain whose files are of use on one kind of machine alone.

    Raises:
        RepositoryError: If it is one.
    """
    if chain.engine != "onnxruntime":
        raise RepositoryError(f"{chain.model!r} was prepared for TensorRT, for one kind of GPU: it is not synced.")
