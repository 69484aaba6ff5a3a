"""What is found at the end of a soak (soak.py), and whether it is as was promised."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import torch
from faults import Strike
from onnxruntime import InferenceSession
from scipy.stats import binom
from traffic import BLOCK, Asked, Traffic
from world import GATI, Replica

from gati.inference.fuse import fuse
from gati.inference.session import THREADS, open_session
from gati.repository.chain import Chain
from gati.system.proc import arguments
from gati.system.resources import cores
from gati.triton.stubs import SHARED_MEMORY
from gati_export.report.day import Day
from gati_export.report.history import Turn
from gati_export.samples.activations import run_segments

SURE = 0.999
BATCH = 8
"""Requests that are compared at a time: of more, what is between layers no longer fits into a core's cache."""
BEFORE, AFTER = 70.0, 30.0
"""Seconds before and after a kill or a full disk of which a server may never write down what it answered: it does so
once a minute, and a busy machine is late."""


@dataclass(frozen=True)
class Verdict:
    """Something that was found, and whether it is as was promised."""

    name: str
    value: str
    kept: bool = True


def wrong(repository: Path, chain: Chain, traffic: Traffic, numbers: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Which of these requests were told another class than the backbone's, bool [requests]; works on all cores."""
    os.environ[THREADS] = "1"  # each block is one process's, from the views to the answers
    blocks = np.unique(numbers // BLOCK).tolist()
    with multiprocessing.get_context("spawn").Pool(
        cores(), _open, (repository, chain, traffic.dwell, traffic.seed)
    ) as pool:
        truth = dict(zip(blocks, pool.imap(_truth, blocks, 8), strict=True))
    return told != np.array([truth[number // BLOCK][number % BLOCK] for number in numbers])


def _open(repository: Path, chain: Chain, dwell: int, seed: int) -> None:
    """Gets a process that compares ready: with the whole backbone as one graph, on one thread."""
    torch.set_num_threads(1)
    segments = [path.read_bytes() for path in chain.segment_paths(repository)]
    _opened.append((open_session(fuse(segments)), Traffic(dwell, seed)))


_opened: list[tuple[InferenceSession, Traffic]] = []
"""What a process that compares has at hand."""


def _truth(block: int) -> np.ndarray:
    """The classes of a block's requests by the backbone, int [BLOCK]."""
    session, traffic = _opened[0]
    name = session.get_inputs()[0].name
    batches = np.split(traffic.block(block), range(BATCH, BLOCK, BATCH))
    return np.concatenate([run_segments([session], {name: batch}).argmax(1) for batch in batches])


def answers(asked: Sequence[Asked], differs: np.ndarray, epsilon: float) -> Iterator[Verdict]:
    """What clients were answered; `differs`, bool, in the order of their rows."""
    releases = np.concatenate([[release for *_, release in one.rows] for one in asked])
    seconds = np.concatenate([[took for _, took in one.times] for one in asked])
    allowed = int(binom.ppf(SURE, len(differs), epsilon))
    yield Verdict("requests answered", f"{len(differs):,}")
    count = int(differs.sum())
    share = f"{count:,}, {count / len(differs):.2%}"
    yield Verdict(f"answers that differ (allowed: {allowed:,})", share, count <= allowed)
    for release in np.unique(releases[releases > 0]):
        of = differs[releases == release]
        yield Verdict(f"answers of release {release}", f"{len(of):,}, {of.mean():.2%} differ")
    yield Verdict("mean, p99 ms", f"{1e3 * seconds.mean():.2f}, {1e3 * np.quantile(seconds, 0.99):.1f}")


def unexcused(asked: Mapping[Replica, Asked], strikes: Mapping[Replica, Sequence[Strike]]) -> list[str]:
    """What was said of requests that failed while nothing excused it."""
    return [said for replica, one in asked.items() for at, said in one.errors if not _excuse(at, strikes[replica])]


def failures(asked: Mapping[Replica, Asked], strikes: Mapping[Replica, Sequence[Strike]]) -> Iterator[Verdict]:
    """Requests that failed, and for how long after what."""
    failed, alone = sum(len(one.errors) for one in asked.values()), len(unexcused(asked, strikes))
    yield Verdict("failed while a process was killed or hung", str(failed - alone))
    yield Verdict("failed with no excuse", str(alone), not alone)
    took: dict[str, list[float]] = defaultdict(list)
    for replica, one in asked.items():
        last = {strike: strike.start for strike in strikes[replica]}
        for at, _ in one.errors:
            if strike := _excuse(at, strikes[replica]):
                last[strike] = at
        for strike, at in last.items():
            took[strike.kind].append(at - strike.start)
    for kind, seconds in sorted(took.items()):
        yield Verdict(f"{kind}: s until none failed, median, most", f"{np.median(seconds):.1f}, {max(seconds):.1f}")


def _excuse(at: float, strikes: Sequence[Strike]) -> Strike | None:
    """The last thing that happened for which a request may fail at a moment."""
    return next((strike for strike in reversed(strikes) if strike.start <= at <= strike.end), None)


def refreshes(decided: Sequence[Turn], killed: int) -> Iterator[Verdict]:
    """What turns came to, and why; that at least one came to its end."""
    yield Verdict("turns killed", str(killed))
    published = sum(turn.release is not None for turn in decided)
    yield Verdict("turns that came to their end, published", f"{len(decided)}, {published}", bool(decided))
    kinds = Counter((turn.release is not None, kind_of(turn.why)) for turn in decided)
    for (release, why), count in kinds.most_common():
        yield Verdict(f"{'published' if release else 'nothing'}: {why}", str(count))


def kind_of(why: str) -> str:
    """What a turn's reason has in common with others: its first clause, without figures."""
    return re.sub(r"\d[\d.,]*%?", "N", re.split(r"[:;.](?:\s|$)", why)[0])


def page(repository: Path, model: str, folder: Path, decided: Sequence[Turn], newest: int) -> Iterator[Verdict]:
    """Whether `gati report` shows what turns decided, and the release that serves."""
    out, said = folder / "page.html", folder / "page.txt"
    with said.open("wb") as file:
        command = [*GATI, "report", model, "--repository", str(repository), "--out", str(out)]
        code = subprocess.run(command, check=False, stdout=file, stderr=file).returncode
    text = unescape(out.read_text()) if out.exists() else ""
    missing = [turn.at for turn in decided if turn.why not in text]
    serves = f"Release {newest} serves"
    found = ["" if serves in text else f"no {serves!r}", f"{len(missing)} turns missing" if missing else ""]
    wrong = "; ".join(filter(None, found))
    yield Verdict(
        "report", f"ends with {code}; {wrong or 'names all turns and the release that serves'}", not code and not wrong
    )


def written_down(
    day: Day, asked: Mapping[Replica, Asked], strikes: Mapping[Replica, Sequence[Strike]], filled: Sequence[float]
) -> Verdict:
    """Whether replicas wrote down what they answered, but for a minute about each kill and each full disk."""
    counted, failed = sum(day.exits.values()), sum(len(one.errors) for one in asked.values())
    rows = safe = 0
    for replica, one in asked.items():
        at = np.array([start for start, _ in one.times])
        lost = np.zeros(len(at), bool)
        for moment in (*(strike.start for strike in strikes[replica]), *filled):
            lost |= (at > moment - BEFORE) & (at <= moment + AFTER)
        rows, safe = rows + len(at), safe + int((~lost).sum())
    value = f"{counted:,} of {rows:,}, at least {safe:,}"
    return Verdict("requests written down for the report", value, safe <= counted <= rows + failed)


def memory(seen: Mapping[str, Sequence[tuple[int, float]]]) -> Iterator[Verdict]:
    """What processes held: of each kind the most, and of the one seen most often, what it began and ended with.

    Args:
        seen: Of each kind, processes and their MiB, in the order in which they were looked at.
    """
    for kind, looks in seen.items():
        if not looks:
            continue
        longest = Counter(pid for pid, _ in looks).most_common(1)[0][0]
        held = [mib for pid, mib in looks if pid == longest and mib]
        grew = f"{held[min(3, len(held) - 1)]:.0f} to {held[-1]:.0f} in {len(held)} looks" if held else ""
        yield Verdict(f"MiB of {kind}: most; longest-lived", f"{max(mib for _, mib in looks):.0f}; {grew}")


def own_mib(pid: int) -> float:
    """The memory that a process itself holds now, in MiB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def left(served: Path, regions: set[str], temporary: Path) -> Iterator[Verdict]:
    """Whether anything is left of what ran: processes, shared memory, temporary folders, half-written files."""
    named = [pid for pid in _pids() if any(str(served) in word for word in arguments(pid)) and pid != os.getpid()]
    yield Verdict("processes left", str(len(named)), not named)
    shared = [region for region in regions if (SHARED_MEMORY / region).exists()]
    yield Verdict("regions of shared memory left", f"{len(shared)} of {len(regions)}", not shared)
    folders = [*temporary.iterdir()]
    size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    yield Verdict("temporary folders left, MiB", f"{len(folders)}, {size / 2**20:.1f}")
    half = [*served.rglob("*.part"), *served.rglob("*.tmp")]
    yield Verdict("half-written files left", str(len(half)))


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
