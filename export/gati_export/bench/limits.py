"""Limits: the engine without a server, and an oracle that leaves at the first exit whose head is right."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from gati.inference.session import run
from gati.repository.agreement import parse_agreement
from gati.repository.chain import Chain
from gati_export.bench.arena import Arena
from gati_export.composition.latency import measure_segments
from gati_export.learning.candidates import Candidate, ask
from gati_export.samples.activations import open_segments
from gati_export.samples.ragged import count, rows_at

WARM_UP = 5


def time_engine(session: ort.InferenceSession, chain: Chain, requests: Mapping[str, np.ndarray]) -> np.ndarray:
    """Seconds that each of n requests takes in ONNX Runtime alone, one at a time: [n]."""
    singles = [rows_at(requests, [row]) for row in range(count(requests))]
    for feeds in singles[:WARM_UP]:
        run(session, [chain.output.name], feeds)
    taken = np.empty(len(singles))
    for row, feeds in enumerate(singles):
        start = time.perf_counter()
        run(session, [chain.output.name], feeds)
        taken[row] = time.perf_counter() - start
    return taken


def oracle_exits(arena: Arena, requests: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first exit of each request, in order, whose head of the live release agrees with the backbone: int64 [n]."""
    chain = arena.chain
    rows = np.arange(count(requests))
    exits = np.full(len(rows), chain.backbone_exit)
    heads = [Candidate(index, "live", model, 0.0) for index, model in sorted(arena.heads().items())]
    if not heads:
        return exits
    sessions = open_segments(chain.segment_paths(arena.source))
    said, outputs = ask(chain, sessions, heads, requests, rows, lambda *_: None)
    agree = parse_agreement(chain.agreement)
    for head, one in reversed([*zip(heads, said, strict=True)]):
        exits[agree(one.answers, outputs)] = head.cut
    return exits


def seconds_until(arena: Arena, requests: Mapping[str, np.ndarray]) -> np.ndarray:
    """Seconds of the backbone until each exit without any lookup, [cut points + 1], on this machine, batch 1."""
    chain = arena.chain
    paths = chain.segment_paths(arena.source)
    return np.cumsum(measure_segments(chain, paths, requests).segments)
