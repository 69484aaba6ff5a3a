"""gati offline: cut a backbone, train heads, certify them, publish releases, refresh them from traffic."""

import gati  # noqa: F401  # first: it keeps ONNX Runtime from telling of models
