"""What the demo found: a table for the terminal, `demo.json`, and an HTML page with plots."""

from __future__ import annotations

import base64
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from gati.system.resources import cores
from gati_client.load import summary
from gati_export.demo.story import HOT, SHARE, Phase, Told

COLORS = {"plain": "#7a7a7a", "before": "#e0962f", "after": "#2f7fb8"}
BIN_SECONDS = 1.0


@dataclass(frozen=True)
class Stream:
    """All that the chain was asked: second, exit and release of each answered request, in order."""

    second: np.ndarray
    exit: np.ndarray
    release: np.ndarray


def stream(told: Told) -> Stream:
    """Joins the parts of the timeline."""
    parts = [(start, seen) for start, seen in told.timeline.parts if len(seen)]
    ok = np.concatenate([seen.exit >= 0 for _, seen in parts])
    return Stream(
        np.concatenate([start + seen.start[seen.request] for start, seen in parts])[ok],
        np.concatenate([seen.exit for _, seen in parts])[ok],
        np.concatenate([seen.release for _, seen in parts])[ok],
    )


def figures(told: Told) -> dict[str, Any]:
    """The figures, as `demo.json` has them."""
    before, after = told.phases
    plain = np.concatenate([phase.plain.latency[phase.plain.ok] for phase in told.phases])
    seen = stream(told)
    sent = [*(phase.plain for phase in told.phases), *(part for _, part in told.timeline.parts)]
    releases = dict.fromkeys(int(number) for number in seen.release if number > 0)
    return {
        "plain": summary(plain),
        "before_refresh": _phase(before),
        "after_refresh": _phase(after),
        "requests": sum(len(part) for part in sent),
        "failed": sum(part.errors for part in sent),
        "releases": list(releases),
        "conditions": {
            "workload": f"{HOT} of 10 digits carry {SHARE:.0%} of requests; every request is a new view",
            "requests_per_phase": len(before.chain),
            "concurrency": 1,
            "protocol": "gRPC",
            "cores": cores(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
    }


def _phase(phase: Phase) -> dict[str, Any]:
    both = phase.plain.ok & phase.chain.ok
    plain, chain = summary(phase.plain.latency[both]), summary(phase.chain.latency[both])
    exits, counts = np.unique(phase.chain.exit[phase.chain.ok], return_counts=True)
    return chain | {
        "speedup": plain["mean_ms"] / chain["mean_ms"],
        "agreement": float((phase.plain.answer == phase.chain.answer)[both].mean()),
        "exits": {str(exit_): int(count) for exit_, count in zip(exits, counts, strict=True)},
    }


def table(result: dict[str, Any]) -> Table:
    """The figures as a person reads them."""
    drawn = Table(box=box.SIMPLE_HEAD, title="What the demo measured", title_justify="left", caption_justify="left")
    drawn.add_column("")
    for column in ("mean", "p50", "p99", "speed-up", "agreement"):
        drawn.add_column(column, justify="right")
    drawn.add_row("plain model", *_times(result["plain"]), "1.00", "")
    lines = []
    for name, key in (("before refresh", "before_refresh"), ("after refresh", "after_refresh")):
        values = result[key]
        drawn.add_row(f"chain {name}", *_times(values), f"{values['speedup']:.2f}", f"{values['agreement']:.2%}")
        lines.append(f"exits {name}: " + ", ".join(f"{exit_}: {count}" for exit_, count in values["exits"].items()))
    seen = ", ".join(map(str, result["releases"]))
    lines.append(f"{result['requests']} requests, {result['failed']} failed; releases seen: {seen}")
    drawn.caption = "\n".join(lines)
    return drawn


def _times(values: dict[str, float]) -> list[str]:
    return [f"{values[key]:.2f} ms" for key in ("mean_ms", "p50_ms", "p99_ms")]


def write_page(path: Path, told: Told, result: dict[str, Any]) -> None:
    """Writes the HTML page, which needs no network to be read, and its pictures beside it as well."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gati_export", "demo"), autoescape=True)
    page = environment.get_template("report.html").render(
        result=result,
        latencies=_picture(_latencies(told), path.with_name("latencies.svg")),
        exits=_picture(_exits(told), path.with_name("exits.svg")),
    )
    path.write_text(page, encoding="utf-8")


def _latencies(told: Told) -> Figure:
    """Distributions side by side, one under the other on the same axis."""
    before, after = told.phases
    rows = (
        ("plain model", np.concatenate([before.plain.latency, after.plain.latency]), COLORS["plain"]),
        ("chain, before the refresh", before.chain.latency, COLORS["before"]),
        ("chain, after the refresh", after.chain.latency, COLORS["after"]),
    )
    upper = 1e3 * max(np.quantile(latency, 0.995) for _, latency, _ in rows)
    figure, axes = plt.subplots(3, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
    for axis, (name, latency, color) in zip(axes, rows, strict=True):
        axis.hist(latency * 1e3, bins=np.linspace(0, upper, 80), color=color)
        axis.axvline(latency.mean() * 1e3, color="black", linewidth=1)
        axis.set_title(f"{name}: mean {latency.mean() * 1e3:.2f} ms", loc="left", fontsize=10)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("latency of a request, ms (line: mean)")
    return figure


def _exits(told: Told) -> Figure:
    """Share of requests by exit over time, with the moment at which each release went live."""
    seen = stream(told)
    exits = np.unique(seen.exit)
    edges = np.arange(0, seen.second.max() + 2 * BIN_SECONDS, BIN_SECONDS)
    counts = np.stack([np.histogram(seen.second[seen.exit == exit_], edges)[0] for exit_ in exits])
    filled = counts.sum(0) > 0
    shares = counts[:, filled] / counts[:, filled].sum(0)
    middle = (edges[:-1] + edges[1:])[filled] / 2
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    colors = mpl.colormaps["viridis"](np.linspace(0.15, 0.95, len(exits)))
    last = int(exits[-1])
    labels = [f"after segment {exit_}" if exit_ != last else "backbone" for exit_ in exits]
    axis.stackplot(middle, shares, labels=labels, colors=colors)
    _mark_releases(axis, seen)
    axis.set(xlabel="seconds since the first request", ylabel="share of requests", ylim=(0, 1), xlim=(0, middle.max()))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False, fontsize=9)
    return figure


def _mark_releases(axis: Axes, seen: Stream) -> None:
    for number in np.unique(seen.release[seen.release > 0]):
        second = seen.second[seen.release == number].min()
        axis.axvline(second, color="white", linestyle="--", linewidth=1.5)
        axis.annotate(f" release {number}", (second, 1.01), xycoords=("data", "axes fraction"), fontsize=9)


def _picture(figure: Figure, path: Path) -> str:
    """Writes a figure; returns it as the address of a picture inside the page."""
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
