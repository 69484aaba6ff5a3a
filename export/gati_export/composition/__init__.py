"""Which heads at which cut points: latencies, replays, and the cheapest set that keeps the promise."""
