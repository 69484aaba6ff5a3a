"""Prepared: what is done to a backbone's graph so that it can be cut at more places. Answers stay the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gati_export.backbones.backbone import Backbone
from gati_export.backbones.batch_first import batch_first
from gati_export.backbones.opset import up_to_date
from gati_export.backbones.sizes import ask_inputs


def prepare(backbone: Backbone, samples: Mapping[str, np.ndarray] | None) -> Backbone:
    """Gives a backbone with the same file, and with a graph to be cut that answers as its own.

    Args:
        backbone: As it was loaded.
        samples: Rows to run it on.
    """
    for step in (up_to_date, ask_inputs, batch_first):
        backbone = step(backbone, samples)
    return backbone
