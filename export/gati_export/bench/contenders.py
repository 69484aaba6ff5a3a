"""What is measured: the plain backbone, the chain in several guises, and what could serve instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

from gati.errors import BackboneError, BenchError
from gati.inference.fuse import fuse
from gati.inference.session import run
from gati.repository.chain import Chain, Mode, Segment, sha256_of
from gati.repository.release import Certificate, Release, Window, valid_releases
from gati_export.bench.arena import Arena, Contender
from gati_export.bench.int8 import SAMPLES, quantise
from gati_export.bench.linear import linear_head
from gati_export.bench.plan import BenchPlan
from gati_export.bench.rows import BYPASSED, MOSTLY_HITS, PLAIN
from gati_export.bench.traffic import Feeds
from gati_export.certificates.certificate import uncertified
from gati_export.composition.replay import has_state
from gati_export.learning.candidates import Candidate, ask
from gati_export.learning.headfile import CLOSED, with_threshold
from gati_export.progress import Progress
from gati_export.releases.publish import Draft, publish
from gati_export.releases.repository import copy_config, move, onnx_config, plain_name, write_config, write_repository
from gati_export.report.day import named, read_day
from gati_export.samples.activations import open_segments
from gati_export.samples.ragged import count, rows_at, typical

PARTS = 4
"""Segments of the chain that shows what the mechanism costs."""
MOST, SCORED = 0.8, 512
"""The share of requests that hit at the first exit where traffic is easy, and how many tell which these are."""
CERTAIN = 1 - 1e-9
"""An ε that no answer breaks: a chain that is made to hit answers wrongly, and its breaker would open."""


def set_up(folder: Path, plan: BenchPlan, peers: Mapping[str, Mapping[int, bytes]], progress: Progress) -> Arena:
    """Writes the repository: the plain backbone, the chain, and what a user would pick instead.

    Args:
        folder: An empty folder for it, best on the file system of the plan's repository: files are linked then.
        plan: What is to be measured.
        peers: Other heads for the same segments, by name and cut point.
        progress: Told how far it is.

    Raises:
        RepositoryError: If the chain's files can't be read, or one of them is damaged.
        BenchError: If the chain runs in none of the modes.
    """
    chain = plan.chain
    for segment in chain.segments:
        chain.check_segment(plan.repository, segment.index)
    release = next(valid_releases(plan.repository, chain), None)
    # what follows from scores is the same for everybody, and left out
    arena = Arena(folder, plan.repository, replace(chain, outputs=(), tail="", labels=()), plan.device, release)
    _add_plain(arena, None if chain.tail else plan.repository / plain_name(chain.model))
    _add_served(arena, plan.modes)
    progress("Set up", 0.5)
    if "cache" in plan.against:
        _add_cached(arena)
    if "int8" in plan.against:
        if plan.learn_from is None:
            arena.notes.append(
                "int8 was calibrated on the requests' own samples, in its favour; --samples gives others."
            )
        _add_int8(arena, plan.learn_from or plan.samples)
    for name, others in peers.items():
        if others:
            _add_chain(arena, name, "inline", others)
    progress("Set up", 1)
    return arena


def add_studies(arena: Arena, requests: Feeds) -> None:
    """Adds what shows where a chain's time goes: the mechanism alone, and its own heads made to miss and to hit.

    Args:
        arena: The repository.
        requests: Such as will be asked, by input, [n, ...]: they tell from which score on most hit.
    """
    _add_mechanism(arena)
    _add_forced(arena, requests)


def _add_plain(arena: Arena, exported: Path | None) -> None:
    """The backbone: as it was exported with --plain, or put together from its segments."""
    if exported is not None and exported.exists():
        _write_model(arena, PLAIN, exported / "1" / "model.onnx")
        copy_config(exported, arena.repository, PLAIN)
        move(arena.repository, PLAIN, arena.device)
    else:
        _write_model(arena, PLAIN, _fused(arena, range(len(arena.chain.segments))))
        if arena.chain.engine == "tensorrt":
            arena.notes.append("plain: ONNX Runtime runs it; export with --plain, so that TensorRT does.")
    arena.contenders.append(Contender(PLAIN))


def _add_served(arena: Arena, modes: Sequence[Mode]) -> None:
    """The chain as it is."""
    heads, release = arena.heads(), arena.release
    if release is None:
        arena.notes.append(f"{arena.chain.model!r} has no release: its chain is the backbone in one stage.")
    else:
        arena.notes += _closed_in_service(arena, release)
    for mode in modes:
        if mode == "bls" and any(map(has_state, heads.values())):
            arena.notes.append("chain-bls: heads with state are for inline chains.")
        else:
            _add_chain(arena, f"chain-{mode}", mode, heads, release.certificate if release else None)
    if len(arena.contenders) == 1:
        raise BenchError(
            f"{arena.chain.model!r} has heads with state, which run in inline mode; ask for --modes inline."
        )


def _closed_in_service(arena: Arena, release: Release) -> list[str]:
    """What to know of a release of which audits have closed exits where it serves: copies know nothing of it."""
    closed = read_day(arena.source, arena.chain.model, release=release.number).closed_exits(release.number)
    if not closed:
        return []
    return [
        f"Audits have closed {named(closed)} of release {release.number} where it serves; here all are open at first."
    ]


def _add_forced(arena: Arena, requests: Feeds) -> None:
    """The chain with its own heads forced to miss, to hit at each exit, and to hit at the first for most requests.

    Those ask their heads in any case; bypassed, the chain whose heads miss goes past them as it would in service.
    """
    heads = arena.heads()
    closed = {index: with_threshold(model, CLOSED) for index, model in heads.items()}
    if heads:
        _add_chain(arena, "all-miss", "inline", closed)
        _add_chain(arena, BYPASSED, "inline", closed, arena.release and arena.release.certificate)
        first = min(heads)
        threshold = _reached(arena, Candidate(first, "live", heads[first], 0.0), requests)
        _add_chain(arena, MOSTLY_HITS, "inline", heads | {first: with_threshold(heads[first], threshold)})
    for index, model in heads.items():
        _add_chain(arena, f"hit-{index}", "inline", closed | {index: with_threshold(model, 0)})


def _reached(arena: Arena, head: Candidate, requests: Feeds) -> float:
    """The threshold that a head's score reaches for `MOST` of the requests."""
    sessions = open_segments(arena.chain.segment_paths(arena.source))
    (said,), _ = ask(arena.chain, sessions, [head], requests, np.arange(count(requests)), lambda *_: None)
    return float(np.quantile(said.scores, 1 - MOST, method="lower"))


def _fused(arena: Arena, part: range) -> bytes:
    return fuse([arena.chain.segment_path(arena.source, index).read_bytes() for index in part])


def _write_model(arena: Arena, name: str, model: Path | bytes, cached: bool = False) -> None:
    path = arena.repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    if isinstance(model, bytes):
        path.write_bytes(model)
    else:
        _link(model, path)
    config = onnx_config(name, arena.chain.inputs, [arena.chain.output], arena.chain.max_batch)
    config.response_cache.enable = cached
    write_config(arena.repository, config)
    move(arena.repository, name, arena.device)


def _link(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, to)


def _add_chain(
    arena: Arena,
    name: str,
    mode: Mode,
    heads: Mapping[int, bytes],
    certificate: Certificate | None = None,
) -> None:
    """The chain under another name, with these heads; its breaker keeps to the promise where there is one."""
    chain = replace(arena.chain, model=name, mode=mode, epsilon=arena.chain.epsilon if certificate else CERTAIN)
    for segment in chain.segments:
        path = chain.segment_path(arena.repository, segment.index)
        path.parent.mkdir(parents=True)
        for file in arena.chain.segment_path(arena.source, segment.index).parent.iterdir():
            _link(file, path.with_name(file.name))
    write_repository(arena.repository, chain)
    if mode == "bls":  # as it is served, with TensorRT say
        for segment in chain.segments:
            served = arena.source / arena.chain.segment_model(segment.index)
            copy_config(served, arena.repository, chain.segment_model(segment.index))
    _publish(arena, chain, heads, certificate)
    arena.contenders.append(Contender(name, chain))


def _publish(arena: Arena, chain: Chain, heads: Mapping[int, bytes], certificate: Certificate | None) -> None:
    if heads:
        known = certificate or uncertified(CERTAIN, 0.5)
        publish(arena.repository, chain, Draft(dict(heads), known, Window("benchmark", 0), "benchmark"))


def _add_mechanism(arena: Arena) -> None:
    """Segments of about equal compute, with a pooled linear head each that always misses: what gati itself costs."""
    cuts = _even_cuts(arena.chain)
    if len(cuts) < PARTS - 1:
        arena.notes.append(f"mechanism: the chain has fewer than {PARTS - 1} cut points.")
        return
    chain = replace(arena.chain, model="mechanism", mode="inline", epsilon=CERTAIN)
    starts = [0, *(cut + 1 for cut in cuts), len(arena.chain.segments)]
    parts = [range(*pair) for pair in pairwise(starts)]
    segments = []
    for index, part in enumerate(parts):
        path = chain.segment_path(arena.repository, index)
        path.parent.mkdir(parents=True)
        model = _fused(arena, part)
        path.write_bytes(model)
        inputs = tuple(value.name for value in onnx.load_model_from_string(model).graph.input)
        last = arena.chain.segments[part[-1]]
        segments.append(Segment(index, inputs, last.output, sha256_of(path), last.share))
    chain = replace(chain, segments=tuple(segments))
    try:
        heads = {index: linear_head(segments[index].output, chain.output) for index in chain.heads}
    except BackboneError as error:
        arena.notes.append(f"mechanism: {error}")
        return
    write_repository(arena.repository, chain)
    _publish(arena, chain, heads, None)
    arena.contenders.append(Contender("mechanism", chain))


def _even_cuts(chain: Chain) -> list[int]:
    """The cut points that are nearest to a quarter, a half and three quarters of the compute."""
    left = set(chain.heads)
    chosen = []
    for part in range(1, PARTS):
        if left:
            chosen.append(min(left, key=lambda index: abs(chain.segments[index].share - part / PARTS)))
            left.remove(chosen[-1])
    return sorted(chosen)


def _add_cached(arena: Arena) -> None:
    """The backbone behind Triton's own response cache."""
    _write_model(arena, "response-cache", arena.backbone(), cached=True)
    arena.contenders.append(Contender("response-cache"))


def _add_int8(arena: Arena, samples: Mapping[str, np.ndarray]) -> None:
    """The backbone in int8, and the chain with its segments in int8 and its heads as they are."""
    path = arena.repository.with_name(f"{arena.repository.name}.int8.onnx")
    try:
        some = rows_at(samples, typical(samples)[:SAMPLES])
        quantise(arena.backbone(), path, some)
        _write_model(arena, "int8", path)
        arena.contenders.append(Contender("int8"))
        _add_int8_chain(arena, some)
    except BenchError as error:
        arena.notes.append(f"int8: {error}")


def _add_int8_chain(arena: Arena, samples: Mapping[str, np.ndarray]) -> None:
    """Each segment by itself, calibrated on what the ones before, unquantised, give."""
    chain = replace(arena.chain, model="chain-int8", mode="inline")
    files = arena.chain.segment_paths(arena.source)
    given, segments = dict(samples), []
    for segment, file, session in zip(chain.segments, files, open_segments(files), strict=True):
        feeds = {name: given[name] for name in segment.inputs}
        to = chain.segment_path(arena.repository, segment.index)
        to.parent.mkdir(parents=True)
        quantise(file, to, feeds)
        singles = [rows_at(feeds, [row]) for row in range(count(feeds))]
        given[segment.output.name] = np.concatenate([run(session, [segment.output.name], feed)[0] for feed in singles])
        segments.append(replace(segment, sha256=sha256_of(to)))
    chain = replace(chain, segments=tuple(segments))
    write_repository(arena.repository, chain)
    _publish(arena, chain, arena.heads(), arena.release.certificate if arena.release else None)
    arena.contenders.append(Contender("chain-int8", chain))
