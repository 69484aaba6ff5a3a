"""The recorder: never waits, never grows, and never leaves half a shard that is read."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import handmade
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from handmade import toy_chain, write_shard
from handmade import toy_sample as sample
from running import until

from gati.recording import recorder as module
from gati.recording import shard_folder as folders
from gati.recording.recorder import Recorder
from gati.recording.shard import Sample, shard
from gati.recording.shard_folder import ShardFolder
from gati.settings import parse_age
from gati_export.samples import store as reading
from gati_export.samples.samples import load_samples
from gati_export.samples.store import count_since, read_recent

CHAIN = toy_chain()


class Kept:
    """A recorder on a folder, and what it reports."""

    def __init__(self, store: str, budget: int = 1 << 30) -> None:
        self.dropped: list[int] = []
        self.log: list[str] = []
        self.recorder = Recorder(CHAIN, store, budget, self.dropped.append, self.log.append)


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path))
    kept.recorder.record(sample(0, 3))
    kept.recorder.record(sample(3, 2, known=False))
    kept.recorder.close()
    recorded = read_recent(str(tmp_path), CHAIN, 100)
    np.testing.assert_array_equal(recorded.samples["x"], np.arange(20, dtype=np.float32).reshape(5, 4))
    np.testing.assert_array_equal(load_samples(tmp_path / "toy", inputs=CHAIN.inputs)["x"], recorded.samples["x"])
    table = pq.read_table(next((tmp_path / "toy").glob("*.parquet")))
    assert [answer is None for answer in table["gati.answer"].to_pylist()] == [False] * 3 + [True] * 2
    assert table["gati.answer"].to_pylist()[1] == [-4, -5, -6, -7]
    assert not kept.dropped
    assert not kept.log


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    store = str(tmp_path / "[prod]*" / "models.gati" / "samples")
    kept = Kept(store)
    kept.recorder.record(sample(0, 3))
    kept.recorder.close()
    count, mark, oldest = count_since(store, CHAIN, "")
    assert count == 3 == read_recent(store, CHAIN, 100).window.samples
    assert count_since(store, CHAIN, mark) == (0, mark, oldest) and mark == oldest


@pytest.mark.parametrize("dims", [(-1,), (-1, 3, -1)])
def test_rows_of_all_shapes_are_read_in_the_order_they_were_served(tmp_path: Path, dims: tuple[int, ...]) -> None:
    chain = replace(CHAIN, inputs=(replace(CHAIN.inputs[0], shape=dims),))
    told, random = sample(0), np.random.default_rng(0)
    served = []
    for widths in ((4, 4), (7, 4, 5)):
        shapes = [[width + place if dim == -1 else dim for place, dim in enumerate(dims)] for width in widths]
        served += [random.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]
        samples = [replace(told, values={"x": rows}) for rows in served[-len(widths) :]]
        write_shard(f"{tmp_path}/toy", shard(chain, samples), 1 << 30)
    rows = [row for some in served for row in some]
    for limit in (3, 7, 100):
        recorded = read_recent(str(tmp_path), chain, limit)
        expected = rows[-limit:]
        assert recorded.window.samples == len(expected) == len(recorded.samples["x"])
        for found, row in zip(recorded.samples["x"], expected, strict=True):
            np.testing.assert_array_equal(found, row)
            assert found.dtype == np.float32
    for found, row in zip(load_samples(tmp_path / "toy", inputs=chain.inputs)["x"], rows, strict=True):
        np.testing.assert_array_equal(found, row)


def test_only_the_newest_are_read(tmp_path: Path) -> None:
    for start in range(5):
        write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(start * 2)]), 1 << 20)
    recorded = read_recent(str(tmp_path), CHAIN, 3)
    np.testing.assert_array_equal(recorded.samples["x"][:, 0], [28, 32, 36])
    assert recorded.window.samples == 3


def test_the_oldest_shards_go_when_the_budget_is_spent(tmp_path: Path) -> None:
    table = shard(CHAIN, [sample(0)])
    size = Path(write_shard(f"{tmp_path}/toy", table, 1 << 20)).stat().st_size
    paths = [write_shard(f"{tmp_path}/toy", table, 3 * size) for _ in range(8)]
    assert sorted(str(p) for p in (tmp_path / "toy").iterdir()) == sorted(paths[-3:])


def test_half_of_a_local_disk_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, folder = shard(CHAIN, [sample(0)]), ShardFolder(f"{tmp_path}/toy")
    size = Path(folder.write(table, 1 << 30)).stat().st_size
    small = shutil.disk_usage(tmp_path)._replace(total=6 * size)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: small)
    paths = [folder.write(table, 1 << 30) for _ in range(8)]
    assert _lies(tmp_path / "toy") == paths[-3:]


def test_the_newest_shard_stays_whatever_the_budget(tmp_path: Path) -> None:
    path = write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(0)]), 1)
    assert Path(path).exists()


def test_rows_of_different_shapes_go_into_one_shard_and_what_is_empty_into_none(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path))
    for width in (4, 0, 7):
        x = np.zeros((1, width), np.float32)
        kept.recorder.record(Sample({"x": x}, None, np.zeros(1, np.int32), np.zeros(1, np.int64), time.time()))
    kept.recorder.close()
    (written,) = (tmp_path / "toy").glob("*.parquet")
    assert list(map(len, pq.read_table(written)["x"].to_pylist())) == [4, 7]
    assert kept.dropped == [1]


class Stuck(LocalFileSystem):
    """A store that takes a file only when it is let."""

    protocol = "stuck"
    let = threading.Event()

    def open(self, *args: Any, **kwargs: Any) -> Any:
        assert self.let.wait(30)
        return super().open(*args, **kwargs)


def test_a_store_that_hangs_makes_nobody_wait_and_costs_only_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 10 * sample(0).nbytes)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    fsspec.register_implementation("stuck", Stuck, clobber=True)
    Stuck.let.clear()
    kept = Kept(f"stuck://{tmp_path}")
    for start in range(1000):  # returns, though nothing is written
        kept.recorder.record(sample(start))
    lost = sum(kept.dropped)
    assert lost >= 2 * 900
    Stuck.let.set()
    kept.recorder.close()
    assert sum(kept.dropped) == lost
    assert read_recent(str(tmp_path), CHAIN, 10_000).window.samples == 2000 - lost


def test_a_request_that_is_larger_than_all_that_may_wait_is_kept_where_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose every request is as large would learn nothing else."""
    monkeypatch.setattr(module, "QUEUE_BYTES", sample(0).nbytes - 1)
    kept = Kept(str(tmp_path))
    kept.recorder.record(sample(0))
    kept.recorder.record(sample(1))
    kept.recorder.close()
    assert sum(kept.dropped) == 2 == read_recent(str(tmp_path), CHAIN, 100).window.samples


def test_what_waits_counts_with_its_answers() -> None:
    small = {"x": np.zeros((1, 10), np.float32)}
    place = np.zeros(1, np.int64)
    waiting = Sample(small, np.zeros((1, 1000), np.float32), place, place, 0.0)
    assert waiting.nbytes > 4000 > Sample(small, None, place, place, 0.0).nbytes > 40


def test_a_store_that_can_not_be_written_is_said_once_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    (tmp_path / "file").write_text("in the way")
    kept = Kept(str(tmp_path / "file"))
    for count in (2, 4, 6):
        kept.recorder.record(sample(0))
        until(lambda count=count: sum(kept.dropped) == count)
    kept.recorder.close()
    assert len(kept.log) == 1
    assert "can't be written" in kept.log[0]


FULL = """
import resource, sys
from pathlib import Path
from handmade import toy_chain, toy_sample
from gati.recording.recorder import Recorder
dropped, log = [], []
recorder = Recorder(toy_chain(), sys.argv[1], 1 << 20, dropped.append, log.append)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
recorder.record(toy_sample(0))
recorder.close()
print(sum(dropped), len(log), len(list(Path(sys.argv[1], "toy").iterdir())))
"""

KILLED = """
import sys
from handmade import toy_chain, toy_sample, write_shard
from gati.recording.shard import shard
table = shard(toy_chain(), [toy_sample(0, 20_000)])
print("ready", flush=True)
while True:
    write_shard(f"{sys.argv[1]}/toy", table, 1 << 22)
"""


def _script(text: str, folder: Path) -> dict[str, Any]:
    path = os.pathsep.join([str(Path(handmade.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {"args": [sys.executable, "-c", text, str(folder)], "env": os.environ | {"PYTHONPATH": path}, "text": True}


def test_a_full_disk_costs_the_sample_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    done = subprocess.run(**_script(FULL, tmp_path), capture_output=True, timeout=60, check=False)
    assert done.stdout.split() == ["2", "1", "0"], done.stderr


def test_a_writer_that_is_killed_leaves_no_half_shard_that_is_read(tmp_path: Path) -> None:
    shards = tmp_path / "toy"
    for wait in (0.0, 0.01, 0.02):
        writer = subprocess.Popen(**_script(KILLED, tmp_path), stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        before = len(list(shards.glob("[0-9]*"))) if shards.exists() else 0
        until(lambda before=before: shards.exists() and len(list(shards.glob("[0-9]*"))) > min(before, 1))
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    whole = list(shards.glob("[0-9]*.parquet"))
    (shards / ".00000000000000000009-1.parquet.part").write_bytes(whole[0].read_bytes()[:1000])
    rows = sum(pq.read_metadata(path).num_rows for path in whole)
    assert rows == 20_000 * len(whole)
    assert read_recent(str(tmp_path), CHAIN, 10**9).window.samples == rows
    assert len(load_samples(shards, inputs=CHAIN.inputs)["x"]) == rows


def test_a_shard_that_its_disk_has_lost_a_part_of_is_left_out(tmp_path: Path) -> None:
    paths = [Path(write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(i)]), 1 << 20)) for i in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    assert read_recent(str(tmp_path), CHAIN, 100).window.samples == 4


def test_a_clock_that_is_set_back_changes_no_order_and_deletes_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Path(write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(0)]), 1 << 20)).stat().st_size
    monkeypatch.setattr(module.time, "time_ns", lambda: 7)
    for start in range(1, 6):
        write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(2 * start)]), 3 * size + size // 2)
    recorded = read_recent(str(tmp_path), CHAIN, 100)
    np.testing.assert_array_equal(recorded.samples["x"][::2, 0], [24, 32, 40])


def test_what_a_killed_writer_left_goes_in_time_and_another_writer_s_shard_does_not(tmp_path: Path) -> None:
    first = Path(write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(0)]), 1 << 20))
    old, young = (first.with_name(f".{number:020d}-1.parquet.part") for number in (9, time.time_ns()))
    for path in (old, young):
        path.write_bytes(b"half")
    write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(1)]), 1 << 20)
    assert not old.exists() and young.exists()


def test_samples_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = Path(write_shard(f"{tmp_path}/samples/toy", shard(CHAIN, [sample(0)]), 1 << 20))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_thread_outlives_what_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)

    def fail(_rows: Any) -> None:
        raise RuntimeError("not even that can be said")

    recorder = Recorder(CHAIN, str(tmp_path), 1 << 20, fail, fail)
    recorder.record(Sample({"y": np.zeros((2, 4), np.float32)}, None, np.zeros(2), np.zeros(2), 0))  # no such input
    until(lambda: not recorder._queue)
    recorder.record(sample(3))
    recorder.close()
    assert read_recent(str(tmp_path), CHAIN, 100).window.samples == 2


def test_replicas_that_share_a_store_do_not_get_into_each_other_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 7)  # at the same moment, and on hosts whose processes have one number
    table, remove = shard(CHAIN, [sample(0)]), LocalFileSystem.rm_file
    paths = {write_shard(f"{tmp_path}/toy", table, 1 << 20) for _ in range(3)}
    assert len(paths) == 3

    def remove_too_late(fs: LocalFileSystem, path: str) -> None:
        Path(path).unlink()  # another replica did
        remove(fs, path)

    monkeypatch.setattr(LocalFileSystem, "rm_file", remove_too_late)
    write_shard(f"{tmp_path}/toy", table, 1)
    assert len(list((tmp_path / "toy").glob("[0-9]*.parquet"))) == 1


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed."""
    listed, ls = list[str](), LocalFileSystem.ls
    monkeypatch.setattr(LocalFileSystem, "ls", lambda fs, path, **how: listed.append(path) or ls(fs, path, **how))
    return listed


def _lies(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.parquet")))


def test_a_store_is_listed_now_and_then_and_its_budget_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: list[str]
) -> None:
    table, url = shard(CHAIN, [sample(0)]), f"{tmp_path}/toy"
    first, other = ShardFolder(url), ShardFolder(url)
    size = Path(first.write(table, 1 << 20)).stat().st_size
    paths = [first.write(table, 3 * size) for _ in range(20)]
    assert _lies(tmp_path / "toy") == paths[-3:] and len(listed) == 1
    theirs = [other.write(table, 1 << 20) for _ in range(5)]
    ours = first.write(table, 3 * size)
    assert len(listed) == 2 and _lies(tmp_path / "toy") == [*paths[-2:], *theirs, ours], "it knows of its own yet"
    monkeypatch.setattr(first, "_due", 0.0)
    last = first.write(table, 3 * size)
    assert len(listed) == 3 and _lies(tmp_path / "toy") == [theirs[-1], ours, last]


def test_a_budget_is_kept_with_more_shards_than_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: list[str]
) -> None:
    monkeypatch.setattr(folders, "REMEMBERED", 3)
    table, folder = shard(CHAIN, [sample(0)]), ShardFolder(f"{tmp_path}/toy")
    paths = [folder.write(table, 1 << 20) for _ in range(10)]
    size = Path(paths[0]).stat().st_size
    for kept in (8, 8, 8, 8, 8, 4):
        paths.append(folder.write(table, kept * size))
        assert _lies(tmp_path / "toy") == paths[-kept:]
    assert len(listed) <= 5


def test_a_writer_whose_clock_is_behind_numbers_its_shards_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, url = shard(CHAIN, [sample(0)]), f"{tmp_path}/toy"
    right, behind = ShardFolder(url), ShardFolder(url)
    monkeypatch.setattr(folders, "LIST_TIMES", 0)  # as if a listing took no time beside what passes between two
    paths = []
    for _ in range(3):
        paths.append(right.write(table, 1 << 20))
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: 7)
            paths.append(behind.write(table, 1 << 20))
    assert paths == sorted(paths)


def test_a_writer_whose_clock_is_behind_does_not_list_a_full_folder_for_each_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: list[str]
) -> None:
    table, folder = shard(CHAIN, [sample(0)]), ShardFolder(f"{tmp_path}/toy")
    monkeypatch.setattr(folders, "LIST_TIMES", 1e6)
    ahead = Path(folder.write(table, 1 << 20))
    ahead.rename(ahead.with_name(f"{time.time_ns() + 60 * 10**9:020d}-1.parquet"))
    listed.clear()
    writer = ShardFolder(f"{tmp_path}/toy")
    paths = [writer.write(table, 1 << 20) for _ in range(20)]
    assert len(listed) == 1 and paths == sorted(paths)


def test_a_folder_that_somebody_deletes_is_made_again(tmp_path: Path) -> None:
    table, folder = shard(CHAIN, [sample(0)]), ShardFolder(f"{tmp_path}/toy")
    folder.write(table, 1 << 20)
    shutil.rmtree(tmp_path / "toy")
    assert Path(folder.write(table, 1 << 20)).exists()


def test_a_sweep_leaves_a_writer_what_is_there_now(tmp_path: Path, listed: list[str]) -> None:
    table, folder = shard(CHAIN, [sample(0)]), ShardFolder(f"{tmp_path}/toy")
    old, young = (Path(folder.write(table, 1 << 20)) for _ in range(2))
    _aged(old, 4000)
    folder.sweep(3600)
    assert _lies(tmp_path / "toy") == [str(young)]
    size, before = young.stat().st_size, len(listed)
    assert [*_lies(tmp_path / "toy")[:1], folder.write(table, 2 * size)] == _lies(tmp_path / "toy")
    assert len(listed) == before


def _aged(path: Path, seconds: float) -> Path:
    """A shard as if it had been written so long ago."""
    number = time.time_ns() - int(seconds * 1e9)
    old = path.rename(path.with_name(f"{number:020d}-{secrets.token_hex(4)}.parquet"))
    os.utime(old, ns=(number, number))
    return old


def test_what_is_too_old_goes_while_no_request_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    table, url = shard(CHAIN, [sample(0)]), f"{tmp_path}/toy"
    old = _aged(Path(write_shard(url, table, 1 << 20)), 4000)
    part = old.rename(old.with_name(f".{old.name}.part"))
    older, young = (_aged(Path(write_shard(url, table, 1 << 20)), seconds) for seconds in (3700, 3500))
    (tmp_path / "toy" / "notes.txt").write_text("not ours")
    recorder = Recorder(CHAIN, str(tmp_path), 1 << 20, lambda _: None, print, age=3600)
    until(lambda: not older.exists() and not part.exists())
    assert young.exists() and (tmp_path / "toy" / "notes.txt").exists()
    _aged(young, 3601)  # the next sweep finds it
    monkeypatch.setattr(recorder, "_sweep_due", 0.0)
    until(lambda: not list((tmp_path / "toy").glob("*.parquet")))
    recorder.close()


def test_samples_of_any_age_stay_where_that_is_asked_for(tmp_path: Path) -> None:
    old = _aged(Path(write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(0)]), 1 << 20)), 1e9)
    recorder = Recorder(CHAIN, str(tmp_path), 1 << 20, lambda _: None, print)
    recorder.record(sample(0))
    recorder.close()
    assert old.exists()


def test_a_clock_that_was_ahead_keeps_nothing_beyond_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, url, now = shard(CHAIN, [sample(0)]), f"{tmp_path}/toy", time.time()
    ahead = _aged(Path(write_shard(url, table, 1 << 20)), -1e6)
    ShardFolder(url).sweep(3600)  # the first sweep after the clock was set back
    after = Path(write_shard(url, table, 1 << 20))  # numbered after the one ahead
    assert ahead.exists() and after.name > ahead.name
    monkeypatch.setattr(time, "time", lambda: now + 3500)
    ShardFolder(url).sweep(3600)
    assert ahead.exists() and after.exists()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    ShardFolder(url).sweep(3600)
    assert not ahead.exists() and not after.exists()


def test_what_is_new_is_counted_up_to_what_is_enough_the_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read = f"{tmp_path}/toy", list[str]()
    for number in range(5):
        write_shard(url, shard(CHAIN, [sample(number)]), 1 << 20)
    rows = reading._rows
    monkeypatch.setattr(reading, "_rows", lambda fs, name: read.append(name) or rows(fs, name))
    count, mark, oldest = count_since(str(tmp_path), CHAIN, "", enough=3)
    assert count == 4 and len(read) == 2
    names = sorted(path.name for path in (tmp_path / "toy").iterdir())
    assert (mark, oldest) == (names[-1], names[0])


def test_what_was_learned_while_the_clock_was_ahead_hides_nothing_that_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder, now = f"{tmp_path}/toy", ShardFolder(f"{tmp_path}/toy"), time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now + 86_400 * 10**9)
        ahead = Path(folder.write(shard(CHAIN, [sample(0)]), 1 << 20))
    mark = count_since(str(tmp_path), CHAIN, "")[1]
    ahead.unlink()  # at its age, in a quiet night
    for writer in (ShardFolder(url), folder):
        writer.write(shard(CHAIN, [sample(1)]), 1 << 20)
        assert count_since(str(tmp_path), CHAIN, mark)[0] >= 2


def test_a_store_that_can_not_be_swept_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    old = _aged(Path(write_shard(f"{tmp_path}/toy", shard(CHAIN, [sample(0)]), 1 << 20)), 4000)
    remove, said = LocalFileSystem.rm_file, []
    monkeypatch.setattr(LocalFileSystem, "rm_file", lambda *_: 1 / 0)
    recorder = Recorder(CHAIN, str(tmp_path), 1 << 20, lambda _: None, said.append, age=3600)
    until(lambda: "can't be deleted" in "".join(said))
    monkeypatch.setattr(LocalFileSystem, "rm_file", remove)
    monkeypatch.setattr(recorder, "_sweep_due", 0.0)
    until(lambda: not old.exists())
    recorder.close()


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("90m", 5400), ("45s", 45)])
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1.5h", "30", "d", "30 days", "none ", "9999999999d"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(ValueError, match="is no age such as 30d"):
        parse_age(text)


def test_a_long_queue_becomes_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 3 * sample(0).nbytes)
    fsspec.register_implementation("stuck", Stuck, clobber=True)
    Stuck.let.clear()
    kept = Kept(f"stuck://{tmp_path}")
    for start in range(10):
        kept.recorder.record(sample(2 * start))
    Stuck.let.set()
    kept.recorder.close()
    rows = [pq.read_metadata(path).num_rows for path in (tmp_path / "toy").glob("*.parquet")]
    assert max(rows) <= 8 and sum(rows) == 20
    assert read_recent(str(tmp_path), CHAIN, 100).samples["x"][::2, 0].tolist() == list(range(0, 80, 8))
