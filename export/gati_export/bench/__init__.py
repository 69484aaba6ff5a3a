"""`gati bench`: a chain and what a user would pick instead, on a real tritonserver, by NVIDIA's perf_analyzer."""
