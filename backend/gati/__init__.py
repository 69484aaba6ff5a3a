"""gati inside Triton: chains of segments and heads, served with early exits."""

__version__ = "0.1.0"
