"""What is recorded of what was served: a share, drawn blindly, of inputs or features; or nothing."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from handmade import toy_chain, write_shard

from gati.errors import SamplesError
from gati.recording.content import features_at
from gati.recording.recorder import Recorder
from gati.recording.samples import Samples
from gati.recording.shard import Sample, shard
from gati.serving.flight import Flight, Request
from gati.settings import Settings
from gati_export.samples import store
from gati_export.samples.store import read_recent

CHAIN = toy_chain()


def flight(start: int, rows: int = 1, cut: int | None = None) -> Flight:
    """Rows that count from 4 × `start`, answered by the backbone."""
    x = np.arange(start * 4, (start + rows) * 4, dtype=np.float32).reshape(rows, 4)
    made = Flight([Request({"x": x}, False, lambda *_: None)], CHAIN.output)
    if cut is not None:
        made.kept = {f"cut{cut}": -x}
    made.finish(np.arange(rows), x, 2, 0)
    return made


def samples(folder: Path, said: list[str] | None = None, **settings: Any) -> Samples:
    return Samples(CHAIN, Settings(str(folder), **settings), lambda *_: None, ([] if said is None else said).append)


def test_a_share_of_requests_is_recorded(tmp_path: Path) -> None:
    random.seed(0)
    kept = samples(tmp_path, record_share=0.3)
    for start in range(1000):
        kept.served(flight(start))
    kept.close()
    assert 250 < read_recent(str(tmp_path), CHAIN, 1000).window.samples < 350


def test_features_are_read_again_and_say_what_they_are(tmp_path: Path) -> None:
    kept = samples(tmp_path, record="features", cut=1)
    kept.served(flight(3, 2, cut=1))
    unknown = flight(5)
    unknown.kept = None  # a head before the cut point may have answered
    kept.served(unknown)
    kept.close()
    (path,) = (tmp_path / "toy").glob("*.parquet")
    assert not {"x", "cut0"} & set(pq.read_schema(path).names), "inputs are not to be kept"
    recorded = read_recent(str(tmp_path), CHAIN, 10)
    assert recorded.content.cut == 1
    np.testing.assert_array_equal(recorded.samples["cut1"], -np.arange(12, 20, dtype=np.float32).reshape(2, 4))


def test_inputs_that_are_read_behind_the_cut_point_are_features_too(tmp_path: Path) -> None:
    chain = toy_chain(inputs=("x", "mask"))
    first, second, third = chain.segments
    chain = replace(chain, segments=(first, second, replace(third, inputs=("cut1", "mask"))))
    content = features_at(chain, 0)
    assert [tensor.name for tensor in content.tensors] == ["cut0", "mask"]
    values = {tensor.name: np.full((2, 4), number, np.float32) for number, tensor in enumerate(content.tensors)}
    kept = Recorder(chain, str(tmp_path), 1 << 20, lambda *_: None, print, content)
    kept.record(Sample(values, None, np.zeros(2, np.int32), np.zeros(2, np.int64), 0.0))
    kept.close()
    assert {name: value[:, 0].tolist() for name, value in read_recent(str(tmp_path), chain, 2).samples.items()} == {
        "cut0": [0, 0],
        "mask": [1, 1],
    }


def test_of_two_kinds_the_newest_is_read(tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"record": "features"}, {}, {"record": "features"})):
        kept = samples(tmp_path, **settings)
        kept.served(flight(number, cut=0 if settings else None))
        kept.close()
    recorded = read_recent(str(tmp_path), CHAIN, 10)
    assert [*recorded.samples] == ["cut0"] and recorded.samples["cut0"][:, 0].tolist() == [-4, -12]
    first, *rest = CHAIN.segments
    other = replace(CHAIN, segments=(replace(first, sha256="f" * 64), *rest))
    assert read_recent(str(tmp_path), other, 10).samples["x"][:, 0].tolist() == [0, 8], "features of other segments"
    behind = replace(CHAIN, segments=(first, replace(rest[0], sha256="f" * 64), rest[1]))
    assert [*read_recent(str(tmp_path), behind, 10).samples] == ["cut0"], "what follows may be another"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("image", [np.ones((2, 4), np.float32)]),
        ("x", [np.ones((2, 6), np.float32)]),
        ("x", [np.ones((2, 2, 2), np.float32)]),
        ("x", [np.ones((2, 4), np.int64)]),
        ("x", [np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)]),
    ],
    ids=["name", "width", "rank", "dtype", "several"],
)
def test_samples_of_a_model_that_had_the_name_before_are_left_out(
    tmp_path: Path, name: str, rows: list[np.ndarray]
) -> None:
    chain = toy_chain(inputs=(name,))
    told = np.zeros(2, np.int32), np.zeros(2, np.int64), 0.0
    write_shard(f"{tmp_path}/toy", shard(chain, [Sample({name: some}, None, *told) for some in rows]), 1 << 20)
    with pytest.raises(SamplesError, match=r"No samples .*\(1 file left out: damaged, or of another model"):
        read_recent(str(tmp_path), CHAIN, 10)
    kept = samples(tmp_path)
    kept.served(flight(1))
    kept.close()
    recorded = read_recent(str(tmp_path), CHAIN, 10)
    assert recorded.samples["x"].tolist() == [[4, 5, 6, 7]] and recorded.left_out == 1


def test_nothing_is_recorded_where_there_is_no_such_cut_point(tmp_path: Path) -> None:
    said: list[str] = []
    kept = samples(tmp_path, said, record="features", cut=2)
    kept.served(flight(0))
    kept.close()
    assert said == ["nothing is recorded: there is no cut point 2 whose features could be"]
    assert not (tmp_path / "toy").exists()


def test_what_is_recorded_no_more_still_goes_at_its_age(tmp_path: Path) -> None:
    first = samples(tmp_path)
    first.served(flight(0))
    first.close()
    (path,) = (tmp_path / "toy").glob("*.parquet")
    path.rename(path.with_name(path.name.replace(path.name[:2], "00", 1)))  # about 1970
    second = samples(tmp_path, record="nothing")
    second.served(flight(1))
    second.close()
    assert not list((tmp_path / "toy").iterdir())


def aged(start: int, ago: float) -> Flight:
    """A row that came so many seconds ago."""
    served = flight(start)
    served.requests = [replace(served.requests[0], arrived=served.requests[0].arrived - ago)]
    return served


def test_samples_past_an_age_are_not_read(tmp_path: Path) -> None:
    kept = samples(tmp_path)
    for start, ago in ((0, 7200), (1, 1800)):
        kept.served(aged(start, ago))
    kept.close()
    assert read_recent(str(tmp_path), CHAIN, 10, 3600).samples["x"][:, 0].tolist() == [4]
    with pytest.raises(SamplesError, match="No samples"):
        read_recent(str(tmp_path), CHAIN, 10, 60)


def test_samples_are_read_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """An audited hit is recorded when the backbone has answered, later than requests that came after it."""
    kept = samples(tmp_path)
    for start, ago in ((0, 30), (2, 10), (1, 20), (3, 0)):
        kept.served(aged(start, ago))
    kept.close()
    recorded = read_recent(str(tmp_path), CHAIN, 10)
    assert recorded.samples["x"][:, 0].tolist() == [0, 4, 8, 12]
    assert (np.diff(recorded.times) > np.timedelta64(0, "s")).all()
    assert recorded.without(np.array([1])).times.tolist() == np.delete(recorded.times, 1).tolist()


def test_a_shard_that_was_written_before_the_clock_was_set_hides_nothing(tmp_path: Path) -> None:
    for start, ago in enumerate((1800, 1700, time.time() - 100, time.time() - 102, 1600)):
        kept = samples(tmp_path)
        kept.served(aged(start, ago))
        kept.close()
    assert read_recent(str(tmp_path), CHAIN, 10, 3600).samples["x"][:, 0].tolist() == [0, 4, 16]


def test_shards_that_were_written_past_the_age_are_not_read_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    for start, ago in enumerate((7200, 7100, 7000, 1800, 1700)):
        with monkeypatch.context() as then:
            then.setattr(time, "time_ns", lambda ago=ago: now - ago * 10**9)
            kept = samples(tmp_path)
            kept.served(aged(start, ago))
            kept.close()
    read, before = list[str](), store._read
    monkeypatch.setattr(store, "_read", lambda fs, name, chain: (read.append(name), before(fs, name, chain))[1])
    assert read_recent(str(tmp_path), CHAIN, 10, 3600).samples["x"][:, 0].tolist() == [12, 16]
    assert len(read) == 2
