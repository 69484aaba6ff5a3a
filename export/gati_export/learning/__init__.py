"""Heads from samples: trained, composed, certified, and written as ONNX."""
