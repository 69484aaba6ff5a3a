"""The conditions that a benchmark was run under, without which its figures say nothing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import onnxruntime as ort

from gati import __version__
from gati.inference.session import threads
from gati.system.resources import cores
from gati_export.bench.arena import Arena
from gati_export.bench.plan import BenchPlan
from gati_export.bench.traffic import Traffic


def conditions(plan: BenchPlan, arena: Arena, traffic: Traffic, starts: Mapping[str, float]) -> dict[str, Any]:
    """The conditions of a benchmark, by name; `starts` has the seconds to a first answer, by contender."""
    return {
        "gati": __version__,
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {cores()} cores",
        "threads": threads(),
        "device": str(plan.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": plan.chain.model,
        "release": arena.release.number if arena.release else None,
        "epsilon": plan.chain.epsilon,
        "delta": plan.chain.delta,
        "agreement": plan.chain.agreement,
        "workload": plan.workload,
        "requests": plan.requests,
        "turns": plan.turns,
        "seed": plan.seed,
        "compared": traffic.measured - traffic.compared,
        "distinct": traffic.distinct,
        "repeats": traffic.repeats,
        "start_seconds": dict(starts),
    }
