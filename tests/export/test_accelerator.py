"""TensorRT's part of a repository, as far as that goes without a GPU: what Triton is told, by Triton's own protobuf."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from conftest import MODEL, PLAIN, Exported, Serve
from google.protobuf import text_format
from graphs import Graph
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from gati.errors import RepositoryError
from gati.inference.device import usable
from gati.inference.session import CPU, Device, open_session, run
from gati.repository.chain import Chain, Segment, Tensor, sha256_of
from gati_client import Client
from gati_export.composition.latency import measured_on
from gati_export.releases.accelerator import Accelerator, profile
from gati_export.releases.repository import head_config, write_plain, write_repository
from gati_export.releases.tensorrt_plans import why_no_plans

ENGINES = Path("/srv/cache")
KINDS = {"FP32": np.float32, "FP16": np.float16}


class Two:
    """A chain of two segments in a repository; the second reads the cut tensor [length, 5], and a mask [length]."""

    def __init__(self, folder: Path, *, cut: str = "cut", kind: str = "FP32", varies: bool = False, batch: int = 32):
        self.repository = folder / "models"
        length = -1 if varies else 6
        x, mask = Tensor("x", kind, (length, 3)), Tensor("mask", "INT64", (length,))
        tensors = Tensor(cut, kind, (length, 5)), Tensor("y", kind, (5,))
        blank = Chain("two", "bls", (x, mask), tensors[1], (), 0.01, 0.05, batch, engine="tensorrt")
        self.paths = [blank.segment_path(self.repository, index) for index in range(2)]
        for path, graph, tensor in zip(self.paths, _graphs(cut, KINDS[kind], varies), tensors, strict=True):
            path.parent.mkdir(parents=True)
            graph.save(path, tensor.name, dtype=element(KINDS[kind]))
        reads = (("x",), (cut, "mask"))
        segments = (Segment(i, reads[i], tensors[i], sha256_of(self.paths[i]), 0.5 * (i + 1)) for i in range(2))
        self.chain = replace(blank, segments=tuple(segments))
        self.samples = {"x": np.ones((2, 6, 3), KINDS[kind]), "mask": np.ones((2, 6), np.int64)}

    def configs(self) -> dict[str, ModelConfig]:
        """What Triton is told, by model."""
        accelerator = Accelerator.of(self.chain, self.paths, self.samples, ENGINES)
        write_repository(self.repository, self.chain, accelerator)
        write_plain(self.repository, self.chain, self.paths[0], accelerator)
        files = self.repository.glob("*/config.pbtxt")
        return {file.parent.name: text_format.Parse(file.read_text(), ModelConfig()) for file in files}


def element(kind: type) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))


def _graphs(cut: str, kind: type, varies: bool) -> tuple[Graph, Graph]:
    length = "length" if varies else 6
    first, second = Graph(), Graph()
    first.node("MatMul", first.input("x", ["batch", length, 3], kind), first.constant(np.ones((3, 5)), kind), name=cut)
    hidden = second.input(cut, ["batch", length, 5], kind)
    mask = second.input("mask", ["batch", length], np.int64)
    # Of three weights, a mask of ones takes the first; zeros ask for one that is not there, and the run fails.
    places = second.node("Sub", mask, second.constant(4))
    weights = second.node("Gather", second.constant([[1.0], [1.0], [1.0]], kind), places)
    second.node("ReduceMean", second.node("Mul", hidden, weights), second.constant([1]), name="y", keepdims=0)
    return first, second


def parameters(config: ModelConfig) -> dict[str, str]:
    """What TensorRT is told of a model; nothing if it is told nothing."""
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {key: value for one in found for key, value in one.parameters.items() if one.name == "tensorrt"}


def warm_ups(config: ModelConfig) -> dict[int, dict[str, list[int]]]:
    """Shapes of what a model is run on when it is loaded, by batch and input; all of it zeros."""
    assert all(tensor.zero_data for sample in config.model_warmup for tensor in sample.inputs.values())
    return {
        sample.batch_size: {name: list(tensor.dims) for name, tensor in sample.inputs.items()}
        for sample in config.model_warmup
    }


def test_engines_are_for_every_batch(tmp_path: Path) -> None:
    told = parameters(Two(tmp_path).configs()["two-segment-1"])
    folder = told.pop("trt_engine_cache_path")
    assert Path(folder).parent == ENGINES
    assert told == {
        "precision_mode": "FP32",
        "trt_engine_cache_enable": "1",
        "trt_profile_min_shapes": "cut:1x6x5,mask:1x6",
        "trt_profile_opt_shapes": "cut:8x6x5,mask:8x6",
        "trt_profile_max_shapes": "cut:32x6x5,mask:32x6",
    }


def test_segments_get_a_gpu_where_there_is_one_and_all_else_the_processor(tmp_path: Path) -> None:
    two = Two(tmp_path)
    kinds = {name: config.instance_group[0].kind for name, config in two.configs().items()}
    automatic, processor = ModelInstanceGroup.KIND_AUTO, ModelInstanceGroup.KIND_CPU
    segments = {"two-segment-0": automatic, "two-segment-1": automatic, "two-plain": automatic}
    assert kinds == {"two": processor, **segments}
    assert head_config(two.chain, 0).instance_group[0].kind == processor


def test_what_takes_zeros_is_warm_before_it_is_ready(tmp_path: Path) -> None:
    configs = Two(tmp_path).configs()
    assert warm_ups(configs["two-segment-0"]) == {1: {"x": [6, 3]}, 32: {"x": [6, 3]}}
    assert warm_ups(configs["two-segment-1"]) == warm_ups(configs["two-plain"]) == {}  # they would not be loaded


def test_one_number_a_row_is_two_dimensions_to_triton_and_one_to_the_engine(tmp_path: Path) -> None:
    two = Two(tmp_path)
    chain = replace(two.chain, inputs=(*two.chain.inputs, Tensor("loudness", "FP32", ())))
    accelerator = Accelerator(ENGINES, {"loudness": (), "x": (6, 3), "mask": (6,)}, True, [True, True])
    write_plain(two.repository, chain, two.paths[0], accelerator)
    config = text_format.Parse((two.repository / "two-plain" / "config.pbtxt").read_text(), ModelConfig())
    assert [*config.input[2].dims] == [1]
    assert config.input[2].HasField("reshape") and not config.input[2].reshape.shape
    assert parameters(config)["trt_profile_max_shapes"] == "x:32x6x3,mask:32x6,loudness:32"
    assert warm_ups(config)[32]["loudness"] == [1]


def test_a_shape_that_varies_is_left_to_what_comes(tmp_path: Path) -> None:
    config = Two(tmp_path, varies=True).configs()["two-segment-0"]
    assert not any("profile" in name for name in parameters(config))
    assert warm_ups(config) == {1: {"x": [6, 3]}, 32: {"x": [6, 3]}}  # as long as the samples are


def test_a_name_that_a_profile_can_not_hold_has_none(tmp_path: Path) -> None:
    configs = Two(tmp_path, cut="layer:0").configs()
    assert "trt_profile_min_shapes" in parameters(configs["two-segment-0"])
    assert "trt_profile_min_shapes" not in parameters(configs["two-segment-1"])


def test_a_batch_of_one_is_one_engine_and_one_run(tmp_path: Path) -> None:
    config = Two(tmp_path, batch=1).configs()["two-segment-0"]
    told = parameters(config)
    assert {told[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")} == {"x:1x6x3"}
    assert [*warm_ups(config)] == [1]


def test_a_network_keeps_its_precision(tmp_path: Path) -> None:
    half = Two(tmp_path, kind="FP16").configs()["two-segment-0"]
    assert parameters(half)["precision_mode"] == "FP16"


def test_engines_of_other_weights_are_kept_apart(tmp_path: Path) -> None:
    two = Two(tmp_path)
    first, *others = two.chain.segments
    other = replace(two.chain, segments=(replace(first, sha256="0" * 64), *others))
    chains = two.chain, two.chain, other
    assert len({Accelerator.of(chain, two.paths, two.samples, ENGINES).engines for chain in chains}) == 2


@pytest.mark.parametrize(
    ("dims", "seen", "expected"),
    [
        ((3, 8), (3, 8), ((1, 3, 8), (8, 3, 8), (32, 3, 8))),
        ((-1, 8), (10, 8), ((1, 1, 8), (8, 10, 8), (32, 10, 8))),
        ((), (), ((1,), (8,), (32,))),
    ],
)
def test_a_plan_is_for_shapes_up_to_the_samples(dims, seen, expected) -> None:
    assert profile(dims, seen, 32) == expected


def test_a_plan_is_run_by_tensorrts_own_backend(tmp_path: Path) -> None:
    two = Two(tmp_path)
    first, *others = two.chain.segments
    two.chain = replace(two.chain, segments=(replace(first, plan="0" * 64), *others))
    configs = two.configs()
    config = configs["two-segment-0"]
    assert (config.backend, config.instance_group[0].kind) == ("tensorrt", ModelInstanceGroup.KIND_GPU)
    assert not config.parameters and not parameters(config)
    assert [*warm_ups(config)] == [1, 32]
    assert configs["two-segment-1"].backend == "onnxruntime"


def test_a_plan_is_held_against_its_digest(tmp_path: Path) -> None:
    two = Two(tmp_path)
    path = two.chain.plan_path(two.repository, 0)
    path.write_bytes(b"a plan")
    first, *others = two.chain.segments
    chain = Chain.from_json(replace(two.chain, segments=(replace(first, plan=sha256_of(path)), *others)).to_json())
    chain.check_plan(two.repository, 0)
    chain.check_plan(two.repository, 1)  # it has none
    path.write_bytes(b"another")
    with pytest.raises(RepositoryError, match=r"model\.plan is not the one that chain\.json names"):
        chain.check_plan(two.repository, 0)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_tensorrt_it_is_said_why_there_are_no_plans() -> None:
    assert "tensorrt can't be imported" in (why_no_plans() or "")


@pytest.mark.parametrize(
    ("engine", "asked", "expected"),
    [
        ("onnxruntime", "", CPU),
        ("onnxruntime", "cuda:1", Device("cuda", 1)),
        ("tensorrt", "", Device("cuda") if usable(Device("cuda")) else CPU),
        ("tensorrt", "cpu", CPU),
    ],
)
def test_times_are_taken_where_it_is_said(tmp_path, monkeypatch, engine, asked, expected) -> None:
    monkeypatch.setenv("GATI_DEVICE", asked)
    assert measured_on(replace(Two(tmp_path).chain, engine=engine)) == expected


def test_a_server_without_a_gpu_runs_it_all_the_same(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    chain = replace(exported.chain, mode="bls", engine="tensorrt")
    repository = exported.copy(tmp_path, "bls")
    paths = chain.segment_paths(repository)
    accelerator = Accelerator.of(chain, paths, {"image": exported.images}, tmp_path)
    write_repository(repository, chain, accelerator)
    served = serve(repository)
    images = exported.images[:32]
    with Client(served.grpc, MODEL) as client:
        answered = client.infer(images, exact=True).output
    plain = open_session(exported.repository / PLAIN / "1" / "model.onnx")
    np.testing.assert_allclose(answered, run(plain, [chain.output.name], {"image": images})[0], rtol=1e-4, atol=1e-4)
    with triton.InferenceServerClient(served.grpc) as client:
        told = client.get_model_config(chain.segment_model(0)).config
    assert told.instance_group[0].kind == ModelInstanceGroup.KIND_CPU  # made of KIND_AUTO
    assert parameters(told)["trt_engine_cache_path"] == str(accelerator.engines)
    assert [*warm_ups(told)] == [1, chain.max_batch]
