"""Backbones that nobody tuned gati for, end to end: exported by the command, served, and held against themselves."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import networks
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import tritonclient.grpc as triton
from conftest import Served
from google.protobuf import text_format
from networks import Network, decided, resembling, unpadded
from running import eventually
from scipy import stats
from tritonclient.grpc import model_config_pb2

from gati.cli import main
from gati.inference.session import open_session
from gati.repository.chain import Chain, chain_path, read_chain
from gati.repository.release import head_path, valid_releases
from gati_export.bench.int8 import quantise
from gati_export.refreshing.plan import RefreshPlan
from gati_export.refreshing.refresh import refreshed
from gati_export.samples.ragged import count
from gati_export.samples.store import count_since, default_store, read_recent

ENOUGH, FEW = 1500, 40
MODULE = """
import networks

def build():
    return networks.decided(networks.vit(width=96)).module
"""


@dataclass(frozen=True)
class Case:
    """A network, the form in which it is handed to gati, and how many samples it comes with."""

    make: Callable[[], Network]
    form: str
    samples: int
    dynamic: tuple[str, ...] = ("batch",)


CASES = {
    "vit": Case(lambda: decided(networks.vit(width=96)), "callable", ENOUGH),
    "text": Case(lambda: decided(networks.text_transformer(width=192)), "onnx", ENOUGH, ("batch", "length")),
    "mlp": Case(lambda: decided(networks.mlp()), "pt2", ENOUGH),
    "vgg": Case(lambda: decided(networks.vgg()), "onnx", FEW),
    "mobilenet": Case(lambda: decided(networks.mobilenet()), "onnx", FEW),
    "preactivation": Case(lambda: decided(networks.resnet(pre=True)), "pt2", FEW),
    "quantised": Case(lambda: decided(networks.resnet()), "int8", FEW),
}
ENOUGH_CASES = [name for name, case in CASES.items() if case.samples == ENOUGH]


@dataclass(frozen=True)
class Family:
    """What became of a case: its chain, the backbone alone, and rows that it was not exported with."""

    chain: Chain
    repository: Path
    rows: dict[str, np.ndarray]

    def backbone(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        """The unmodified backbone in ONNX Runtime."""
        path = self.repository / f"{self.chain.model}-plain" / "1" / "model.onnx"
        return np.asarray(open_session(path).run(None, rows)[0])

    def cached(self, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What the segments' and heads' files give in ONNX Runtime, one row after another; answers and exits."""
        live = next(valid_releases(self.repository, self.chain), None)
        heads = {} if live is None else {head.index: live.number for head in live.heads}
        segments = [open_session(path) for path in self.chain.segment_paths(self.repository)]
        opened = {k: open_session(head_path(self.repository, self.chain, k, n)) for k, n in heads.items()}
        answers, exits = [], []
        for row in range(count(rows)):
            values = {name: array[row : row + 1] for name, array in rows.items()}
            for segment, session in zip(self.chain.segments, segments, strict=True):
                name = segment.output.name
                values[name] = np.asarray(session.run([name], {i: values[i] for i in segment.inputs})[0])
                if segment.index in opened:
                    answer, hit = opened[segment.index].run([self.chain.output.name, "hit"], {name: values[name]})
                    if np.asarray(hit)[0]:
                        break
            else:
                answer = values[self.chain.output.name]
            answers.append(np.asarray(answer)[0])
            exits.append(segment.index)
        return np.stack(answers), np.array(exits)


def write_backbone(name: str, case: Case, network: Network, folder: Path) -> str:
    """Writes a network in the form that a user would have it in; returns what to call it on the command line."""
    if case.form in ("onnx", "int8"):
        path = networks.export_onnx(network.module, network.inputs, folder / f"{name}.onnx", dynamic=case.dynamic)
        if case.form == "int8":
            quantise(path, path, network.inputs, narrow=True)
        return path.name
    if case.form == "pt2":
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        tensors = tuple(torch.from_numpy(rows[:2]) for rows in network.inputs.values())
        program = torch.export.export(network.module, tensors, dynamic_shapes=[batch] * len(tensors))
        torch.export.save(program, folder / f"{name}.pt2")
        return f"{name}.pt2"
    (folder / f"own_{name}.py").write_text(MODULE)
    return f"own_{name}:build"


def write_samples(case: Case, network: Network, path: Path) -> str:
    """Writes samples; where texts may have any length, without padding. Returns the file's name."""
    samples = resembling(network, case.samples)
    if "length" in case.dynamic:
        texts = unpadded(samples)
        columns = {name: [text[name][0].tolist() for text in texts] for name in samples}
        pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
        return f"{path.name}.parquet"
    np.savez(path.with_suffix(".npz"), **samples)
    return f"{path.name}.npz"


def asked(case: Case, network: Network, seed: int = 1) -> dict[str, np.ndarray]:
    """40 rows that it was not exported with; texts are of one length here, to be asked for together."""
    if "length" not in case.dynamic:
        return resembling(network, 40, seed=seed)
    texts = dict(by_length(unpadded(resembling(network, 1000, seed=seed))))
    return some(texts[8], slice(0, 40))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """All cases, exported into one repository by the command."""
    folder = tmp_path_factory.mktemp("backbones")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        for name, case in CASES.items():
            network = case.make()
            samples = write_samples(case, network, folder / name)
            backbone = write_backbone(name, case, network, folder)
            options = ["--repository", "models", "--name", name, "--mode", "inline", "--cut-points", "2", "--plain"]
            options += ["--families", "pooled", "--views", "3000"]  # the others take longer to learn
            with pytest.raises(SystemExit) as end:
                main(["export", backbone, "--samples", samples, *options])
            assert not end.value.code
            chain = read_chain(folder / "models", name)
            rows = asked(case, network)
            names = [tensor.name for tensor in chain.inputs]
            made[name] = Family(chain, folder / "models", dict(zip(names, rows.values(), strict=True)))
    return made


@pytest.fixture(scope="module")
def served(serve_module, families) -> Served:
    """A server of all chains, inline."""
    return serve_module(families["vit"].repository, GATI_STORE="none", GATI_AUDIT="0")


@pytest.fixture(scope="module")
def inline(served) -> triton.InferenceServerClient:
    """Asks it."""
    return triton.InferenceServerClient(served.grpc)


@pytest.fixture(scope="module")
def bls(serve_module, families, tmp_path_factory: pytest.TempPathFactory) -> triton.InferenceServerClient:
    """A server of the text chain, in BLS mode."""
    repository = tmp_path_factory.mktemp("bls") / "models"
    for folder in families["text"].repository.glob("text*"):
        shutil.copytree(folder, repository / folder.name)
    chain_path(repository, "text").write_text(replace(families["text"].chain, mode="bls").to_json())
    return triton.InferenceServerClient(serve_module(repository, GATI_STORE="none", GATI_AUDIT="0").grpc)


def ask(client: triton.InferenceServerClient, family: Family, rows: dict[str, np.ndarray], model: str = "", **params):
    inputs = []
    for tensor in family.chain.inputs:
        inputs.append(triton.InferInput(tensor.name, list(rows[tensor.name].shape), tensor.dtype))
        inputs[-1].set_data_from_numpy(rows[tensor.name])
    return client.infer(model or family.chain.model, inputs, parameters=params or None)


def some(rows: dict[str, np.ndarray], index: slice) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in rows.items()}


def by_length(texts: list[dict[str, np.ndarray]]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Texts of one length together."""
    for length in sorted({text["input_ids"].shape[1] for text in texts}):
        alike = [text for text in texts if text["input_ids"].shape[1] == length]
        yield length, {name: np.concatenate([text[name] for text in alike]) for name in alike[0]}


def close(answer: np.ndarray, expected: np.ndarray) -> bool:
    return bool((np.abs(answer - expected) <= 1e-5 * np.maximum(1, np.abs(expected).max())).all())


@pytest.mark.parametrize("name", ENOUGH_CASES)
def test_enough_samples_give_a_chain_with_heads_where_they_pay(families, name):
    family = families[name]
    live = next(valid_releases(family.repository, family.chain), None)
    if name == "mlp":  # a few microseconds of work: no lookup can pay, on no machine
        assert live is None
    else:
        assert live is not None
        assert live.certificate.bound <= 0.01


@pytest.mark.parametrize("name", CASES)
def test_exact_answers_are_the_backbones(inline, families, name):
    family = families[name]
    for start in range(0, 40, 8):
        rows = some(family.rows, slice(start, start + 8))
        answers = ask(inline, family, rows, gati_mode="exact")
        assert close(answers.as_numpy(family.chain.output.name), family.backbone(rows))
        assert not answers.as_numpy("release").any()
        assert (answers.as_numpy("exit") == family.chain.backbone_exit).all()


@pytest.mark.parametrize("name", CASES)
def test_cached_answers_are_the_heads_or_the_backbones(inline, families, name):
    family = families[name]
    expected, exits = family.cached(family.rows)
    for start in (0, 1, 2, 3, 4, 5, 6, 7):
        served = ask(inline, family, some(family.rows, slice(start, start + 1)))
        assert close(served.as_numpy(family.chain.output.name), expected[start : start + 1])
        assert served.as_numpy("exit").ravel() == exits[start]
    together = ask(inline, family, some(family.rows, slice(8, 40)))
    assert (together.as_numpy("exit").ravel() == exits[8:]).all()
    assert close(together.as_numpy(family.chain.output.name), expected[8:])
    assert ((together.as_numpy("release").ravel() > 0) == (exits[8:] < family.chain.backbone_exit)).all()
    if name in ("vit", "text"):
        assert exits.min() < family.chain.backbone_exit


def test_none_of_them_goes_the_long_way(inline, served, families):
    for name, family in families.items():
        ask(inline, family, some(family.rows, slice(0, 1)), name)
    time.sleep(1)  # a release is joined a moment after it went live
    assert "than they need to" not in served.log()


def test_texts_of_all_lengths_are_answered_early_and_as_promised(families):
    family, wrong, early = families["text"], 0, set()
    texts = {length: rows for length, rows in by_length(unpadded(resembling(CASES["text"].make(), 600, seed=2)))}
    for length, rows in texts.items():
        answers, exits = family.cached(rows)
        wrong += int((answers.argmax(1) != family.backbone(rows).argmax(1)).sum())
        early |= {length} if (exits == 0).any() else set()
    assert wrong <= stats.binom.ppf(0.999, 600, family.chain.epsilon)
    assert len(early) >= 5


def test_a_refresh_learns_from_texts_of_all_lengths(serve, families, tmp_path):
    family, repository = families["text"], tmp_path / "models"
    for folder in family.repository.glob("text*"):
        shutil.copytree(folder, repository / folder.name)
    chain = replace(family.chain, epsilon=0.05)  # a promise that few samples can certify
    chain_path(repository, "text").write_text(chain.to_json())
    server = serve(repository, GATI_STORE="", GATI_AUDIT="0")
    client = triton.InferenceServerClient(server.grpc)
    texts = [text for text in unpadded(resembling(CASES["text"].make(), 1000, seed=3)) if text["input_ids"].size > 3]
    for text in texts:
        ask(client, family, text)
    store = default_store(repository)
    assert eventually(lambda: count_since(store, chain, "")[0] == len(texts))
    recorded = read_recent(store, chain, len(texts))
    assert [row.tolist() for row in recorded.samples["input_ids"]] == [text["input_ids"][0].tolist() for text in texts]
    done = refreshed(RefreshPlan(repository, chain, store, server=server.grpc, always=True), lambda *_: None)
    assert done.release is not None and done.release.window.samples == len(texts)
    early = set()
    for length, rows in by_length(texts):
        served = ask(client, family, some(rows, slice(0, 32)))
        early |= {length} if (served.as_numpy("release") == done.release.number).any() else set()
    assert len(early) >= 5


@pytest.mark.parametrize("length", [1, 6, 10, 17])
def test_sequences_of_other_lengths(inline, families, length):
    family = families["text"]
    rows = {name: np.resize(array, (5, length)) for name, array in family.rows.items()}
    rows["attention_mask"][:] = 1
    exact = ask(inline, family, rows, gati_mode="exact")
    assert close(exact.as_numpy(family.chain.output.name), family.backbone(rows))
    expected, exits = family.cached(rows)
    served = ask(inline, family, rows)
    assert (served.as_numpy("exit").ravel() == exits).all()
    assert close(served.as_numpy(family.chain.output.name), expected)


def test_in_bls_mode_the_answers_are_the_same(bls, families):
    family = families["text"]
    rows = some(family.rows, slice(0, 32))
    assert close(ask(bls, family, rows, gati_mode="exact").as_numpy(family.chain.output.name), family.backbone(rows))
    wait_for_release(bls, family)
    expected, exits = family.cached(rows)
    served = ask(bls, family, rows)
    assert (served.as_numpy("exit").ravel() == exits).all()
    assert close(served.as_numpy(family.chain.output.name), expected)


def wait_for_release(client: triton.InferenceServerClient, family: Family) -> None:
    """Heads of BLS mode are taken in after the server has started."""
    for _ in range(200):
        if ask(client, family, some(family.rows, slice(0, 1)), gati_mode="probe").as_numpy("release").any():
            return
        time.sleep(0.05)
    raise AssertionError("the release did not go live within 10 s")


@pytest.mark.parametrize("name", CASES)
def test_the_plain_model_is_the_backbone_unmodified(inline, families, name):
    family = families[name]
    rows = some(family.rows, slice(0, 4))
    plain = ask(inline, family, rows, f"{name}-plain")
    assert close(plain.as_numpy(family.chain.output.name), family.backbone(rows))
    if CASES[name].form in ("onnx", "int8"):
        given = onnx.load(family.repository.parent / f"{name}.onnx")
        assert onnx.load(family.repository / f"{name}-plain" / "1" / "model.onnx") == given


@pytest.mark.parametrize("name", CASES)
def test_configurations_are_what_triton_reads(inline, families, name):
    family = families[name]
    backends = {}
    for path in sorted(family.repository.glob(f"{name}*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        assert config.name == path.parent.name
        backends[config.name] = config.backend
    assert backends.pop(name) == "gati"
    assert set(backends.values()) == {"onnxruntime"}
    release = next(valid_releases(family.repository, family.chain), None)
    heads = {family.chain.head_model(head.index) for head in release.heads} if release else set()
    segments = {family.chain.segment_model(segment.index) for segment in family.chain.segments}
    assert backends.keys() == {*heads, *segments, f"{name}-plain"}
    served = inline.get_model_metadata(name, as_json=True)
    plain = inline.get_model_metadata(f"{name}-plain", as_json=True)
    assert served["inputs"] == plain["inputs"]
    assert [o["name"] for o in served["outputs"]] == [*(o["name"] for o in plain["outputs"]), "exit", "release"]
