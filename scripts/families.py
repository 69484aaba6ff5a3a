"""Families of heads, each alone and composed, on one backbone and one workload: scripts/families.py FOLDER WORKLOAD.

FOLDER is as scripts/cifar.py or scripts/text.py leaves it. Heads of all families are trained once a seed; then for each
family, and for all of ours together, heads are chosen and certified on the traffic, and the chain is run on the
evaluation requests, which nothing before has seen: one by one in their order, in turns with the plain backbone. The
time of both is taken in this process, batch 1: the backbone's is the engine's, the chain's is the orchestrator's.
"""

from __future__ import annotations

import json
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
from families_table import Row, from_json, show
from rich.console import Console

from gati.errors import GatiError
from gati.inference.inline import InlineEngine
from gati.inference.session import open_session, run
from gati.options import json_option, write_json
from gati.repository.chain import Chain
from gati.repository.release import Window
from gati.serving.flight import Answer, Request
from gati.serving.orchestrator import Observer, Orchestrator
from gati.serving.watch import ReleaseWatch
from gati_export.backbones.backbone import load_backbone
from gati_export.backbones.cutpoints import choose_cutpoints, find_cutpoints
from gati_export.backbones.segments import cut, write_segments
from gati_export.certificates.runs import find_runs
from gati_export.certificates.splitting import Split, split
from gati_export.certificates.train_samples import with_train_samples
from gati_export.certificates.views import with_views
from gati_export.commands.common import shown_progress
from gati_export.composition.latency import Measured, measure_segments
from gati_export.learning.candidates import Candidates, Heard, ask, fit_candidates
from gati_export.learning.task import Task
from gati_export.learning.trained import Certified, NoHeads, Trained
from gati_export.learning.training import decide
from gati_export.progress import Progress
from gati_export.releases.publish import Draft, publish
from gati_export.samples.activations import open_segments
from gati_export.samples.samples import check_samples, load_samples
from gati_export.terms import ENOUGH, Terms

OURS = ("pooled", "spatial", "recent")
TURN = 100


class Served:
    """A chain as it is served inline, without a server around it: asked one request at a time."""

    def __init__(self, repository: Path, chain: Chain) -> None:
        engine = InlineEngine(repository, chain)
        self._releases = ReleaseWatch(repository, chain, engine, lambda *_: None, lambda _: None)
        for _ in range(2):  # the second completes what the first has found
            self._releases.look()
        self._orchestrator = Orchestrator(chain, lambda: self._releases.live, cast(Observer, self), lambda _: None)

    def answer(self, feeds: dict[str, np.ndarray]) -> Answer:
        """Asks one request."""
        answers: list[Answer | GatiError] = []
        self._orchestrator.serve([Request(feeds, False, lambda answer, _: answers.append(answer))])
        if isinstance(answers[0], GatiError):
            raise answers[0]
        return answers[0]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None  # an observer that is not interested


@dataclass(frozen=True)
class Trial:
    """What does not change from one set of families to the next.

    Attributes:
        repository: Where the chain lies.
        task: What was to be learned.
        plain: The backbone.
        requests: The evaluation requests, by input.
        macs: Share of the backbone's operations that are done at each exit.
        size: Bytes of the backbone.
        candidates: Heads of all families.
        tuned: What these say to the tuning samples.
        held_out: The same of the calibration samples.
    """

    repository: Path
    task: Task
    plain: ort.InferenceSession
    requests: dict[str, np.ndarray]
    macs: Sequence[float]
    size: int
    candidates: Candidates
    tuned: Heard
    held_out: Heard

    def compose(self, families: Sequence[str]) -> Trained:
        """The heads of these families that are chosen and certified."""
        few, tuned = subset(self.candidates, self.tuned, families)
        _, held_out = subset(self.candidates, self.held_out, families)
        return decide(self.task, few, tuned, held_out)

    def judge(self, name: str, seed: int, trained: Trained, most: int) -> Row:
        """Runs a chain with these heads, and the plain backbone, on the requests in turns, and compares."""
        chain, certified = self.task.chain, trained if isinstance(trained, Certified) else None
        for index in chain.heads:
            shutil.rmtree(self.repository / chain.head_model(index), ignore_errors=True)
        if certified:
            window = Window("traffic", certified.certificate.n)
            publish(self.repository, chain, Draft(certified.heads, certified.certificate, window, "export"))
        requests = {name: rows[:most] for name, rows in self.requests.items()}
        exits, wrong, taken = self._ask(Served(self.repository, chain), requests)
        drawn = taken[np.random.default_rng(0).integers(0, len(taken), (2000, len(taken)))].sum(axis=1)
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
        times = trained.candidates.times
        until = np.cumsum(times.segments) / times.plain
        used = certified.judged.chosen if certified else []
        return Row(
            families=name,
            seed=seed,
            heads={head.cut: head.name for head in used},
            bound=certified.certificate.bound if certified else None,
            disagreement=float(wrong.mean()),
            hits=float((exits < chain.backbone_exit).mean()),
            early=float((until[exits] <= 0.5).mean()),
            macs_saved=float(1 - np.asarray(self.macs)[exits].mean()),
            exits={int(e): (float((exits == e).mean()), float(1 - wrong[exits == e].mean())) for e in np.unique(exits)},
            speedup=float(taken[:, 0].sum() / taken[:, 1].sum()),
            interval=(float(low), float(high)),
            oracle=times.plain / trained.judged.choice.oracle_seconds if trained.judged else 1.0,
            lookups=sum(head.seconds for head in used) / times.plain,
            memory=sum(map(len, certified.heads.values())) / self.size if certified else 0.0,
        )

    def _ask(self, served: Served, requests: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exits, where answers differ, and the seconds of the backbone and of the chain by turn, [turns, 2]."""
        count = len(next(iter(requests.values())))
        exits, wrong, taken = np.empty(count, int), np.zeros(count, bool), []
        for start in range(0, count, TURN):
            rows = range(start, min(start + TURN, count))
            single = [{name: values[row : row + 1] for name, values in requests.items()} for row in rows]
            begun = time.perf_counter()
            expected = [run(self.plain, [self.task.chain.output.name], feeds)[0] for feeds in single]
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
    few = replace(candidates, heads=[candidates.heads[i] for i in kept])
    return few, Heard([heard.said[i] for i in kept], heard.outputs)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("workload")
@click.option("--families", default="pooled,spatial,recent,gati,selfxit,nearest", show_default=True)
@click.option("--cut-points", default=8, show_default=True)
@click.option("--seeds", default="0", show_default=True, help="Of training, separated by commas: one run each.")
@click.option(
    "--beside", type=click.Path(exists=True, path_type=Path), multiple=True, help="Rows of earlier runs (--json)."
)
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
    seeds: str,
    beside: tuple[Path, ...],
    views: int,
    evaluate: int,
    scores: Path | None,
    json_path: Path | None,
) -> None:
    """Compares families of heads."""
    names = families.split(",")
    rows = [from_json(row) for path in beside for row in json.loads(path.read_text())["rows"]]
    for seed in map(int, seeds.split(",")):
        with tempfile.TemporaryDirectory() as work, shown_progress() as progress:
            trial = _train(folder, workload, names, cut_points, views, seed, Path(work), progress)
            composed = tuple(name for name in names if name in OURS) or tuple(names)
            sets = [*((name,) for name in names), composed, tuple(names)]
            for chosen in dict.fromkeys(sets):
                trained = trial.compose(chosen)
                rows.append(trial.judge("+".join(chosen), seed, trained, evaluate))
                Console().print(rows[-1], trained.why if isinstance(trained, NoHeads) else "")
                if json_path:
                    write_json(json_path, {"workload": workload, "rows": [vars(row) for row in rows]})
                if scores and chosen == composed:
                    _save(scores, trained, trial.task.split)
    show(rows, workload)


def _train(
    folder: Path,
    workload: str,
    names: list[str],
    cut_points: int,
    views: int,
    seed: int,
    work: Path,
    progress: Progress,
) -> Trial:
    """Cuts the backbone, and trains heads of all families."""
    terms = Terms(seed=seed)
    traffic = load_samples(folder / f"{workload}-traffic.npz")
    repository = work / "models"
    backbone = load_backbone(str(folder / "backbone.onnx"), lambda _: traffic, work)
    traffic = check_samples(traffic, backbone.inputs)
    extra = check_samples(load_samples(folder / "extra.npz"), backbone.inputs)
    samples, parts = with_train_samples(traffic, split(traffic, find_runs(traffic), extra=True), extra)
    samples, parts = with_views(backbone.inputs, samples, parts, views, seed)
    points = choose_cutpoints(find_cutpoints(backbone, traffic), cut_points)
    chain = Chain("bench", "inline", backbone.inputs, backbone.output, (), terms.epsilon, terms.delta, 32)
    graphs = cut(backbone, points)
    chain = replace(chain, segments=write_segments(graphs, lambda k: chain.segment_path(repository, k).parent))
    paths = chain.segment_paths(repository)
    sessions, measured = open_segments(paths), Measured(measure_segments(chain, paths, samples), {})
    task = Task(chain, paths, samples, parts, terms)
    candidates = fit_candidates(task, sessions, names, measured, progress)
    return Trial(
        repository=repository,
        task=task,
        plain=open_session(backbone.path),
        requests=check_samples(load_samples(folder / f"{workload}-evaluate.npz"), backbone.inputs),
        macs=[*(point.share for point in points), 1.0],
        size=sum(path.stat().st_size for path in paths),
        candidates=candidates,
        tuned=ask(chain, sessions, candidates.heads, samples, parts.tune, progress),
        held_out=ask(chain, sessions, candidates.heads, samples, parts.calibrate, progress),
    )


def _save(path: Path, trained: Trained, parts: Split) -> None:
    """What the heads in use say to the calibration samples; those with state, as if each were alone."""
    judged = trained.judged
    if judged is None:
        return
    used = judged.choice.composition.chosen
    scores, agree = [judged.said[place].scores for place in used], [judged.agrees[place] for place in used]
    np.savez(path, scores=scores, agree=agree, groups=parts.groups[parts.calibrate])


if __name__ == "__main__":
    main()
