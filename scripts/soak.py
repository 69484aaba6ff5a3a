"""Everything together for a while: soak.py [REPOSITORY], by default the clone's own chain of digits.

Two `gati serve` on one repository, `gati refresh --watch` beside them, clients whose popular digits drift, and faults
at random (faults.py); what happens is told as it does. At the end every answer that was given is compared with the
backbone's (judge.py). Exits with 1 if a request failed that no fault excuses, if more answers differ than the promise
allows, if a server serves anything but the newest release on disk, if no turn of the refresher came to its end, if the
report says otherwise, or if something is left of what was ended.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import judge
import numpy as np
from faults import Faults
from judge import Verdict, own_mib
from rich.console import Console
from rich.table import Table
from traffic import Asked, Traffic, ask
from world import World

from gati.errors import GatiError
from gati.options import existing_folder, json_option, write_json
from gati.repository.chain import find_chains, read_chain
from gati.repository.workspace import workspace
from gati.triton.tryout import newest_release
from gati_export.report.day import Day, read_day
from gati_export.report.history import Turn, turns

CLONE = Path(__file__).parents[1] / "model_repository"
REPLICAS = 2
"""Servers, and clients: one asks each."""
QUIET_SECONDS = 45
"""At the end, in which nothing happens any more, for all to settle."""
WATCH = ("--every", "20", "--fresh", "1000")
"""How the refresher watches."""
LOOK_SECONDS = 10.0
"""Between two looks at what processes hold."""


def say(words: str) -> None:
    """Tells whoever watches."""
    click.echo(words, err=True)


class Soak:
    """A world that is asked, disturbed, and judged at the end.

    Args:
        repository: The repository that is served; it is changed.
        logs: Folder for what is said.
        traffic: What is asked.
        turn: What a turn of the refresher learns from, as options.
    """

    def __init__(self, repository: Path, logs: Path, traffic: Traffic, turn: Sequence[str]) -> None:
        self.chain = read_chain(repository, find_chains(repository)[0])
        self._repository, self._logs, self._traffic = repository, logs, traffic
        self._world = World(repository, self.chain, logs, WATCH, turn, replicas=REPLICAS)
        self._asked = {replica: Asked() for replica in self._world.replicas}
        self._done = threading.Event()
        self._memory: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._regions: set[str] = set()

    def run(self, minutes: float, pause: float, rate: float, random: np.random.Generator) -> Counter[str]:
        """Has all happen; gives what happened how often."""
        self._faults = Faults(self._world, self._repository.parent, random)
        clients = [
            threading.Thread(target=ask, args=(replica, self.chain.model, self._traffic, rate, asked, self._done))
            for replica, asked in self._asked.items()
        ]
        beside = [*clients, threading.Thread(target=self._look)]
        try:
            for thread in beside:
                thread.start()
            happened = disturb(self._faults, minutes, pause, random, [*self._asked.values()])
            self._live = self._world.live()
        except GatiError as error:
            raise click.ClickException(str(error)) from error
        finally:
            self._done.set()
            for thread in beside:
                thread.join()
            self._faults.end()
            self._world.stop()
        return happened

    def verdicts(self) -> list[Verdict]:
        """What was found, when all has ended."""
        chain, asked, strikes = self.chain, self._asked, self._faults.strikes
        rows = [row for one in asked.values() for row in one.rows]
        say(f"Comparing {len(rows):,} answers with the backbone's.")
        numbers, told = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        differs = judge.wrong(self._repository, chain, self._traffic, numbers, told)
        decided, day = turns(self._repository, chain.model), read_day(self._repository, chain.model)
        recount(day, decided, workspace(self._repository) / "breaker" / chain.model)
        newest, said = newest_release(self._repository, chain), self._world.said()
        number = newest.number if newest else 0
        for error in sorted(set(judge.unexcused(asked, strikes))):
            say(f"No excuse: {error}")
        return [
            *judge.answers([*asked.values()], differs, chain.epsilon),
            *judge.failures(asked, strikes),
            *judge.refreshes(decided, self._faults.turns_killed),
            Verdict("newest good release on disk, live", f"{number}, {self._live}", {number} == {*self._live}),
            *judge.page(self._repository, chain.model, self._logs, decided, number),
            judge.written_down(day, asked, strikes, self._faults.filled),
            Verdict("tracebacks in logs", str(said.count("Traceback")), "Traceback" not in said),
            *judge.memory(self._memory),
            *judge.left(self._repository.parent, self._regions, self._world.temporary),
        ]

    def _look(self) -> None:
        """Looks at memory every now and then."""
        while not self._done.wait(LOOK_SECONDS):
            for kind, pids in self._world.processes().items():
                self._memory[kind] += [(pid, own_mib(pid)) for pid in pids]
            self._regions |= self._world.regions()


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


def keep(repository: Path, logs: Path, folder: Path) -> None:
    """Copies what servers and refresher have said, and what lies beside the repository, less samples."""
    shutil.copytree(logs, folder / "logs")
    shutil.copytree(workspace(repository), folder / "beside", ignore=lambda *_: ["samples", "token"])


@click.command()
@click.argument("repository", type=existing_folder, default=CLONE)
@click.option("--minutes", type=click.FloatRange(1), default=30, show_default=True)
@click.option("--pause", type=click.FloatRange(1), default=30, show_default=True, help="Seconds between faults.")
@click.option("--rate", type=click.FloatRange(0.1), default=40, show_default=True, help="Requests a second, a client.")
@click.option("--dwell", type=click.IntRange(1), default=20_000, show_default=True, help="Requests between drifts.")
@click.option("--window", type=click.IntRange(1), default=2500, show_default=True, help="Samples that a turn reads.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--folder",
    type=existing_folder,
    help="Where to serve from. If it lies on a file system of 4 GiB at most, that is filled at times.  [default: a "
    "temporary folder]",
)
@click.option("--keep", "kept", type=click.Path(path_type=Path), help="A new folder for logs, reports and evidence.")
@json_option
def main(
    repository: Path,
    minutes: float,
    pause: float,
    rate: float,
    dwell: int,
    window: int,
    seed: int,
    folder: Path | None,
    kept: Path | None,
    json_path: Path | None,
) -> None:
    """Serve, refresh, drift and break things for a while, and see what was promised kept."""
    with tempfile.TemporaryDirectory(dir=folder) as served, tempfile.TemporaryDirectory() as logs:
        copy, said = Path(served) / "models", Path(logs)
        shutil.copytree(repository, copy)
        traffic = Traffic(dwell, seed)
        soak = Soak(copy, said, traffic, ("--window", str(window)))
        happened = soak.run(minutes, pause, rate, np.random.default_rng(seed))
        found = soak.verdicts()
        decided = turns(copy, soak.chain.model)
        if kept is not None:
            keep(copy, said, kept)
    table = Table("", "", "", title=f"{minutes:g} minutes; " + ", ".join(f"{n} × {f}" for f, n in happened.items()))
    for verdict in found:
        table.add_row(verdict.name, verdict.value, "" if verdict.kept else "BROKEN")
    Console().print(table)
    result = {"verdicts": [asdict(verdict) for verdict in found], "faults": dict(happened)}
    write_json(json_path, result | {"turns": [vars(turn) for turn in decided]})
    sys.exit(not all(verdict.kept for verdict in found))


if __name__ == "__main__":
    main()
