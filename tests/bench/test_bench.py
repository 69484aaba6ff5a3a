"""`gati bench`: its requests, its sums, and one whole run on a real server with the real perf_analyzer."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import MODEL, PLAIN, Exported, Serve
from google.protobuf import text_format
from lessons import threshold_of
from rich.console import Console
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from gati.errors import BenchError, RepositoryError, SamplesError, UnavailableError
from gati.inference.device import usable
from gati.inference.head import SCORE
from gati.inference.session import DEVICE, Device, open_session
from gati.promise.breaker import Alarm
from gati.promise.ledger import Event
from gati.repository.agreement import parse_agreement
from gati.repository.chain import Chain, Tensor
from gati.repository.release import head_path
from gati.repository.workspace import workspace
from gati.triton.startup import startup_models
from gati_export.bench import analyzer, contenders, peers, processes, startup, traffic
from gati_export.bench import run as bench_run
from gati_export.bench.analyzer import Latency, Load, find_analyzer, measure
from gati_export.bench.audits import audited, eager
from gati_export.bench.contenders import add_studies, set_up
from gati_export.bench.int8 import quantise
from gati_export.bench.judge import exits_of, shares
from gati_export.bench.limits import oracle_exits
from gati_export.bench.page import page, sentence
from gati_export.bench.peers import peer_heads
from gati_export.bench.plan import BenchPlan
from gati_export.bench.rows import (
    ALLOWED,
    BYPASSED,
    ENGINE,
    MOSTLY_HITS,
    ORACLE,
    Result,
    Row,
    answers_table,
    kept,
    loads_table,
    noise,
)
from gati_export.bench.run import _closed, _under
from gati_export.bench.tally import Answers, Tally, summed_up
from gati_export.bench.traffic import Traffic, write_inputs
from gati_export.commands.bench import MODES, bench_command
from gati_export.families import selfxit
from gati_export.families.blocks.distillation import Schedule
from gati_export.report.scrape import Reading

IMAGE = Tensor("image", "FP32", (3, 8, 8))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the variable be as it was after commands that set it."""
    monkeypatch.setenv(DEVICE, "cpu")


def quiet(_what: str, _share: float) -> None:
    """Progress that nobody looks at."""


def plan_of(repository: Path, chain: Chain, samples: dict[str, np.ndarray], *modes: str) -> BenchPlan:
    return BenchPlan(repository, chain, samples, against=(), modes=modes)


def pool(count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).normal(2, 5, (count, 3, 8, 8)).astype(np.float32)}


def number_of(samples: dict[str, np.ndarray], row: np.ndarray) -> int:
    return int(np.flatnonzero((samples["image"] == row).all((1, 2, 3)))[0])


def test_requests_come_in_the_order_of_their_workload() -> None:
    samples, classes = pool(), np.arange(60) % 4
    for workload in ("iid", "hot"):
        first, second = (
            Traffic(workload, samples, classes if workload == "hot" else None, [IMAGE], seed) for seed in (3, 3)
        )
        taken = np.concatenate([first.take(10)["image"], first.take(30)["image"]])
        np.testing.assert_array_equal(taken, second.take(40)["image"])  # in however many parts
    iid = Traffic("iid", samples, None, [IMAGE], 0)
    asked = [number_of(samples, row) for row in iid.take(60)["image"]]
    assert sorted(asked) == list(range(60))
    hot = Traffic("hot", samples, classes, [IMAGE], 0)
    popular = np.bincount(classes[[number_of(samples, row) for row in hot.take(200)["image"]]], minlength=4)
    assert np.sort(popular)[-2:].sum() > 160
    with pytest.raises(SamplesError, match="the same answer, and hot takes two"):
        Traffic("hot", samples, np.zeros_like(classes), [IMAGE], 0)


def test_repeats_are_of_what_was_measured_or_compared_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MOST", 150)  # and then the sequence begins anew
    iid = Traffic("iid", pool(), None, [IMAGE], 0)
    iid.take(60)  # to warm up: nobody remembers these that is measured
    iid.begin_comparing()
    iid.take(20)
    iid.begin_measuring()
    assert (iid.repeats, iid.distinct) == (0, 20)
    iid.take(40)
    assert iid.repeats == 0, "they are the other two thirds"
    iid.take(30)
    iid.take(10)
    assert iid.repeats == 0.5, "all have come by now"
    iid.begin_comparing()
    iid.take(120)
    iid.begin_measuring()
    assert iid.distinct == 60
    film = Traffic("frames", pool(), None, [IMAGE], 0)
    film.take(10)
    film.begin_measuring()
    film.take(10)
    assert (film.repeats, film.distinct) == (0, 10)


def test_frames_resemble_the_one_before_and_stay_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {
        "image": np.random.default_rng(1).normal(2, 5, (60, 3, 1, 1)).astype(np.float32).repeat(8, 2).repeat(8, 3)
    }
    monkeypatch.setattr(traffic, "MOST", 40)  # and then others come
    film = Traffic("frames", samples, None, [IMAGE], 0)
    shown = film.take(90)["image"]
    assert shown.dtype == np.float32 and film.repeats == 0
    low, high = (reduce(samples["image"], axis=(0, 2, 3)) for reduce in (np.min, np.max))
    assert (shown.min((0, 2, 3)) >= low - 1e-4).all() and (shown.max((0, 2, 3)) <= high + 1e-4).all()
    away = np.abs(shown - shown[:1]).mean((1, 2, 3))
    assert away[1:30].max() < away[30:].min()  # a scene lasts thirty frames
    for tensors in ([Tensor("x", "FP32", (7,))], [IMAGE, Tensor("mask", "BOOL", (3,))]):
        rows = {tensor.name: tensor.zeros(9) for tensor in tensors}
        with pytest.raises(SamplesError, match="frames is for models with one input of images"):
            Traffic("frames", rows, None, tensors, 0)


def test_input_data_is_what_was_drawn(tmp_path: Path) -> None:
    requests = pool(3) | {"loudness": np.ones(3, np.float32)}
    write_inputs(tmp_path / "inputs.json", requests)
    steps = json.loads((tmp_path / "inputs.json").read_text())["data"]
    content = [np.frombuffer(base64.b64decode(step["image"]["content"]["b64"]), np.float32) for step in steps]
    np.testing.assert_array_equal(np.stack(content).reshape(3, 3, 8, 8), requests["image"])
    assert steps[0]["image"]["shape"] == [3, 8, 8]
    assert steps[0]["loudness"]["shape"] == [1]


def latency(mean: float) -> Latency:
    return Latency(mean, mean, 2 * mean, 3 * mean, 1e3 / mean)


def test_speed_ups_are_taken_turn_by_turn() -> None:
    plain, fast = Tally(), Tally()
    for slow, quick in ((4.0, 2.0), (8.0, 2.0)):
        plain.add(latency(slow), 8.0)
        fast.add(latency(quick), 4.0)
    row = fast.row("chain-inline", "iid", Load(1), plain, Answers(0.99, {"0": 1.0}), 10.0)
    assert (row.speedup, row.low, row.high, row.cpu_ms) == (3.0, 2.0, 4.0, 4.0)
    limit = Tally()
    for _ in range(2):
        limit.add(latency(1.0), None)
    row = limit.row("oracle", "iid", Load(1), plain, Answers(None, {}), None)
    assert (row.low, row.cpu_ms, row.agreement) == (4.0, None, None)
    assert summed_up(np.array([1.0, 3.0])).throughput == 500


def test_throughput_is_of_all_turns_together() -> None:
    tally = Tally()
    for mean in (2.0, 8.0):
        tally.add(latency(mean), None)
    row = tally.row("plain", "iid", Load(1), tally, Answers(1.0, {}), None)
    assert row.throughput == pytest.approx(200), "two requests in 10 ms, and not half of 500 + 125 a second"


def result_of(*means: tuple[str, float], in_flight: int = 1) -> Result:
    plain = Tally()
    plain.add(latency(dict(means)["plain"]), 1.0)
    rows = []
    for name, mean in means:
        tally = Tally()
        tally.add(latency(mean), 1.0)
        rows.append(tally.row(name, "iid", Load(in_flight), plain, Answers(0.995, {"0": 0.75, "2": 0.25}), 50.0))
    conditions = {"model": "<b>", "release": 3, "workload": "iid", "device": "cpu", "turns": 1}
    conditions |= {"compared": 300, "distinct": 212, "epsilon": 0.01, "repeats": 0.0123}
    conditions |= {"start_seconds": {"plain": 1.0456789, "chain-inline": 2.3}}
    return Result(conditions, tuple(rows), ("A note.",))


def test_what_can_not_be_faster_and_seems_so_tells_of_noise() -> None:
    rows = ("plain", 4.0), ("chain-inline", 2.0), ("oracle", 1.0)
    for name in ("mechanism", "all-miss", BYPASSED):
        result = result_of(*rows, (name, 3.0))
        said = noise(result)
        assert said is not None and f"({name} 1.33 times, 1 in flight)" in said
        assert said.endswith(".") and said.count(". ") == 0, "a sentence"
        assert kept(result, ORACLE) is None
        within = result_of(*rows, (name, 3.6))  # 1.11
        assert noise(within) is None and kept(within, ORACLE) == pytest.approx(2 / 3)
        assert noise(result_of(*rows, (name, 3.0), in_flight=8)) is None, "its batches may be better ones"
        assert "1.60 times, 8 in flight" in str(noise(result_of(*rows, (name, 2.5), in_flight=8)))
        assert noise(replace(result, conditions=result.conditions | {"device": "cuda"})) is None
    assert noise(result_of(*rows, ("hit-0", 1.0), ("hits-80", 1.0))) is None


def test_the_turns_stand_beside_the_speed_up() -> None:
    result = result_of(("plain", 246.9), ("chain-inline", 123.45), ("response-cache", 99.9), ("int8", 1234.5))
    rows = [replace(row, low=1.4, high=2.6) for row in result.rows]
    result = replace(result, rows=tuple(rows), conditions=result.conditions | {"turns": 3})
    assert sentence(result).startswith("chain-inline answers 2.00 times as fast (its turns: 1.40 to 2.60) as the plain")
    console = Console(width=80, record=True, file=StringIO())
    console.print(loads_table(result, (1, None)))
    said = console.export_text()
    assert "…" not in said and re.search(r"p99 +per s +speed-up +its turns +CPU ms", said)
    assert re.search(r"chain-inline +123\.5 +123\.5 +246\.9 +370\.4 +8 +2\.00 +1\.40-2\.60 +1\.00", said)


def test_page_says_what_came_out_and_escapes_it() -> None:
    result = result_of(("plain", 4.0), ("chain-inline", 2.0), ("hit-0", 1.0), ("oracle", 1.0), ("allowed", 1.5))
    assert sentence(result) == (
        "chain-inline answers 2.00 times as fast (one turn) as the plain model (mean 2.00 ms, not 4.00 ms, 1 in "
        "flight), and 99.50% of the answers to 300 requests (212 distinct) agree with its."
    )
    assert (kept(result, ORACLE), kept(result, ALLOWED)) == pytest.approx((2 / 3, 0.8))
    assert kept(result_of(("plain", 4.0), ("chain-inline", 2.0), ("allowed", 4.5)), ALLOWED) is None  # it saves nothing
    assert (
        kept(result_of(("plain", 4.0), ("chain-inline", 4.2), ("oracle", 4.0 - 1e-15)), ORACLE) is None
    )  # nor does it
    assert kept(result_of(("plain", 8.92), ("chain-inline", 2.32), ("allowed", 3.4)), ALLOWED) == 1  # all, give or take
    assert kept(result_of(("plain", 3.4), ("chain-inline", 1.8), ("oracle", 3.0)), ORACLE) is None  # it can't be
    assert kept(result_of(("plain", 4.0), ("chain-inline", 5.4), ("oracle", 1.0)), ORACLE) is None
    other = sentence(result_of(("plain", 8.0), ("chain-inline", 4.0), ("chain-int8", 3.0)))
    assert other.startswith("chain-inline answers 2.00 times as fast")  # not another network, of no promise
    text = page(result)
    for name, value in (
        ("start seconds", "plain 1.05 s, chain-inline 2.30 s"), ("epsilon", "1%"), ("repeats", "1.2%"),
        ("compared", "300"),
    ):  # fmt: skip
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert "&lt;b&gt;" in text and "<b></b>" not in text and "A note." in text and text.count("<svg") == 3
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")


def test_answers_are_those_of_the_first_load() -> None:
    alone = result_of(("plain", 4.0), ("chain-inline", 2.0), ("hit-0", 1.0))
    loaded = [replace(row, concurrency=8, exits={"1": 1.0}, rss_mb=99.0) for row in alone.rows[:2]]
    result = replace(alone, rows=(*alone.rows, *loaded))
    console = Console(width=80, record=True, file=StringIO())
    console.print(answers_table(result))
    said = console.export_text()
    assert said.startswith("answers, 1 in flight") and "hit-0" in said
    assert re.search(r"chain-inline +99\.50% +50 +0:75% 2:25%", said) and "1:100%" not in said
    told = page(result).partition("Where requests were answered, 1 in flight")[2]
    assert "0: 75.0%, 2: 25.0%" in told and "1: 100.0%" not in told


def test_exits_are_as_many_as_their_shares_say() -> None:
    exits = np.array([0, 2, 2, 5, 0, 0, 2])
    np.testing.assert_array_equal(exits_of(shares(exits), len(exits)), np.sort(exits))


def test_what_can_not_be_quantised_is_said(exported: Exported, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(BenchError, match="quantisation failed"):
        quantise(broken, tmp_path / "none.onnx", {"image": exported.images[:3]})


def test_the_oracle_leaves_at_the_first_head_that_is_right(exported: Exported, tmp_path: Path) -> None:
    images = {"image": exported.images[:50]}
    arena = set_up(tmp_path / "models", plan_of(exported.repository, exported.chain, images, "inline"), {}, quiet)
    add_studies(arena, images)
    assert {c.name for c in arena.contenders} >= {"plain", "chain-inline", "mechanism", "all-miss"}
    exits = oracle_exits(arena, images)
    assert set(exits) <= {*arena.heads(), len(exported.chain.heads)} and (exits < len(exported.chain.heads)).any()
    plain = arena.repository / "plain" / "1" / "model.onnx"
    assert plain.samefile(exported.repository / PLAIN / "1" / "model.onnx")  # nothing is copied that can be linked
    first = min(arena.heads())
    head = open_session(arena.heads()[first])
    backbone = open_session(plain)
    hidden = images["image"]
    for index in range(first + 1):
        segment = open_session(exported.chain.segment_path(exported.repository, index))
        hidden = np.asarray(segment.run(None, {segment.get_inputs()[0].name: hidden})[0])
    answers = np.asarray(head.run([exported.chain.output.name], {head.get_inputs()[0].name: hidden})[0])
    right = parse_agreement("top-1")(answers, np.asarray(backbone.run(None, images)[0]))
    np.testing.assert_array_equal(exits == first, right)
    (mostly,) = (contender.chain for contender in arena.contenders if contender.name == MOSTLY_HITS)
    served = head_path(arena.repository, mostly, first, 1).read_bytes()
    (scores,) = head.run([SCORE], {head.get_inputs()[0].name: hidden})
    assert np.count_nonzero(scores >= threshold_of(served)) == 41  # of 50: the next that is four in five or more


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UnavailableError, match="perf_analyzer is not installed"):
        find_analyzer()


def test_the_peers_learn_behind_the_chains_own_segments(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfxit.Exit, "schedule", Schedule(1, 20, 20, 32, 1e-2))
    every = selfxit.lookups
    monkeypatch.setattr(selfxit, "lookups", lambda cut, classes: every(cut, classes)[:1])  # of three architectures
    monkeypatch.setattr(peers, "CERTIFIED", {"knn": "nearest"})  # GATI's heads take longer, and nothing else
    chain = replace(exported.chain, views=0)
    segments = chain.segment_paths(exported.repository)
    found, notes = peer_heads(chain, segments, {"image": exported.images}, None, lambda *_: None)
    assert set(found) == {"knn", "selfxit", "branchynet"}
    for peer in ("selfxit", "branchynet"):
        assert set(found[peer]) == set(chain.heads)  # an exit everywhere, sure or not
        assert {threshold_of(head) for head in found[peer].values()} == {np.float32(0.9)}
    assert found["knn"] or any(note.startswith("knn: ") for note in notes)  # it keeps the promise, or says why not


def test_peers_do_not_answer_with_numbers(exported: Exported) -> None:
    found, notes = peer_heads(replace(exported.chain, agreement="within 0.1"), [], {}, None, quiet)
    assert found == {} and "answers are numbers" in notes[0]


def test_peers_need_samples(exported: Exported, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=exported.images)
    command = [MODEL, "--repository", str(exported.repository), "--data", str(tmp_path / "data.npz")]
    done = CliRunner().invoke(bench_command, [*command, "--against", "peers"])
    assert isinstance(done.exception, SamplesError) and "--samples" in str(done.exception)


@pytest.mark.skipif(usable(Device("cuda")), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said(exported: Exported, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=exported.images)
    command = [MODEL, "--repository", str(exported.repository), "--data", str(tmp_path / "data.npz")]
    done = CliRunner().invoke(bench_command, [*command, "--device", "cuda:1"])
    assert isinstance(done.exception, UnavailableError) and "can't use cuda:1" in str(done.exception)


def test_on_a_gpu_the_plain_model_is_there_too(exported: Exported, tmp_path: Path) -> None:
    plan = plan_of(exported.repository, exported.chain, {"image": exported.images}, "inline")
    arena = set_up(tmp_path / "models", replace(plan, device=Device("cuda", 1)), {}, quiet)
    config = text_format.Parse((arena.repository / "plain" / "config.pbtxt").read_text(), ModelConfig())
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (ModelInstanceGroup.KIND_GPU, [1])
    chain = text_format.Parse((arena.repository / "chain-inline" / "config.pbtxt").read_text(), ModelConfig())
    assert chain.instance_group[0].kind == ModelInstanceGroup.KIND_CPU  # its process needs no GPU of Triton's


def test_options_are_checked(exported: Exported, tmp_path: Path) -> None:
    base = [MODEL, "--repository", str(exported.repository), "--data", str(tmp_path / "none.npz")]
    for more, said in (
        (["--against", "int4"], "'int4' is not one of plain, int8, cache, peers"),
        (["--concurrency", "0"], "'0' is no positive number"),
        (["--rate", "inf"], "'inf' is no positive number"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--modes", "magic"], "'magic' is not one of"),
        (["--device", "tpu"], "'tpu'"),
        (["--image", "huge"], "'huge'"),
    ):
        done = CliRunner().invoke(bench_command, [*base, *more])
        assert done.exit_code == 2 and said in done.output


def test_a_failing_model_is_reported_in_a_sentence(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    served = serve(exported.copy(tmp_path), GATI_STORE="none")
    write_inputs(tmp_path / "inputs.json", {"image": exported.images[:5]})
    program = find_analyzer()
    with pytest.raises(BenchError, match="perf_analyzer failed on 'nobody' at concurrency 1"):
        measure(program, served.grpc, "nobody", tmp_path / "inputs.json", 20, Load(1))
    before = processes.cpu_seconds(served.server.process.pid)
    seen = measure(program, served.grpc, MODEL, tmp_path / "inputs.json", 50, Load(2))
    assert 0 < seen.p50_ms <= seen.p95_ms <= seen.p99_ms and seen.throughput == pytest.approx(2e3 / seen.mean_ms)
    assert processes.cpu_seconds(served.server.process.pid) > before
    assert processes.peak_mib(served.server.process.pid, [MODEL]) > 20
    assert processes.peak_mib(served.server.process.pid, ["nobody"]) is None
    assert processes.cpu_seconds(os.getpid()) > 0


def test_bench_measures_a_chain_beside_all_else(
    exported: Exported, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "STARTS", 1)
    monkeypatch.setattr(bench_run, "NEW", 200)  # nobody looks at times here
    monkeypatch.setattr(bench_run, "LONGER", 0)
    repository = exported.copy(tmp_path, plain=True)
    np.savez(tmp_path / "data.npz", image=exported.images)
    command = ["--repository", str(repository)]
    command += ["--data", str(tmp_path / "data.npz"), "--against", "int8,cache", "--modes", "inline"]
    command += ["--concurrency", "1", "--rate", "80", "--requests", "100", "--turns", "1"]
    command += ["--json", str(tmp_path / "bench.json"), "--html", str(tmp_path / "bench.html")]
    left = repository.with_name("models.gati")
    killed, elsewhere = (left / f"bench-999999999-{host}-left" for host in (socket.gethostname(), "elsewhere"))
    killed.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.setenv("GATI_STORE", str(tmp_path / "production"))
    done = CliRunner().invoke(bench_command, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "times as fast (one turn) as the plain model" in done.stdout
    told = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["name"], row["concurrency"]): Row(**row) for row in told["rows"]}
    heads = {f"hit-{head['index']}" for head in release_heads(repository)}
    everyone = {
        "plain",
        "chain-inline",
        "mechanism",
        "all-miss",
        BYPASSED,
        MOSTLY_HITS,
        "response-cache",
        "int8",
        "chain-int8",
        ORACLE,
        ALLOWED,
        ENGINE,
    }
    assert {name for name, concurrency in rows if concurrency == 1} == everyone | heads
    assert {name for name, concurrency in rows if concurrency is None} == {
        "plain", "chain-inline", "response-cache", "int8", "chain-int8"
    }  # fmt: skip
    assert rows["plain", 1].speedup == 1 and rows["plain", 1].agreement == 1
    assert rows[ALLOWED, 1].exits == rows["chain-inline", 1].exits
    assert rows[ORACLE, 1].mean_ms <= rows[ALLOWED, 1].mean_ms  # both of the same times of segments
    last = str(len(exported.chain.heads))
    assert rows["all-miss", 1].exits == rows["mechanism", 1].exits == {last: 1.0}
    assert rows["all-miss", 1].agreement == 1
    assert rows[BYPASSED, 1].exits == {last: 1.0} and rows[BYPASSED, 1].agreement == 1
    assert rows["int8", 1].agreement >= 0.9 and rows["chain-int8", 1].agreement >= 0.8  # of 20
    first = min(heads).removeprefix("hit-")
    assert rows[MOSTLY_HITS, 1].exits[first] == pytest.approx(0.8, abs=0.12)  # of 100
    for name in heads:
        assert rows[name, 1].exits == {name.removeprefix("hit-"): 1.0}
    assert (told["conditions"]["compared"], told["conditions"]["distinct"]) == (100, 100)
    assert told["conditions"]["workload"] == "iid" and 0 < told["conditions"]["repeats"] < 0.1  # of 1,000
    assert (tmp_path / "bench.html").read_text().startswith("<!doctype html>")
    assert list(left.glob("bench-*")) == [elsewhere]  # the user's own repository is as it was
    assert not (tmp_path / "production").exists()  # nor are requests of a benchmark traffic
    assert sorted(p.name for p in repository.iterdir()) == sorted(p.name for p in exported.repository.iterdir())


def release_heads(repository: Path) -> list[dict]:
    path = next(repository.glob(f"{MODEL}-head-*/1/release.json"))
    return json.loads(path.read_text())["heads"]


def test_a_chain_without_a_release_is_measured_too(exported: Exported, tmp_path: Path) -> None:
    repository = exported.copy(tmp_path, plain=True)
    for path in repository.glob(f"{MODEL}-head-*/1/release.json"):
        path.unlink()
    chain = replace(exported.chain, mode="inline")
    few = {"image": exported.images[:9]}
    arena = set_up(tmp_path / "arena", plan_of(repository, chain, few, "bls"), {}, quiet)
    add_studies(arena, few)
    assert [c.name for c in arena.contenders] == ["plain", "chain-bls", "mechanism"]
    bls = startup_models(arena.repository)
    assert set(arena.contenders[1].models) >= {"chain-bls", "chain-bls-segment-0"} and "chain-bls-segment-1" in bls
    assert "mechanism-segment-0" not in bls  # it runs in the orchestrator
    assert any("no release" in note for note in arena.notes)
    assert (oracle_exits(arena, {"image": exported.images[:9]}) == len(chain.heads)).all()


def test_exits_that_are_closed_in_service_are_told_of(exported: Exported, tmp_path: Path) -> None:
    repository = exported.copy(tmp_path)
    number = min(head["index"] for head in release_heads(repository))
    few = {"image": exported.images[:9]}
    plan = plan_of(repository, exported.chain, few, "inline")
    assert set_up(tmp_path / "before", plan, {}, quiet).notes == []
    path = repository.with_name("models.gati") / "breaker" / MODEL / "host.jsonl"
    path.parent.mkdir(parents=True)
    alarm = Alarm(number, 310, 14, 0.0173)
    path.write_text(json.dumps(asdict(Event(datetime.now(UTC).isoformat(), 1, (number,), alarm))) + "\n")
    (note,) = set_up(tmp_path / "after", plan, {}, quiet).notes
    assert f"closed exit {number} of release 1" in note


@pytest.mark.parametrize("alone", [True, False], ids=["the first of them", "the last"])
def test_the_log_of_a_server_that_does_not_start_is_still_there(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    class Failing:
        def __init__(self, repository: Path, _ports: object, _environment: object, log: Path | None = None, *_: object):
            log = log or workspace(repository) / "server.log"
            log.write_text("why")
            raise RepositoryError(f"It did not start (its log is {log}).")

    monkeypatch.setattr(startup if alone else bench_run, "Server", Failing)
    if not alone:
        monkeypatch.setattr(bench_run, "seconds_to_answer", lambda *_: {})
    repository = exported.copy(tmp_path)
    with pytest.raises(RepositoryError, match="did not start") as raised:
        bench_run.bench(plan_of(repository, exported.chain, {"image": exported.images}, "inline"), quiet)
    log = repository.with_name("models.gati") / "bench.log"
    assert str(log) in str(raised.value) and log.read_text() == "why"


def test_heads_with_state_are_not_measured_in_bls_mode(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "has_state", lambda _model: True)
    images = {"image": exported.images[:9]}
    plan = plan_of(exported.repository, exported.chain, images, *MODES)
    arena = set_up(tmp_path / "arena", plan, {}, quiet)
    assert "chain-bls" not in [c.name for c in arena.contenders] and any("chain-bls" in note for note in arena.notes)
    with pytest.raises(BenchError, match="ask for --modes inline"):
        set_up(tmp_path / "none", replace(plan, modes=("bls",)), {}, quiet)


def test_requests_take_what_perf_analyzer_saw_and_not_the_sum_of_what_the_server_says(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"  # of a chain that answers some requests of a batch before the others
    names = ["Concurrency", "Inferences/Second", "Network+Server Send/Recv", "Server Queue", "Server Compute Infer"]
    names += [f"p{percentile} latency" for percentile in (50, 90, 95, 99)]
    table.write_text(",".join(names) + "\n8,299.9,0,8170,20946,22632,37984,43136,53957\n")
    said = "    Avg latency: 23113 usec (standard deviation 11424 usec)\n    Avg request latency: 29381 usec (over"
    seen = analyzer._read(table, said, Load(8))
    assert seen == Latency(23.113, 22.632, 43.136, 53.957, pytest.approx(346.1, abs=0.1))
    assert analyzer._read(table, said, Load(None, 300.0)).throughput == 300, "whole seconds, rounded up, make it less"
    slow = analyzer._read(table, f"{said}\n [WARNING] ... 99.50% of the requests were delayed.", Load(None, 2000.0))
    assert slow.throughput == pytest.approx(16e3 / 23.113) and slow.late == 0.995
    with pytest.raises(BenchError, match="how long requests took"):
        analyzer._read(table, "", Load(8))
    for damaged in ("Concurrency,p50 latency\n", "Concurrency\n8\n"):
        table.write_text(damaged)
        with pytest.raises(BenchError, match="this release of it is not known"):
            analyzer._read(table, said, Load(8))
    assert Load(None, 200.5).count(100) == 201 and Load(1).count(20) == 20
    assert Load(8).count(100) == 128 and Load(512).count(300) == 16 * 512, "most of it with all in flight"


def test_what_is_measured_begins_with_an_analyzer_that_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends, seen = iter([None, (0, "said")]), latency(1.0)

    def run(_command: list[str], _count: int, _answered: object) -> tuple[int, str] | None:
        (tmp_path / "inputs.csv").touch()
        return next(ends)

    monkeypatch.setattr(analyzer, "_run", run)
    monkeypatch.setattr(analyzer, "_read", lambda *_: seen)
    begun: list[int] = []
    found = measure(Path("none"), "localhost:1", "m", tmp_path / "inputs.json", 5, Load(1), lambda: begun.append(1))
    assert found == seen and len(begun) == 2


def test_exits_are_those_of_the_load() -> None:
    before, after = (
        Reading(1, False, (), (0, 1), exits, (0, 0), 0, 0, 0, 0, {}) for exits in ({0: 100, 3: 50}, {0: 130, 3: 60})
    )
    assert _under(Answers(0.9, {"3": 1.0}), before, after) == Answers(0.9, {"0": 0.75, "3": 0.25})
    assert _under(Answers(0.9, {}), None, None) == Answers(0.9, {})
    assert _closed("chain-inline", after) is None
    assert "chain-inline: audits found" in str(_closed("chain-inline", replace(after, closed=(2,))))
    assert "(all)" in str(_closed("chain-inline", replace(after, breaker_open=True)))


def test_an_analyzer_that_does_not_end_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "HUNG", 0.5)
    served = iter(range(0, 1000, 50))
    assert analyzer._run(["sleep", "60"], 50, lambda: next(served)) is None
    assert analyzer._run(["echo", "said"], 50, lambda: 0) == (0, "said\n")
    assert analyzer._run(["false"], 50, lambda: 0) == (1, "")
    monkeypatch.setattr(analyzer, "SECONDS", 0.5)
    with pytest.raises(BenchError, match=r"50 of 50 requests are not answered; measure with fewer"):
        analyzer._run(["sleep", "60"], 50, lambda: 0)


def test_a_release_that_is_looked_at_closely_is_told_from_one_that_is_known() -> None:
    start = Reading(1, False, (), (0, 1), {0: 40, 3: 60}, (7, 7), 2, 0, 0, 0, {})
    assert audited(start, start) == 0
    later = replace(start, exits={0: 240, 3: 110}, audits=(117, 110), held=22)  # 200 hits, and 20 more but for audits
    assert audited(start, later) == 0.5
    assert eager(0.5, 0.02) and not eager(0.04, 0.02)
    assert eager(0.9, 0.5) and not eager(0.5, 0.5)
    assert not eager(0.0, 0.0)
