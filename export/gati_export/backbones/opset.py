"""Operators: those of an older backbone are brought up to the version of heads', so that both can be one graph.

Where versions differ in meaning, stages and heads can't be joined for single requests (gati.inference.steps).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnxscript import version_converter

from gati_export.backbones.backbone import Backbone
from gati_export.backbones.equality import BATCH, answers_alike

OPSET = 18
"""Version of ONNX's operators that heads are written in."""


def up_to_date(backbone: Backbone, samples: Mapping[str, np.ndarray] | None) -> Backbone:
    """Gives a backbone to be cut whose operators are no older than those of heads.

    Args:
        backbone: As it was loaded.
        samples: Rows to hold the new graph against the old one with.

    Returns:
        The backbone, with the same file; with the same graph as well, where that is recent enough, or nobody knows how
        to convert it, or the new one answers otherwise.
    """
    if backbone.model.graph.opset_imports.get("", OPSET) >= OPSET:
        return backbone
    found = backbone.model
    try:
        found = found.clone()
        _convert(found)
        sizes = (1,) if backbone.max_batch == 1 else (1, BATCH)
        batches = [backbone.batch(samples, size) for size in sizes]
        same = found.graph.opset_imports.get("") == OPSET and answers_alike(backbone, found, batches)
    except Exception:  # of several libraries
        same = False
    return replace(backbone, model=found) if same else backbone


def _convert(model: ir.Model) -> None:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what can't be converted stays as it is, which is no news to the user
    try:
        version_converter.convert_version(model, OPSET, fallback=True)
    finally:
        logging.disable(disabled)
