"""Exported files: the same weights and Q values come back; what is corrupt is refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import save

from atari_dqn.agent.network import QNetwork, make_network
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.policy import files
from atari_dqn.policy.files import (
    CHECKSUMS,
    FORMAT,
    KEY,
    ONNX,
    SAFETENSORS,
    Header,
    checksums,
    read_exported,
    to_safetensors,
)
from atari_dqn.policy.onnx import IR, OPSET, read_onnx, to_onnx
from atari_dqn.policy.policy import Policy
from atari_dqn.policy.source import read_source
from tests.run_dirs import make_run

NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "nature": ("ALE/Breakout-v5", (4, 84, 84), {}),
    "small, plain head": ("ALE/Pong-v5", (3, 84, 84), {"network": "small", "dueling": False, "frame_stack": 3}),
    "impala in colour": ("tests.stubs:Colors-v0", (4, 40, 36, 3), {"network": "impala", "head": "two_stream"}),
    "vectors": ("CartPole-v1", (4,), {"mlp_hidden": (9, 8, 7), "activation": "silu"}),
    "one layer": ("CartPole-v1", (4,), {"mlp_hidden": (5,), "dueling": False}),
}


@functools.cache
def make(name: str) -> tuple[QNetwork, Header]:
    env_id, shape, settings = NETWORKS[name]
    config = TrainConfig().replace(env_id=env_id, **settings)
    spec = env_spec(env_id, PROTOCOLS["nature"], config.env.frame_stack)
    torch.manual_seed(1)
    network = make_network(spec, config.network).eval()
    header = Header(config, env_id, spec.kind, shape, spec.num_actions, 0, 123, "abc-dirty")
    assert header.spec == spec
    return network, header


@functools.cache
def content(name: str, file: str) -> bytes:
    """The file of a network; torch's exporter takes seconds for each."""
    network, header = make(name)
    return (to_onnx if file == ONNX else to_safetensors)(header, network.reference())


def observations(header: Header, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    rng = np.random.default_rng(0)
    if header.kind == "pixels":
        return rng.integers(256, size=(count, *header.observation_shape), dtype=np.uint8)
    return rng.normal(size=(count, *header.observation_shape)).astype(np.float32)


@pytest.fixture(params=[SAFETENSORS, ONNX])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small policy's file of either kind."""
    path = tmp_path / str(request.param)
    path.write_bytes(content("one layer", path.name))
    return path


def reason(path: Path) -> str:
    """Why the file is refused, as one line; empty if it is accepted. Nothing else is raised."""
    try:
        read_source(path).load("cpu")
    except ConfigError as error:
        return str(error).replace("\n", "a second line")
    return ""


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", NETWORKS)
def test_both_files_give_back_the_network(name: str, tmp_path: Path) -> None:
    network, header = make(name)
    seen, spec = observations(header, 7), header.spec
    obs = torch.from_numpy(seen).reshape(7, spec.stack, *spec.frame_shape)
    for file in (SAFETENSORS, ONNX):
        (tmp_path / file).write_bytes(content(name, file))
    with torch.inference_mode():
        q = network(obs).numpy()
        exact, near = (read_source(tmp_path / file).load("cpu") for file in (SAFETENSORS, ONNX))
        np.testing.assert_array_equal(exact.network(obs).numpy(), q)
        np.testing.assert_allclose(near.network(obs).numpy(), q, atol=2e-6)
    assert exact.network.state_dict().keys() == network.state_dict().keys()
    for mine, theirs in zip(network.state_dict().values(), exact.network.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for file in (SAFETENSORS, ONNX):
        read = read_exported(tmp_path / file)
        assert read.header == header
        for weight_name, weight in read.weights.items():
            np.testing.assert_array_equal(weight, network.reference().state_dict()[weight_name])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_valid_onnx_with_a_free_batch_for_old_runtimes(name: str) -> None:
    _, header = make(name)
    model = onnx.ModelProto.FromString(content(name, ONNX))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR == onnx.helper.find_min_ir_version_for(model.opset_import)
    lists = ("node", "initializer", "input", "output", "value_info")
    parts = [model.graph, *(part for name in lists for part in getattr(model.graph, name))]
    assert not any(part.metadata_props for part in parts), "which IR version 10 brought"
    (inputs,), (outputs,) = model.graph.input, model.graph.output
    assert (inputs.name, outputs.name) == ("observation", "q")
    assert inputs.type.tensor_type.shape.dim[0].dim_param == "batch"
    shape = [dim.dim_value for dim in inputs.type.tensor_type.shape.dim[1:]]
    assert shape == list(header.observation_shape)
    element = onnx.TensorProto.UINT8 if header.kind == "pixels" else onnx.TensorProto.FLOAT
    assert inputs.type.tensor_type.elem_type == element
    for count in (1, 3):
        q = read_onnx(content(name, ONNX))[1](observations(header, count))
        assert q.shape == (count, header.num_actions)


def test_the_weights_of_both_files_have_the_same_names_and_bits() -> None:
    for name in NETWORKS:
        network, _ = make(name)
        model = onnx.ModelProto.FromString(content(name, ONNX))
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for weight_name, weight in network.reference().state_dict().items():
            np.testing.assert_array_equal(stored[weight_name], weight)


def test_no_path_of_the_machine_that_trained_is_in_a_file() -> None:
    network, header = make("one layer")
    header = dataclasses.replace(header, config=header.config.replace(run_dir=Path("/home/me/runs")))
    for text in (to_safetensors(header, network.reference()), to_onnx(header, network.reference())):
        assert b"/home/me" not in text
        assert str(Path(files.__file__).parents[2]).encode() not in text
        assert b"site-packages" not in text


# ---------------------------------------------------------------------- damage


def with_checksums(file: Path) -> None:
    file.with_name(CHECKSUMS).write_bytes(checksums({file.name: file.read_bytes()}))


def test_any_flipped_bit_is_found_by_the_checksum(file: Path) -> None:
    with_checksums(file)
    assert reason(file) == ""
    whole, chance = file.read_bytes(), random.Random(2)
    for place in chance.sample(range(8 * len(whole)), 150):
        altered = bytearray(whole)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        assert f"does not match its checksum in {CHECKSUMS}" in reason(file), f"bit {place}"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{name}\n",
        "{digest} {name}\n",
        "{digest}\n",
        "{short}  {name}\n",
        "\0\0{digest}  {name}\n",
        "{digest}  {name}.old\n",
        "SHA256 ({name}) = {digest}\n",
    ],
)
def test_checksums_without_a_line_for_the_file_are_refused(line: str, file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    other = checksums({"another": b""}).decode()
    text = other + line.format(name=file.name, digest=digest, short=digest[:-1])
    file.with_name(CHECKSUMS).write_text(text)
    assert f"{CHECKSUMS} beside it has no checksum of {file.name}; correct or remove {CHECKSUMS}" in reason(file)
    for right in (f"{digest} *{file.name}", f"{digest}  ./{file.name}", f"{digest.upper()}  {file.name}\r\n"):
        file.with_name(CHECKSUMS).write_text(text + right)
        assert reason(file) == ""
    file.with_name(CHECKSUMS).write_text(f"{'0' * 64}  {file.name}\n{digest}  {file.name}\n")
    assert f"does not match its checksum in {CHECKSUMS}" in reason(file), "two that contradict each other"


def test_files_may_be_links_as_in_the_cache_of_a_hub(file: Path, tmp_path: Path) -> None:
    with_checksums(file)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for each in (file, file.with_name(CHECKSUMS)):
        each.rename(tmp_path / f"blob-{each.name}")
        (snapshot / each.name).symlink_to(tmp_path / f"blob-{each.name}")
    assert reason(snapshot) == ""
    (tmp_path / f"blob-{file.name}").write_bytes(b"another")
    assert f"does not match its checksum in {CHECKSUMS}" in reason(snapshot)


def test_truncated_files_are_refused(file: Path) -> None:
    whole, chance = file.read_bytes(), random.Random(3)
    for length in (0, 1, 8, *chance.sample(range(len(whole)), 60)):
        file.write_bytes(whole[:length])
        assert "is not a valid exported policy" in reason(file), f"{length} bytes"


def test_flipped_bits_without_a_checksum_raise_nothing_else(file: Path) -> None:
    whole, chance = file.read_bytes(), random.Random(4)
    for place in chance.sample(range(8 * len(whole)), 100):
        altered = bytearray(whole)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        assert "a second line" not in reason(file)


# ---------------------------------------------------------------------- wrong content


def altered(file: Path, change: Callable[[dict[str, Any]], None], weights: dict[str, Any] | None = None) -> str:
    """Change a file's header, and a safetensors file's weights; why it is refused."""
    stored = read_exported(file)
    fields = json.loads(stored.header.to_json())
    change(fields)
    text = json.dumps(fields)
    if file.suffix == ".onnx":
        model = onnx.ModelProto.FromString(file.read_bytes())
        model.metadata_props[0].value = text
        file.write_bytes(model.SerializeToString())
    else:
        file.write_bytes(save(dict(stored.weights) if weights is None else weights, metadata={KEY: text}))
    return reason(file)


def set_config(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["config"].update({name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fields: fields.update(format=1), f"has format 1 and this version of atari_dqn reads format {FORMAT}"),
        (lambda fields: fields.pop("env_id"), "header is corrupt"),
        (lambda fields: fields.update(code="import os"), "header is corrupt"),
        (lambda fields: fields.update(num_actions=10**9), "q.weight is [2, 5] there|other inputs and outputs"),
        (lambda fields: fields.update(observation_shape=[10**9]), "hidden.weight is [5, 4] there|other inputs"),
        (lambda fields: fields.update(observation_shape=4), "header is corrupt"),
        (lambda fields: fields.update(config=[]), "header is corrupt"),
        (set_config("mlp_hidden", [10**6]), "--mlp-hidden is"),
        (set_config("gamma", float("nan")), "--gamma is"),
        (set_config("evil", 1), "unknown setting 'evil'"),
    ],
)
def test_a_wrong_header_is_one_line(file: Path, change: Any, words: str) -> None:
    said = altered(file, change)
    assert file.name in said
    assert "a second line" not in said
    assert said.isprintable()
    assert any(word in said for word in words.split("|")), said


@pytest.mark.parametrize(
    ("mlp_hidden", "words"),
    [
        ([65536, 65536, 65536], "layers.0.weight is absent there"),
        ([60_000], "hidden.weight is [5, 4] there and [60000, 4] here"),
        ([], "--mlp-hidden is empty"),
    ],
)
def test_a_header_of_another_network_is_one_line(mlp_hidden: list[int], words: str, tmp_path: Path) -> None:
    file = tmp_path / SAFETENSORS
    file.write_bytes(content("one layer", SAFETENSORS))
    assert words in altered(file, set_config("mlp_hidden", mlp_hidden))


def test_an_unchanged_header_is_accepted(file: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    assert altered(file, lambda fields: None) == ""


def test_weights_of_another_shape_or_dtype_are_refused(tmp_path: Path) -> None:
    file = tmp_path / SAFETENSORS
    file.write_bytes(content("one layer", SAFETENSORS))
    weights = dict(read_exported(file).weights)
    name = "q.bias"
    for other, words in (
        (weights[name][:1], "q.bias is [1] there and [2] here"),
        (weights[name].reshape(1, 2), "q.bias is [1, 2] there and [2] here"),
        (weights[name].astype(np.float64), "the weight q.bias is float64, not float32"),
        (np.full_like(weights[name], np.nan), "the weight q.bias has NaN or infinity"),
    ):
        file.write_bytes(content("one layer", SAFETENSORS))
        assert words in altered(file, lambda fields: None, weights | {name: other})
    file.write_bytes(content("one layer", SAFETENSORS))
    said = altered(file, lambda fields: None, {**weights, "\x1b[2J": np.zeros(1, np.float32)})
    assert "is [1] there and absent here" in said
    assert said.isprintable()


def test_a_graph_with_other_inputs_or_without_a_node_is_refused(tmp_path: Path) -> None:
    def another(change: Callable[[onnx.ModelProto], object]) -> str:
        model = onnx.ModelProto.FromString(content("one layer", ONNX))
        change(model)
        (tmp_path / ONNX).write_bytes(model.SerializeToString())
        return reason(tmp_path / ONNX)

    def renamed(model: onnx.ModelProto) -> None:
        for named in (model.graph.input[0], *model.graph.node):
            if isinstance(named, onnx.NodeProto):
                named.input[:] = ["x" if name == "observation" else name for name in named.input]
            else:
                named.name = "x"

    assert another(lambda model: None) == ""
    assert "other inputs and outputs" in another(renamed)
    assert "not an ONNX file of atari_dqn" in another(lambda model: model.graph.node.pop(0))


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    garbage = random.Random(4).randbytes(5000)
    deep = b'{"a":' * 100_000
    for suffix in (".onnx", ".safetensors"):
        path = tmp_path / f"policy{suffix}"
        for foreign in (garbage, b"", deep, len(deep).to_bytes(8, "little") + deep, b"\xff" * 8 + b"{}", save({})):
            path.write_bytes(foreign)
            assert "is not a valid exported policy" in reason(path)
        path.unlink()
        assert "does not exist" in reason(path)


def test_a_graph_that_returns_another_number_of_actions_is_refused(tmp_path: Path) -> None:
    """Its declared output is right, what its nodes make is not."""
    name = next(iter(NETWORKS))
    model = onnx.ModelProto.FromString(content(name, ONNX))
    last = model.graph.node[-1]
    (q,), last.output[:] = list(last.output), ["inner"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], np.int64), "one_column"))
    model.graph.node.append(helper.make_node("Reshape", ["inner", "one_column"], [q]))
    (tmp_path / ONNX).write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="other inputs and outputs than its header says"):
        Policy.load(tmp_path / ONNX)


def test_a_run_whose_settings_ask_for_a_huge_network_is_refused_before_it_is_built(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1", mlp_hidden=(5,))
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"mlp_hidden": [60_000] * 9}))  # 115 GB
    assert "are of another network" in reason(run_dir)
