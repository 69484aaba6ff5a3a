"""Backbones: read from PyTorch or ONNX, cut into segments, and held against them."""
