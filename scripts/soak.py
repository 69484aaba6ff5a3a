"""Everything together for a while: soak.py [REPOSITORY], by default the clone's own chain of digits.

Two `gati serve` on one repository, `gati refresh --watch` beside them, clients whose popular digits drift, and faults
at random (faults.py); what happens is told as it does. At the end every answer that was given is compared with the
backbone's, which takes about as long again. Exits with 1 if a request failed that no fault excuses, if more answers
differ than the promise allows, or if a server serves anything but the newest release on disk.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np
from faults import Excuse, Faults
from rich.console import Console
from rich.table import Table
from scipy.stats import binom
from world import Replica, World

from gati.chain import find_chains, read_chain
from gati.errors import GatiError
from gati.options import existing_folder, json_option, write_json
from gati.release import valid_releases
from gati.settings import workspace
from gati_client import Client
from gati_client.errors import ClientError
from gati_client.workload import hot
from gati_export.activations import open_segments, run_batches
from gati_export.day import Day, read_day
from gati_export.demo.digits import Pool, pools, views
from gati_export.history import Turn, turns

CLONE = Path(__file__).parents[1] / "model_repository"
REPLICAS = 2
"""Servers, and clients: one asks each."""
BLOCK = 100
"""Requests that are drawn at a time."""
DWELL = 3000
"""Requests after which other digits are popular."""
SURE = 0.999
QUIET_SECONDS = 45
"""At the end, in which nothing happens any more, for all to settle."""
WATCH = ("--every", "20", "--fresh", "1000", "--window", "6000")
"""How the refresher watches."""


@dataclass
class Asked:
    """What a server was asked, and answered.

    Attributes:
        rows: The request's number, the class that it was told, and the release.
        seconds: How long that took.
        errors: When requests failed, and what was said.
    """

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)


class Traffic:
    """Views of digits, two of which are popular for a while, then two others; the same seed, the same views."""

    def __init__(self, pool: Pool, length: int, seed: int) -> None:
        self._pool, self._seed = pool, seed
        self._index = hot(pool.labels, length, seed=seed, hot=2, share=0.9, dwell=DWELL)
        self._lock, self._next = threading.Lock(), 0

    def block(self, number: int) -> np.ndarray:
        """The requests of a block, float32 [BLOCK, 1, 64, 64]."""
        index = self._index[number * BLOCK : (number + 1) * BLOCK]
        return views(self._pool, index, self._seed * 1_000_003 + number)

    def take(self) -> Iterator[tuple[int, np.ndarray]]:
        """One request after another with its number, shared by all clients."""
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            for i, image in enumerate(self.block(number)):
                yield number * BLOCK + i, image[None]


def say(words: str) -> None:
    """Tells whoever watches."""
    click.echo(words, err=True)


def ask(replica: Replica, model: str, traffic: Traffic, asked: Asked, done: threading.Event) -> None:
    """Asks a server one request after another until told to end; after a failure, a moment later."""
    with Client(replica.address, model) as client:
        for number, image in traffic.take():
            if done.is_set():
                return
            started = time.monotonic()
            try:
                answer = client.infer(image)
            except ClientError as error:
                asked.errors.append((time.monotonic(), str(error)))
                done.wait(0.2)
                continue
            asked.seconds.append(time.monotonic() - started)
            release = 0 if answer.release is None else int(answer.release[0])
            asked.rows.append((number, int(answer.output.argmax()), release))


def disturb(
    faults: Faults, minutes: float, pause: float, random: np.random.Generator, asked: Sequence[Asked]
) -> Counter[str]:
    """Has one thing or another happen, about every so many seconds, and says so; gives what happened how often."""
    seen: Counter[str] = Counter()
    started = time.monotonic()
    end = started + 60 * minutes
    while time.monotonic() + (wait := random.uniform(0.5, 1.5) * pause) < end - QUIET_SECONDS:
        time.sleep(wait)
        answered, failed = sum(len(one.rows) for one in asked), sum(len(one.errors) for one in asked)
        at = time.monotonic() - started
        name = faults.happen()
        say(f"{at:5.0f} s: {answered:,} answered, {failed:,} failed; {name}")
        seen[name] += 1
    faults.end()
    time.sleep(max(0, end - time.monotonic()))
    return seen


def wrong(world: World, traffic: Traffic, numbers: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Which of these requests were told another class than the backbone's, bool [requests]."""
    chain = world.chain
    sessions = open_segments(chain.segment_paths(world.repository))
    truth = np.empty(len(numbers), int)
    for block in np.unique(numbers // BLOCK):
        of = numbers // BLOCK == block
        samples = {chain.inputs[0].name: traffic.block(int(block))}
        batches = run_batches(chain, sessions, samples, numbers[of] - block * BLOCK, lambda *_: None)
        truth[of] = np.concatenate([hidden[-1].argmax(1) for _, hidden in batches])
    return told != truth


def inexcusable(asked: Asked, excused: Sequence[Excuse]) -> list[str]:
    """What was said of requests that failed while nothing excused it."""
    return [said for at, said in asked.errors if not any(start <= at <= end for start, end in excused)]


def recount(day: Day, decided: Sequence[Turn], evidence: Path) -> None:
    """Says what became of releases and exits, what refreshes decided, and what audits found of which heads."""
    for happening in reversed(day.happenings):
        say(f"{happening.at:%H:%M:%S} {happening.words}")
    for turn in decided:
        say(f"{turn.at[11:19]} Turn of {turn.took:.0f} s: {turn.why}")
    for file in evidence.glob("*.json"):
        for heads, past in json.loads(file.read_text())["heads"].items():
            _, drawn, _, *differed = np.sum(past["blocks"], axis=0)
            say(f"Heads of origin {heads.split(':')[0]}: {drawn} requests drawn, {sum(differed)} differ.")


@dataclass(frozen=True)
class Verdict:
    """Something that was found, and whether it is as was promised."""

    name: str
    value: str
    kept: bool = True


def verdicts(asked: Sequence[Asked], unexcused: int, differs: np.ndarray, epsilon: float) -> Iterator[Verdict]:
    """What clients saw; `differs`, bool, in the order of their rows."""
    releases = np.concatenate([[release for *_, release in one.rows] for one in asked])
    seconds = np.concatenate([one.seconds for one in asked])
    allowed = int(binom.ppf(SURE, len(differs), epsilon))
    yield Verdict("requests answered", f"{len(differs):,}")
    yield Verdict("failed while a process was killed", str(sum(len(one.errors) for one in asked) - unexcused))
    yield Verdict("failed with no excuse", str(unexcused), not unexcused)
    count = int(differs.sum())
    share = f"{count:,}, {count / len(differs):.2%}"
    yield Verdict(f"answers that differ (allowed: {allowed:,})", share, count <= allowed)
    for release in np.unique(releases[releases > 0]):
        of = differs[releases == release]
        yield Verdict(f"answers of release {release}", f"{len(of):,}, {of.mean():.2%} differ")
    yield Verdict("mean, p99 ms", f"{1e3 * seconds.mean():.2f}, {1e3 * np.quantile(seconds, 0.99):.1f}")


@click.command()
@click.argument("repository", type=existing_folder, default=CLONE)
@click.option("--minutes", type=click.FloatRange(1), default=10, show_default=True)
@click.option("--pause", type=click.FloatRange(1), default=10, show_default=True, help="Seconds between faults.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--folder",
    type=existing_folder,
    help="Where to serve from. If it lies on a file system of 4 GiB at most, that is filled at times.  [default: a "
    "temporary folder]",
)
@json_option
def main(
    repository: Path, minutes: float, pause: float, seed: int, folder: Path | None, json_path: Path | None
) -> None:
    """Serve, refresh, drift and break things for a while, and see what was promised kept."""
    with tempfile.TemporaryDirectory(dir=folder) as served, tempfile.TemporaryDirectory() as logs:
        copy = Path(served) / "models"
        shutil.copytree(repository, copy)
        chain = read_chain(copy, find_chains(copy)[0])
        traffic, done = Traffic(pools()[1], int(minutes * 60 * 500), seed), threading.Event()
        random = np.random.default_rng(seed)
        world = World(copy, chain, Path(logs), WATCH, replicas=REPLICAS)
        faults = Faults(world, Path(served), random)
        asked = {replica: Asked() for replica in world.replicas}
        clients = [threading.Thread(target=ask, args=(r, chain.model, traffic, a, done)) for r, a in asked.items()]
        try:
            for client in clients:
                client.start()
            happened = disturb(faults, minutes, pause, random, [*asked.values()])
            newest, live = next(valid_releases(copy, chain)).number, world.live()
        except GatiError as error:
            raise click.ClickException(str(error)) from error
        finally:
            done.set()
            for client in clients:
                client.join()
            faults.end()
            world.stop()
        rows = [row for one in asked.values() for row in one.rows]
        say(f"Comparing {len(rows):,} answers with the backbone's.")
        differs = wrong(world, traffic, np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))
        decided = turns(copy, chain.model)
        recount(read_day(copy, chain.model), decided, workspace(copy) / "breaker" / chain.model)
        said = world.said()
    unexcused = [error for replica, one in asked.items() for error in inexcusable(one, faults.excused[replica])]
    published = sum(turn.release is not None for turn in decided)
    found = [
        *verdicts([*asked.values()], len(unexcused), differs, chain.epsilon),
        Verdict("turns that were decided, published", f"{len(decided)}, {published}"),
        Verdict("newest release on disk, live", f"{newest}, {live}", {newest} == {*live}),
        Verdict("tracebacks in logs", str(said.count("Traceback")), "Traceback" not in said),
    ]
    table = Table("", "", "", title=f"{minutes:g} minutes; " + ", ".join(f"{n} × {f}" for f, n in happened.items()))
    for verdict in found:
        table.add_row(verdict.name, verdict.value, "" if verdict.kept else "BROKEN")
    Console().print(table)
    for error in sorted(set(unexcused)):
        click.echo(f"No excuse: {error}")
    result = {"verdicts": [asdict(verdict) for verdict in found], "faults": dict(happened)}
    write_json(json_path, result | {"turns": [vars(turn) for turn in decided]})
    sys.exit(not all(verdict.kept for verdict in found))


if __name__ == "__main__":
    main()
