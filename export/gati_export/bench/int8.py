"""The backbone in int8, as ONNX Runtime's own tool makes it: python -m gati_export.bench.int8 IN OUT INPUTS.npz BITS.

A program of its own: what the tool takes of memory goes with it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gati.errors import BenchError
from gati_export.samples.ragged import count

SAMPLES = 200
"""To calibrate with: the tool keeps what each layer says to all of them."""
WHOLE, NARROW = "8", "7"
"""Bits of a weight, as the program is told."""


def quantise(model: Path, to: Path, samples: Mapping[str, np.ndarray], *, narrow: bool | None = None) -> None:
    """Writes the quantised model: static, QDQ, weights by channel.

    Args:
        model: The backbone's file.
        to: Where it goes.
        samples: To calibrate with, inputs by name, [n, ...].
        narrow: Whether weights get 7 bits of the 8; if None, as this processor needs it.

    Raises:
        BenchError: If the tool fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, **{name: values[:SAMPLES] for name, values in samples.items()})
        bits = NARROW if (_overflows() if narrow is None else narrow) else WHOLE
        command = [sys.executable, "-m", __name__, str(model), str(to), str(inputs), bits]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BenchError(f"ONNX Runtime's quantisation failed: {reason[:300]}")


def _overflows() -> bool:
    """Whether this processor adds up products of 8 bits in 16, as x86 does without VNNI: large weights overflow."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2]))
    except OSError:
        return False
    return "avx2" in flags and flags.isdisjoint({"avx512_vnni", "avx_vnni"})


def _quantise(model: str, to: str, inputs: str, bits: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = {name: values[:SAMPLES] for name, values in np.load(inputs).items()}  # also of a command line

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._steps = iter(range(count(rows)))

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            step = next(self._steps, None)
            return None if step is None else {name: values[step : step + 1] for name, values in rows.items()}

    prepared = str(Path(inputs).with_name("prepared.onnx"))
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        to,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=bits == NARROW,
    )


if __name__ == "__main__":
    _quantise(*sys.argv[1:])
