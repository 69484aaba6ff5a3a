"""Families of heads, each alone and composed, on one backbone and one workload: scripts/families.py FOLDER WORKLOAD.

FOLDER is as scripts/cifar.py or scripts/text.py leaves it. Heads of all families are trained once a seed; then for each
family, and for all of ours together, heads are chosen and certified on the traffic, and the chain is run on the
evaluation requests, which nothing before has seen: one by one in their order, in turns with the plain backbone. The
time of both is taken in this process, batch 1: the backbone's is the engine's, the chain's is the orchestrator's.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import click
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from gati.chain import Chain
from gati.errors import GatiError
from gati.flight import Answer, Request
from gati.inline import InlineEngine
from gati.options import json_option, write_json
from gati.orchestrator import Observer, Orchestrator
from gati.release import Window
from gati.session import open_session, run
from gati.watch import ReleaseWatch
from gati_export.activations import open_segments
from gati_export.backbone import load_backbone
from gati_export.candidates import Candidates, ask, fit_candidates
from gati_export.commands.common import progress
from gati_export.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.extra import with_extra
from gati_export.latency import measure_segments
from gati_export.publish import Draft, publish
from gati_export.samples import check_samples, load_samples
from gati_export.segments import cut, write_segments
from gati_export.splitting import EXTRA_SHARES, find_runs, fingerprint, split
from gati_export.training import Heard, Terms, Trained, decide
from gati_export.views import ENOUGH, with_views

OURS = ("pooled", "spatial", "recent")
TURN = 100
COLUMNS = (
    "families",
    "heads",
    "bound",
    "differs",
    "hits",
    "early",
    "MACs saved",
    "speed-up",
    "oracle",
    "lookups",
    "memory",
)


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
        exits: By exit, the share of the requests answered there, and of those the share answered as by the backbone.
        speedup: Time of the plain backbone ÷ time of the chain, measured in turns.
        interval: Of that, at 95 % confidence, by bootstrap over the turns.
        oracle: The same, expected, if every request left at the first cut point where any head is right, at no cost.
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
    exits: dict[int, tuple[float, float]]
    speedup: float
    interval: tuple[float, float]
    oracle: float
    lookups: float
    memory: float


class Served:
    """A chain as it is served inline, without a server around it: asked one request at a time."""

    def __init__(self, repository: Path, chain: Chain) -> None:
        engine = InlineEngine(repository, chain)
        self._releases = ReleaseWatch(repository, chain, engine, lambda *_: None, lambda _: None)
        self._releases.look()
        self._orchestrator = Orchestrator(chain, lambda: self._releases.live, cast(Observer, self), 0, lambda _: None)

    def answer(self, feeds: dict[str, np.ndarray]) -> Answer:
        """Asks one request."""
        answers: list[Answer | GatiError] = []
        self._orchestrator.serve([Request(feeds, False, answers.append)])
        if isinstance(answers[0], GatiError):
            raise answers[0]
        return answers[0]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None  # an observer that is not interested


@dataclass(frozen=True)
class Bench:
    """What does not change from one set of families to the next.

    Attributes:
        repository: Where the chain lies.
        chain: The chain.
        plain: The backbone.
        requests: The evaluation requests, by input.
        macs: Share of the backbone's operations that are done at each exit.
        size: Bytes of the backbone.
    """

    repository: Path
    chain: Chain
    plain: ort.InferenceSession
    requests: dict[str, np.ndarray]
    macs: Sequence[float]
    size: int

    def judge(self, name: str, trained: Trained) -> Row:
        """Runs a chain with these heads, and the plain backbone, on the requests in turns, and compares."""
        for index in self.chain.heads:
            shutil.rmtree(self.repository / self.chain.head_model(index), ignore_errors=True)
        if trained.certificate:
            draft = Draft(trained.heads, trained.certificate, Window("traffic", trained.certificate.n), "export")
            publish(self.repository, self.chain, draft)
        exits, wrong, taken = self._ask(Served(self.repository, self.chain))
        drawn = taken[np.random.default_rng(0).integers(0, len(taken), (2000, len(taken)))].sum(axis=1)
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
        times = trained.candidates.times
        until = np.cumsum(times.segments) / times.segments.sum()
        lookups = sum(head.seconds for head in trained.candidates.heads if trained.families.get(head.cut) == head.name)
        return Row(
            families=name,
            heads=dict(trained.families),
            bound=trained.certificate.bound if trained.certificate else None,
            disagreement=float(wrong.mean()),
            hits=float((exits < len(self.chain.heads)).mean()),
            early=float((until[exits] <= 0.5).mean()),
            macs_saved=float(1 - np.asarray(self.macs)[exits].mean()),
            exits={int(e): (float((exits == e).mean()), float(1 - wrong[exits == e].mean())) for e in np.unique(exits)},
            speedup=float(taken[:, 0].sum() / taken[:, 1].sum()),
            interval=(float(low), float(high)),
            oracle=float(times.segments.sum() / trained.choice.oracle_seconds) if trained.choice else 1.0,
            lookups=lookups / float(times.segments.sum()),
            memory=sum(map(len, trained.heads.values())) / self.size,
        )

    def _ask(self, served: Served) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exits, where answers differ, and the seconds of the backbone and of the chain by turn, [turns, 2]."""
        count = len(next(iter(self.requests.values())))
        exits, wrong, taken = np.empty(count, int), np.zeros(count, bool), []
        for start in range(0, count, TURN):
            rows = range(start, min(start + TURN, count))
            single = [{name: values[row : row + 1] for name, values in self.requests.items()} for row in rows]
            begun = time.perf_counter()
            expected = [run(self.plain, [self.chain.output.name], feeds)[0] for feeds in single]
            between = time.perf_counter()
            answers = [served.answer(feeds) for feeds in single]
            taken.append((between - begun, time.perf_counter() - between))
            exits[list(rows)] = [answer.exit[0, 0] for answer in answers]
            wrong[list(rows)] = [
                a.output.argmax() != truth.argmax() for a, truth in zip(answers, expected, strict=True)
            ]
        return exits, wrong, np.array(taken)


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
@click.option("--views", default=ENOUGH, show_default=True, help="Images to train on, at least.")
@click.option("--evaluate", default=6_000, show_default=True, help="Requests to judge by, at most.")
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="Where the composed chain's scores go; see simulate_certificate.py.",
)
@json_option
def main(
    folder: Path,
    workload: str,
    families: str,
    cut_points: int,
    seed: int,
    views: int,
    evaluate: int,
    scores: Path | None,
    json_path: Path | None,
) -> None:
    """Compares families of heads."""
    names = families.split(",")
    terms = Terms(seed=seed)
    traffic = load_samples(folder / f"{workload}-traffic.npz")
    with tempfile.TemporaryDirectory() as work, progress() as report:
        repository = Path(work) / "models"
        backbone = load_backbone(str(folder / "backbone.onnx"), lambda _: traffic, Path(work))
        traffic = check_samples(traffic, backbone.inputs)
        extra = check_samples(load_samples(folder / "extra.npz"), backbone.inputs)
        samples, parts = with_extra(traffic, split(traffic, find_runs(traffic), EXTRA_SHARES), extra)
        samples, parts = with_views(backbone.inputs, samples, parts, views, seed)
        points = choose_cutpoints(find_cutpoints(backbone, traffic), cut_points)
        chain = Chain("bench", "inline", backbone.inputs, backbone.output, (), terms.epsilon, terms.delta, 32)
        graphs = cut(backbone, points)
        chain = replace(chain, segments=write_segments(graphs, lambda k: chain.segment_path(repository, k).parent))
        paths = [chain.segment_path(repository, segment.index) for segment in chain.segments]
        sessions, times = open_segments(paths), measure_segments(chain, paths, samples)
        candidates = fit_candidates(chain, sessions, samples, parts, names, times, report, seed, {})
        tuned = ask(chain, sessions, candidates.heads, samples, parts.tune, report)
        held_out = ask(chain, sessions, candidates.heads, samples, parts.calibrate, report)
        requests = check_samples(load_samples(folder / f"{workload}-evaluate.npz"), backbone.inputs)
        bench = Bench(
            repository=repository,
            chain=chain,
            plain=open_session(backbone.path),
            requests={name: rows[:evaluate] for name, rows in requests.items()},
            macs=[*(point.share for point in points), 1.0],
            size=sum(path.stat().st_size for path in paths),
        )
        rows = []
        sets = [*((name,) for name in names), tuple(name for name in names if name in OURS), tuple(names)]
        for chosen in dict.fromkeys(sets):
            few, heard = subset(candidates, tuned, chosen)
            _, judged = subset(candidates, held_out, chosen)
            groups, digest = parts.groups[parts.calibrate], fingerprint(samples, parts.calibrate)
            trained = decide(chain, few, heard, judged, groups, terms, digest)
            rows.append(bench.judge("+".join(chosen), trained))
            Console().print(rows[-1], trained.why_not or "")
            if json_path:
                write_json(json_path, {"workload": workload, "seed": seed, "rows": [vars(row) for row in rows]})
            if scores and chosen == OURS[: len(chosen)]:
                _save(scores, trained, groups)
    _show(rows, workload)


def _save(path: Path, trained: Trained, groups: np.ndarray) -> None:
    """What the heads in use say to the calibration samples; those with state, as if each were alone."""
    if trained.choice is None:
        return
    used = [trained.calibration[place] for place in trained.choice.composition.chosen]
    np.savez(path, scores=[one.scores for one, _ in used], agree=[agree for _, agree in used], groups=groups)


def _show(rows: Sequence[Row], workload: str) -> None:
    table = Table(title=f"{workload}: families of heads")
    for column in COLUMNS:
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
            f"{row.speedup:.2f} ({row.interval[0]:.2f}–{row.interval[1]:.2f})",
            f"{row.oracle:.2f}",
            f"{row.lookups:.1%}",
            f"{row.memory:.1%}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
