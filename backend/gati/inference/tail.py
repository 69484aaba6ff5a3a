"""The tail: what a network makes of its scores, such as probabilities, a label, or the five best."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from gati.errors import GatiError, RepositoryError
from gati.inference.session import open_session, run
from gati.repository.chain import Chain


class Tail:
    """Computes what else a chain gives than its scores, behind whoever answered.

    Args:
        repository: The model repository.
        chain: A chain that has a tail.

    Raises:
        RepositoryError: If its file can't be read or run, or is another one.
    """

    def __init__(self, repository: Path, chain: Chain) -> None:
        self._scores = chain.output.name
        content = chain.read_tail(repository)
        try:
            self._session = open_session(content)
        except Exception as error:  # ONNX Runtime's own errors share no base
            raise RepositoryError(f"{chain.tail_path(repository)} can't be run ({error}).") from error
        self._names = [node.name for node in self._session.get_outputs()]

    def outputs(self, scores: np.ndarray, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """Computes outputs, by name, each [rows, ...]: those of the wanted ones that are made here.

        Args:
            scores: [rows, classes].
            wanted: Names of outputs.

        Raises:
            GatiError: If they can't be computed of these scores.
        """
        names = [name for name in self._names if name in wanted]
        if not names:
            return {}
        try:
            return dict(zip(names, run(self._session, names, {self._scores: scores}), strict=True))
        except Exception as error:  # see above
            raise GatiError(f"{', '.join(names)} can't be computed of the scores.") from error
