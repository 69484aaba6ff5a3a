"""PyTorch networks as ONNX files, in whichever way they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gati_export.backbones.program import export_module, export_saved
from gati_export.backbones.signature import Signature
from gati_export.backbones.torchscript import export_script


def to_onnx(source: str, samples: Mapping[str, np.ndarray] | None, path: Path, signature: Signature) -> str:
    """Writes a network as ONNX; returns what to know of that, if there is something.

    Args:
        source: A `.pt2` program, a `.pt` program, or `package.module:callable`.
        samples: Rows to call it with; a `.pt2` program is exported without.
        path: Where the ONNX file goes.
        signature: A `.pt` program's, as far as it is known.

    Raises:
        BackboneError: If it can't be read, called, or exported.
    """
    if source.endswith(".pt2"):
        export_saved(Path(source), path)
    elif source.endswith(".pt"):
        export_script(Path(source), samples, path, signature)
    else:
        return export_module(source, samples, path)
    return ""
