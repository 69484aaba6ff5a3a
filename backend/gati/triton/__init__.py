"""A tritonserver as a child process: found, started, watched, and ended."""
