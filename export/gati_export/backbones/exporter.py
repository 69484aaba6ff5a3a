"""PyTorch's exporter to ONNX, kept quiet, and quicker from the second time on."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """While PyTorch exports: keeps its progress, warnings and log from the user, who can act on none of them."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _nothing_printed(),
            _operators_found_once(),
        ):
            warnings.simplefilter("ignore")
            read_operators_once()
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Leaves out what PyTorch's C++ prints, whole graphs of what it could not export."""
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _operators_found_once() -> Iterator[None]:
    """Has PyTorch look for new operators once an export, not sixty times, which takes a sixth of a head's."""
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(ImportError, AttributeError):
            from torch._export import utils

            found: Any = utils
            find = found._materialize_cpp_cia_ops
            found._materialize_cpp_cia_ops = cache(find)
            undo.callback(setattr, found, "_materialize_cpp_cia_ops", find)
        yield


@cache
def read_operators_once() -> None:
    """Has the exporter read the source of its 500 operators once a process, and not at each export.

    That takes most of the time of a small network's. Where PyTorch keeps them elsewhere, all stays as it is, here and
    above.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter import _registration

        registry: Any = _registration.ONNXRegistry
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
