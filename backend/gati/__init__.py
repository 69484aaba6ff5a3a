"""gati inside Triton: chains of segments and heads, served with early exits."""

import os

__version__ = "0.1.0"

# ONNX Runtime, from 1.29 on, tells its makers of each model that it opens, unless it finds this as it is imported. Who
# wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
