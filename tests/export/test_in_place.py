"""Models in their folders of a Triton repository: what a chain takes over of them, and which it can't stand in for."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from graphs import Graph
from torch import nn
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput

from gati.cli import main
from gati.errors import RepositoryError
from gati.repository.chain import Tensor, chain_path, read_chain
from gati_export.releases.deployed import read_deployed
from gati_export.releases.repository import chain_config, check_config

CONFIG = """
max_batch_size: 16
input [{ name: "x", data_type: TYPE_FP32, dims: [6] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [4] }]
"""
ROWS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def network(seed: int = 0) -> Graph:
    graph = Graph(seed)
    hidden = graph.node("Relu", graph.linear(graph.input("x", ["batch", 6]), 6, 6))
    graph.linear(hidden, 6, 4, name="y")
    return graph


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, as Triton has it, whose configuration tests write."""
    for version in ("1", "2", "10"):
        (tmp_path / "production" / "net" / version).mkdir(parents=True)
        network(int(version)).save(tmp_path / "production" / "net" / version / "model.onnx", "y", shape=["batch", 4])
    return tmp_path / "production" / "net"


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Callable[..., tuple[str, str]]:
    """Runs `gati export` of a folder in `production`, beside it; gives what it says, and its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(name: str = "net", *options: str, **samples: np.ndarray) -> tuple[str, str]:
        np.savez(tmp_path / "rows.npz", **(samples or {"x": ROWS}))
        more = ["--samples", "rows.npz", "--repository", "models", "--mode", "inline", *options]
        with pytest.raises(SystemExit):
            main(["export", f"production/{name}", *more])
        return capfd.readouterr()

    return run


def config_of(repository: Path, name: str) -> ModelConfig:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def configured(model: Path, text: str) -> Path:
    (model / "config.pbtxt").write_text(text)
    return model


def test_without_a_configuration_the_file_tells(model, tmp_path, export) -> None:
    said, error = export()
    assert not error
    chain = read_chain(tmp_path / "models", "net")
    assert (chain.max_batch, chain.inputs, chain.labels) == (32, (Tensor("x", "FP32", (6,)),), ())
    assert "Clients and ensembles that ask for version 10 by its number" in said
    assert "Requests of more than 32 rows are refused" in said
    assert read_deployed(model).path == model / "10" / "model.onnx"


@pytest.mark.parametrize("path", ["net/10/model.onnx", "net/", "../linked/net"])
def test_the_chain_is_named_after_the_model(model, tmp_path, export, path) -> None:
    (tmp_path / "elsewhere").mkdir()
    model.rename(tmp_path / "elsewhere" / "v7")  # repositories are often made of links
    model.symlink_to(tmp_path / "elsewhere" / "v7")
    (tmp_path / "linked").symlink_to(tmp_path / "production")
    assert not export(path)[1]
    assert read_chain(tmp_path / "models", "net").model == "net"


def test_a_file_alone_has_no_configuration_which_is_said(model, tmp_path, export) -> None:
    assert "config.pbtxt" not in export("net/1/model.onnx", "--name", "first")[1]
    configured(model, CONFIG)
    _, error = export("net/1/model.onnx")
    assert error == "production/net/config.pbtxt is not read; for a chain in that model's place, give production/net.\n"
    assert read_chain(tmp_path / "models", "net").max_batch == 32


def test_what_it_says_of_batches_is_taken_over(model, tmp_path, export) -> None:
    batching = 'dynamic_batching { preferred_batch_size: [4, 16] max_queue_delay_microseconds: 100 }\nname: "net"'
    tags = 'metric_tags { key: "team" value: "vision" }'
    labelled = CONFIG.replace("dims: [4]", 'dims: [4], label_filename: "kinds.txt"')
    configured(model, f"{labelled}{batching}\n{tags}\nresponse_cache {{ enable: true }}")
    (model / "kinds.txt").write_text("a\nb\nc\nd\n")
    said, error = export("net", "--max-batch", "8", "--plain")
    assert not error
    for name in ("net", "net-plain"):
        config = config_of(tmp_path / "models", name)
        assert config.max_batch_size == read_chain(tmp_path / "models", "net").max_batch == 8
        assert list(config.dynamic_batching.preferred_batch_size) == [4]
        assert config.dynamic_batching.max_queue_delay_microseconds == 100
        assert config.metric_tags == {"team": "vision"}
        assert config.output[0].label_filename == "labels-0.txt"
        assert (tmp_path / "models" / name / "labels-0.txt").read_text() == "a\nb\nc\nd\n"
    assert "Not taken over from net's configuration: response_cache." in said
    assert "Requests of more than 8 rows are refused" in said


def test_all_that_is_not_taken_over_is_said(model, tmp_path, export) -> None:
    metrics = 'metric_control [{ metric_identifier { family: "nv_inference_first_response_histogram_ms" } }]'
    batching = "dynamic_batching { priority_levels: 2 default_priority_level: 1 max_queue_delay_microseconds: 9 }"
    configured(model, f"{CONFIG}{batching}\nmodel_metrics {{ {metrics} }}\nparameters {{ key: 'k' }}")
    said, _ = export()
    assert "Not taken over from net's configuration: parameters, model_metrics." in said
    assert "from net's dynamic_batching: priority_levels, default_priority_level; with these" in said
    kept = config_of(tmp_path / "models", "net").dynamic_batching
    assert (kept.priority_levels, kept.default_priority_level, kept.max_queue_delay_microseconds) == (0, 0, 9)


def test_what_a_chain_without_batches_leaves_out_is_said(model, export) -> None:
    network().save(model / "10" / "model.onnx", "y", shape=[1, 4])
    one = onnx.load(model / "10" / "model.onnx")
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(one, model / "10" / "model.onnx")
    shapes = CONFIG.replace("max_batch_size: 16", "").replace("[6]", "[1, 6]").replace("[4]", "[1, 4]")
    configured(model, f"{shapes} dynamic_batching {{ }}")
    said, error = export()
    assert not error
    assert "Not taken over from net's configuration: dynamic_batching." in said
    assert "find the batch in max_batch_size, 1 in place of 0, and no longer in the shapes" in said


def test_clients_are_told_the_order_of_an_image_s_axes(model, tmp_path, export) -> None:
    graph = Graph()
    flat = graph.node("Flatten", graph.input("x", ["batch", 3, 2, 1]), axis=1)
    graph.linear(graph.node("Relu", graph.linear(flat, 6, 6)), 6, 4, name="y")
    graph.save(model / "10" / "model.onnx", "y", shape=["batch", 4])
    configured(model, CONFIG.replace("dims: [6]", "format: FORMAT_NCHW, dims: [3, 2, 1]"))
    assert not export("net", "--plain", x=ROWS.reshape(-1, 3, 2, 1))[1]
    for name in ("net", "net-plain"):
        assert config_of(tmp_path / "models", name).input[0].format == ModelInput.FORMAT_NCHW
    check_config(tmp_path / "models" / "net" / "config.pbtxt", chain_config(read_chain(tmp_path / "models", "net")))


def test_only_outputs_that_clients_see_are_served(tmp_path, export) -> None:
    graph = network()
    graph.node("Softmax", "y", name="odds", axis=1)
    graph.node("ArgMax", "y", name="label", axis=1, keepdims=0)
    proto = graph.model("y", "odds", shape=["batch", 4])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch"]))
    folder = tmp_path / "production" / "several" / "1"
    (folder / "model.onnx").mkdir(parents=True)  # as Triton has it where weights lie beside the network
    onnx.save(proto, folder / "model.onnx" / "model.onnx")
    outputs = '{ name: "odds", data_type: TYPE_FP32, dims: [4], label_filename: "kinds.txt" }'
    configured(folder.parent, CONFIG.replace('{ name: "y", data_type: TYPE_FP32, dims: [4] }', outputs))
    (folder.parent / "kinds.txt").write_text("a\nb\nc\nd\n")
    assert not export("several")[1]
    chain = read_chain(tmp_path / "models", "several")
    assert [tensor.name for tensor in chain.served] == ["odds"]
    assert chain.read_labels(tmp_path / "models", 0) == b"a\nb\nc\nd\n"
    assert config_of(tmp_path / "models", "several").output[0].label_filename == "labels-0.txt"
    text = chain_path(tmp_path / "models", "several").read_text().replace('"labels": [', '"labels": ["", ')
    chain_path(tmp_path / "models", "several").write_text(text)
    with pytest.raises(RepositoryError, match="labels of other outputs"):
        read_chain(tmp_path / "models", "several")


@pytest.mark.filterwarnings("ignore")  # PyTorch would rather see other formats
def test_torchscript_is_read_by_the_names_that_clients_know(tmp_path, export) -> None:
    folder = tmp_path / "production" / "scripted" / "1"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    torch.jit.save(torch.jit.script(module), folder / "model.pt")
    names = CONFIG.replace('"x"', '"INPUT__0"').replace('"y"', '"OUTPUT__0"')
    configured(folder.parent, f'{names}platform: "pytorch_libtorch"')
    said, error = export("scripted", INPUT__0=ROWS)
    assert not error
    chain = read_chain(tmp_path / "models", "scripted")
    assert (chain.inputs[0].name, chain.output.name, chain.max_batch) == ("INPUT__0", "OUTPUT__0", 16)
    assert "by its number" not in said


@pytest.mark.parametrize(
    ("policy", "version", "others"),
    [
        ("", 10, ()),
        ("latest { num_versions: 2 }", 10, (2,)),
        ("latest { num_versions: 9 }", 10, (0, 1, 2)),
        ("all { }", 10, (0, 1, 2)),
        ("specific { versions: [1, 2, 7] }", 2, (1,)),
    ],
)
def test_the_newest_version_that_is_served(model, policy, version, others) -> None:
    """As Triton takes folders: none with a leading zero, and what is a number alone; it serves 0."""
    for name in ("0", "011", "v12", "12.old"):
        (model / name).mkdir()
    (model / "13").write_text("no folder")
    configured(model, policy and f"version_policy {{ {policy} }}")
    found = read_deployed(model)
    assert (found.version, found.others) == (version, others)


def test_versions_that_go_are_said(model, export) -> None:
    configured(model, f"{CONFIG} version_policy {{ latest {{ num_versions: 2 }} }}")
    said, error = export()
    assert not error
    assert (
        "served in other versions too, which are not taken over: 2. Version 1 is now the chain, of version 10" in said
    )


def test_what_a_newer_triton_knows_is_said(model, tmp_path, export) -> None:
    newer = CONFIG.replace("dims: [6]", 'sparse { kind: "}" }; dims: [6]').replace("}]", "}] # new: {", 1)
    configured(model, f"{newer}instance_group [{{ count: 2, kind: KIND_NPU }}]\nfuture: <\n a: [1] >, name: 'net'")
    said, error = export()
    assert not error
    names = "input.sparse (line 3), instance_group.kind KIND_NPU (line 5), future (line 6)."
    assert f"Not understood in net/config.pbtxt, perhaps of a newer Triton, and not taken over: {names}" in said
    assert "Not taken over from net's configuration: instance_group." in said
    assert read_chain(tmp_path / "models", "net").max_batch == 16


def test_the_configuration_is_the_one_that_triton_is_told(model, tmp_path, export) -> None:
    configured(model, CONFIG)
    (model / "configs").mkdir()
    (model / "configs" / "h100.pbtxt").write_text(CONFIG.replace("16", "8"))
    for options, batch, says in (
        ([], 16, "Configured by net/config.pbtxt; --model-config-name would take another, of h100."),
        (["--model-config-name", "h100"], 8, "Configured by net/configs/h100.pbtxt."),
        (["--model-config-name", "l4"], 16, "Configured by net/config.pbtxt: configs/l4.pbtxt is not there."),
    ):
        said, error = export("net", "--name", f"net-{len(options)}-{batch}", *options)
        assert not error
        assert says in said
        assert read_chain(tmp_path / "models", f"net-{len(options)}-{batch}").max_batch == batch
    assert "is for a model's folder" in export("net/10/model.onnx", "--model-config-name", "h100")[1]
    assert "is for a model's folder" in export("net", "--model-config-name", "../net")[1]


def test_files_for_some_gpus_are_not_taken(model, export) -> None:
    files = 'cc_model_filenames [{ key: "8.0", value: "net-80.onnx" }]'
    configured(model, CONFIG + files)
    said, _ = export()
    assert "the files for GPUs of a compute capability, net-80.onnx (8.0); the chain is of model.onnx." in said
    configured(model, f'{CONFIG}{files} default_model_filename: "none.onnx"')
    assert "no net/10/none.onnx; gati takes ONNX and TorchScript networks, and one of cc_model_" in export()[1]


def test_a_file_may_be_a_folder_of_another_name(model, export) -> None:
    (model / "10" / "big.onnx").mkdir()
    (model / "10" / "model.onnx").rename(model / "10" / "big.onnx" / "model.onnx")
    configured(model, f'{CONFIG} default_model_filename: "big.onnx"')
    assert read_deployed(model).path == model / "10" / "big.onnx" / "model.onnx"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('name: "other"', "config.pbtxt is of a model 'other': its folder was renamed or copied"),
        (f"{CONFIG}instance_group", r"config.pbtxt can't be read: line 5, column 15: Expected"),
        ("\n max_batch_size: many", "can't be read: line 2, column 18: Couldn't parse integer: many."),
        ("future { a: 1", 'line 1, column 1: Message type .* has no field named "future".'),
        (CONFIG.replace("TYPE_FP32", "TYPE_FP4"), "line 3, column 32: Enum type .* has no value named TYPE_FP4."),
        ('platform: "tensorrt_plan"', "is run by Triton's backend 'tensorrt_plan'; export its network as ONNX"),
        ('ensemble_scheduling { step [{ model_name: "resize" }, { model_name: "real" }] }', "of resize, real."),
        ("sequence_batching { }", "keeps state between requests"),
        ("model_transaction_policy { decoupled: true }", "may give several answers to a request"),
        (CONFIG.replace("dims: [6]", "dims: [6], optional: true"), "input 'x' has optional"),
        (CONFIG.replace("dims: [4]", 'dims: [4], label_filename: "none.txt"'), "There is no .*none.txt"),
        (CONFIG.replace("dims: [6]", "dims: [2, 3], reshape { shape: [6] }"), r"'x' as \[2, 3\] to clients"),
        (CONFIG.replace("dims: [6]", "dims: [-1]"), r"'x' as \[-1\] to clients"),
        (CONFIG.replace("TYPE_FP32, dims: [6]", "TYPE_STRING, dims: [6]"), "'x' as STRING, which gati does not serve"),
        (CONFIG.replace("dims: [4]", "dims: [1, 4], reshape { shape: [4] }"), r"'y' as \[1, 4\] to clients"),
        (CONFIG.replace("max_batch_size: 16", "").replace("dims: [6]", "dims: [-1, 7]"), r"'x' as \[7\] to clients"),
        (CONFIG.replace("TYPE_FP32, dims: [6]", "TYPE_FP64, dims: [6]"), "'x' as FP64, and here it is FP32"),
        (CONFIG.replace('name: "x"', 'name: "z"'), "has an input 'z' to clients, and its network has none"),
        (CONFIG.replace('name: "y"', 'name: "z"'), "The network has no output 'z'"),
        ("version_policy { specific { versions: [7] } }", "no version of it is served, such as 1/.$"),
        ('default_model_filename: "net.onnx"', "There is no net/10/net.onnx; gati takes ONNX and TorchScript"),
    ],
)
def test_models_whose_place_a_chain_can_not_take(model, tmp_path, export, config, says) -> None:
    configured(model, config)
    _, error = export()
    assert len(error.splitlines()) == 1
    assert re.search(says, error), error
    assert not (tmp_path / "models").exists()


def test_folders_that_are_no_models(model, tmp_path, export) -> None:
    assert "production is no model of a Triton repository" in export(".")[1]
    configured(model, CONFIG)
    assert "It seems to be a repository; give one of its models, of net." in export(".")[1]
    assert export("net/10")[1].endswith(f"It seems to be a version of one; give {model}.\n")
    assert not export()[1]
    assert "net is a chain already" in export("../models/net", "--name", "again")[1]
