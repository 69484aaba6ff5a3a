"""Families of heads, each alone and composed, on one backbone and one workload: scripts/families.py FOLDER WORKLOAD.

FOLDER is as scripts/cifar.py or scripts/text.py leaves it. Heads of all families are trained once a seed; then for each
family, and for all of ours together, heads are chosen and certified on the traffic, and the chain is run on the
evaluation requests, which nothing before has seen: one by one in their order, in turns with the plain backbone. The
time of both is the engine's, batch 1, in this process; a chain's has its lookups and their state in it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from gati.chain import Chain
from gati.head import HIT, KEY
from gati.options import json_option, write_json
from gati.session import open_session, run
from gati.state import STATE_INPUTS, HeadState
from gati_export.activations import open_segments
from gati_export.backbone import Backbone, load_backbone
from gati_export.candidates import Candidates, ask, fit_candidates, halves
from gati_export.commands.common import progress
from gati_export.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.extra import with_extra
from gati_export.samples import check_samples, load_samples
from gati_export.segments import cut, write_segments
from gati_export.splitting import EXTRA_SHARES, find_runs, fingerprint, split
from gati_export.training import Heard, Terms, Trained, decide

OURS = ("pooled", "spatial", "recent")
TURN = 200
COLUMNS = "families", "heads", "bound", "differs", "hits", "early", "MACs saved", "speed-up", "lookups", "memory"


@dataclass(frozen=True)
class Row:
    """What one set of families came to.

    Attributes:
        families: Their names.
        heads: The heads chosen, by cut point.
        bound: What the certificate says; None where no heads serve.
        disagreement: Share of the evaluation requests answered otherwise than by the backbone.
        hits: Share answered by a head.
        early: Share answered in the first half of the backbone's time.
        macs_saved: Share of the backbone's multiply-accumulate operations that were not done.
        speedup: Time of the plain backbone ÷ time of the chain, measured in turns.
        lookups: Time of all lookups of a request that no head answers ÷ time of the backbone.
        memory: Bytes of the heads ÷ bytes of the backbone.
    """

    families: str
    heads: dict[int, str]
    bound: float | None
    disagreement: float
    hits: float
    early: float
    macs_saved: float
    speedup: float
    lookups: float
    memory: float


class Served:
    """A chain's sessions and state, to be run on one request at a time."""

    def __init__(self, chain: Chain, segments: Sequence[ort.InferenceSession], heads: dict[int, bytes]) -> None:
        self._chain = chain
        self._segments = segments
        self._heads = {index: open_session(model) for index, model in heads.items()}
        self._state = {index: HeadState(_state(session)) for index, session in self._heads.items()}
        self._names = {
            index: [chain.output.name, HIT] + [KEY] * any(o.name == KEY for o in session.get_outputs())
            for index, session in self._heads.items()
        }

    def answer(self, values: dict[str, np.ndarray]) -> tuple[int, np.ndarray]:
        """The exit and the answer of a request of one row."""
        keys: dict[int, np.ndarray] = {}
        last = len(self._segments) - 1
        exit_, answer = last, np.empty(0)
        for index, (segment, session) in enumerate(zip(self._chain.segments, self._segments, strict=True)):
            answer = run(session, [segment.output.name], {name: values[name] for name in segment.inputs})[0]
            values[segment.output.name] = answer
            if index in self._heads:
                found = run(
                    self._heads[index], self._names[index], {segment.output.name: answer, **self._state[index].feeds()}
                )
                if len(found) > 2:
                    keys[index] = found[2]
                if found[1][0]:
                    exit_, answer = index, found[0]
                    break
        for state in self._state.values():
            state.count(answer)
        if exit_ == last:
            for index, key in keys.items():
                self._state[index].remember(key, answer)
        return exit_, answer


def _state(session: ort.InferenceSession) -> dict[str, tuple[int, ...]]:
    return {node.name: tuple(node.shape) for node in session.get_inputs() if node.name in STATE_INPUTS}


def judge(
    chain: Chain,
    backbone: Backbone,
    sessions: Sequence[ort.InferenceSession],
    trained: Trained,
    requests: dict[str, np.ndarray],
    macs: Sequence[float],
    name: str,
    size: int,
) -> Row:
    """Runs a chain and its plain backbone on requests in turns, and compares."""
    plain = open_session(backbone.path)
    served = Served(chain, sessions, trained.heads)
    count = len(requests[chain.inputs[0].name])
    exits, wrong, taken = np.empty(count, int), np.zeros(count, bool), np.zeros(2)
    for start in range(0, count, TURN):
        rows = range(start, min(start + TURN, count))
        single = [{tensor.name: requests[tensor.name][row : row + 1] for tensor in chain.inputs} for row in rows]
        begun = time.perf_counter()
        expected = [run(plain, [chain.output.name], feeds)[0].argmax() for feeds in single]
        between = time.perf_counter()
        answers = [served.answer(dict(feeds)) for feeds in single]
        taken += (between - begun, time.perf_counter() - between)
        for row, truth, (exit_, answer) in zip(rows, expected, answers, strict=True):
            exits[row], wrong[row] = exit_, answer.argmax() != truth
    until = np.cumsum(trained.segment_seconds) / sum(trained.segment_seconds)
    lookups = sum(head.seconds for head in trained.candidates.heads if trained.families.get(head.cut) == head.name)
    return Row(
        families=name,
        heads=dict(trained.families),
        bound=trained.certificate.bound if trained.certificate else None,
        disagreement=float(wrong.mean()),
        hits=float((exits < len(chain.heads)).mean()),
        early=float((until[exits] <= 0.5).mean()),
        macs_saved=float(1 - np.asarray(macs)[exits].mean()),
        speedup=float(taken[0] / taken[1]),
        lookups=lookups / sum(trained.segment_seconds),
        memory=sum(map(len, trained.heads.values())) / size,
    )


def subset(candidates: Candidates, heard: Heard, families: Sequence[str]) -> tuple[Candidates, Heard]:
    """What is left of candidates, and of what they say, with only some families."""
    kept = [i for i, head in enumerate(candidates.heads) if head.name.split("-")[0].split("+")[0] in families]
    return replace(candidates, heads=[candidates.heads[i] for i in kept]), ([heard[0][i] for i in kept], heard[1])


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("workload")
@click.option("--families", default="pooled,spatial,recent,gati,selfxit,nearest", show_default=True)
@click.option("--cut-points", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--evaluate", default=6_000, show_default=True, help="Requests to judge by, at most.")
@json_option
def main(
    folder: Path, workload: str, families: str, cut_points: int, seed: int, evaluate: int, json_path: Path | None
) -> None:
    """Compares families of heads."""
    names = families.split(",")
    terms = Terms(seed=seed)
    traffic = load_samples(folder / f"{workload}-traffic.npz")
    with tempfile.TemporaryDirectory() as work, progress() as report:
        backbone = load_backbone(str(folder / "backbone.onnx"), lambda _: traffic, Path(work))
        traffic = check_samples(traffic, backbone.inputs)
        extra = check_samples(load_samples(folder / "extra.npz"), backbone.inputs)
        samples, parts = with_extra(traffic, split(traffic, find_runs(traffic), EXTRA_SHARES), extra)
        points = choose_cutpoints(find_cutpoints(backbone, traffic), cut_points)
        chain = Chain("bench", "inline", backbone.inputs, backbone.output, (), terms.epsilon, terms.delta, 32)
        chain = replace(chain, segments=write_segments(cut(backbone, points), lambda k: Path(work) / str(k)))
        paths = [Path(work) / str(k) / "model.onnx" for k in range(len(chain.segments))]
        sessions = open_segments(paths)
        candidates = fit_candidates(chain, sessions, samples, parts, names, report, seed, {})
        tuned = ask(chain, sessions, candidates.heads, samples, halves(parts)[1], report)
        held_out = ask(chain, sessions, candidates.heads, samples, parts.calibrate, report)
        requests = check_samples(load_samples(folder / f"{workload}-evaluate.npz"), backbone.inputs)
        requests = {name: rows[:evaluate] for name, rows in requests.items()}
        size = sum(path.stat().st_size for path in paths)
        macs = [*(point.share for point in points), 1.0]
        rows = []
        sets = [*((name,) for name in names), tuple(name for name in names if name in OURS), tuple(names)]
        for chosen in dict.fromkeys(sets):
            few, heard = subset(candidates, tuned, chosen)
            _, judged = subset(candidates, held_out, chosen)
            digest = fingerprint(samples, parts.calibrate)
            trained = decide(chain, few, heard, judged, parts.groups[parts.calibrate], terms, digest)
            rows.append(judge(chain, backbone, sessions, trained, requests, macs, "+".join(chosen), size))
            Console().print(rows[-1], trained.why_not or "")
            if json_path:
                write_json(json_path, {"workload": workload, "seed": seed, "rows": [vars(row) for row in rows]})
    _show(rows, workload)


def _show(rows: Sequence[Row], workload: str) -> None:
    table = Table(title=f"{workload}: families of heads")
    for column in (
        "families",
        "heads",
        "bound",
        "differs",
        "hits",
        "early",
        "MACs saved",
        "speed-up",
        "lookups",
        "memory",
    ):
        table.add_column(column, justify="left" if column in ("families", "heads") else "right")
    for row in rows:
        heads = ", ".join(f"{cut}:{name}" for cut, name in row.heads.items()) or "none"
        bound = "—" if row.bound is None else f"{row.bound:.2%}"
        shares = (row.disagreement, row.hits, row.early, row.macs_saved)
        table.add_row(
            row.families,
            heads,
            bound,
            *(f"{share:.1%}" for share in shares),
            f"{row.speedup:.2f}",
            f"{row.lookups:.1%}",
            f"{row.memory:.1%}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
