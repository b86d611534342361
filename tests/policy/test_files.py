"""Exported files: the very weights and the very Q values come back, and what is torn, altered or hostile does not."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import save

from atari_dqn.agent.network import QNetwork, make_network
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.policy import files
from atari_dqn.policy.files import KEY, ONNX, SAFETENSORS, Exported, Header, read_exported, to_onnx, to_safetensors
from atari_dqn.policy.layouts import plain_weights, torch_network
from atari_dqn.policy.onnx import OPSET, onnx_q
from atari_dqn.policy.source import read_source

NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "atari": ("ALE/Breakout-v5", (4, 84, 84), {}),
    "two streams": ("ALE/Pong-v5", (4, 84, 84), {"head": "two_stream"}),
    "Mnih's": ("ALE/Pong-v5", (3, 84, 84), {"dueling": False, "frame_stack": 3, "activation": "silu"}),
    "colours": ("tests.stubs:Colors-v0", (4, 40, 36, 3), {}),
    "vectors": ("CartPole-v1", (4,), {"mlp_hidden": (9, 8, 7), "activation": "silu"}),
    "one layer": ("CartPole-v1", (4,), {"mlp_hidden": (5,), "dueling": False}),
    "two streams of vectors": ("CartPole-v1", (4,), {"head": "two_stream", "mlp_hidden": (6, 5)}),
}


def make(env_id: str, shape: tuple[int, ...], settings: dict[str, Any]) -> tuple[QNetwork, Exported]:
    config = TrainConfig().replace(env_id=env_id, **settings)
    spec = env_spec(env_id, PROTOCOLS["nature"], config.env.frame_stack)
    torch.manual_seed(1)
    network = make_network(spec, config.network).eval()
    header = Header(config, env_id, spec.kind, shape, spec.num_actions, 0, 123, "abc-dirty")
    assert header.spec == spec
    return network, Exported(header, plain_weights(network))


def observations(header: Header, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    rng = np.random.default_rng(0)
    if header.kind == "pixels":
        return rng.integers(256, size=(count, *header.observation_shape), dtype=np.uint8)
    return rng.normal(size=(count, *header.observation_shape)).astype(np.float32)


@pytest.fixture(params=[SAFETENSORS, ONNX])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small policy's file of either kind."""
    _, policy = make(*NETWORKS["one layer"])
    path = tmp_path / request.param
    path.write_bytes(to_onnx(policy) if path.suffix == ".onnx" else to_safetensors(policy))
    return path


def reason(path: Path) -> str:
    """Why the file is refused, as one line; empty when it is taken. Nothing else is raised."""
    try:
        read_exported(path)
    except ConfigError as error:
        return str(error).replace("\n", "a second line")
    return ""


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", NETWORKS)
def test_both_files_give_back_the_network(name: str, tmp_path: Path) -> None:
    network, policy = make(*NETWORKS[name])
    shapes = files.weight_shapes(policy.header)
    assert {name: weight.shape for name, weight in policy.weights.items()} == shapes
    seen = observations(policy.header, 7)
    spec = policy.header.spec
    with torch.inference_mode():
        obs = torch.from_numpy(seen).reshape(7, spec.stack, *spec.frame_shape)
        q = network(obs).numpy()
    for path, content in ((tmp_path / SAFETENSORS, to_safetensors(policy)), (tmp_path / ONNX, to_onnx(policy))):
        path.write_bytes(content)
        read = read_exported(path)
        assert read.header == policy.header
        for weight_name, weight in policy.weights.items():
            np.testing.assert_array_equal(read.weights[weight_name], weight)
        again = torch_network(read)
        for mine, theirs in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)
        with torch.inference_mode():
            np.testing.assert_array_equal(again(obs).numpy(), q)
            np.testing.assert_allclose(read_source(path).load("cpu").network(obs).numpy(), q, atol=1e-6)
        np.testing.assert_allclose(onnx_q(read)(seen), q, atol=1e-6)
        assert (to_safetensors(read), to_onnx(read)) == (to_safetensors(policy), to_onnx(policy))


def test_weights_are_laid_out_as_in_the_papers() -> None:
    """Torch's plain layers, given them, compute the same."""
    network, policy = make(*NETWORKS["atari"])
    weights = {name: torch.from_numpy(weight) for name, weight in policy.weights.items()}
    obs = torch.from_numpy(observations(policy.header, 3))
    x, linear = obs.float() / 255, torch.nn.functional.linear
    for layer, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        x = torch.nn.functional.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride).relu()
    x = x.flatten(1)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = dense(x, "shared").relu()
    value, advantage = (dense(dense(x, f"{name}_hidden").relu(), name) for name in ("value", "advantage"))
    q = value + advantage - advantage.mean(1, keepdim=True)
    with torch.inference_mode():
        torch.testing.assert_close(network(obs), q, atol=1e-6, rtol=0)


def test_the_graph_is_sound_onnx_with_a_free_batch() -> None:
    for name in NETWORKS:
        _, policy = make(*NETWORKS[name])
        model = onnx.ModelProto.FromString(to_onnx(policy))
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        (inputs,), (outputs,) = model.graph.input, model.graph.output
        assert (inputs.name, outputs.name) == ("observation", "q")
        assert inputs.type.tensor_type.shape.dim[0].dim_param == "batch"
        shape = [dim.dim_value for dim in inputs.type.tensor_type.shape.dim[1:]]
        assert shape == list(policy.header.observation_shape)
        for count in (1, 3):
            assert onnx_q(policy)(observations(policy.header, count)).shape == (count, policy.header.num_actions)


def test_no_path_of_the_machine_that_trained_is_told(file: Path) -> None:
    _, policy = make(*NETWORKS["one layer"])
    header = dataclasses.replace(policy.header, config=policy.header.config.replace(run_dir=Path("/home/me/runs")))
    for content in (to_safetensors(Exported(header, policy.weights)), to_onnx(Exported(header, policy.weights))):
        assert b"/home/me" not in content


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("flips", [150, pytest.param(3_000, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused(file: Path, flips: int) -> None:
    """All but those of white space, which change nothing: what is taken has the same weights and the same header."""
    whole = read_exported(file)
    content, chance = file.read_bytes(), random.Random(2)
    for place in chance.sample(range(8 * len(content)), flips):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        if not reason(file):
            read = read_exported(file)
            assert read.header == whole.header, f"bit {place}"
            assert all(np.array_equal(read.weights[name], weight) for name, weight in whole.weights.items())


def test_every_weight_counts(file: Path) -> None:
    content = file.read_bytes()
    weight = read_exported(file).weights["hidden.weight"]
    place = content.index(weight.tobytes())
    for offset in range(0, 8 * weight.nbytes, 7):
        altered = bytearray(content)
        altered[place + offset // 8] ^= 1 << offset % 8
        file.write_bytes(altered)
        assert "checksum" in reason(file)


def test_truncated_and_longer_ones_are_refused(file: Path) -> None:
    content, chance = file.read_bytes(), random.Random(3)
    for length in (0, 1, 8, *chance.sample(range(len(content)), 60)):
        file.write_bytes(content[:length])
        assert "is no exported policy" in reason(file), f"{length} bytes"
    file.write_bytes(content + b"\n")
    assert "is no exported policy" in reason(file)


# ---------------------------------------------------------------------- hostility


def signed(file: Path, change: Callable[[dict[str, Any]], None], weights: dict[str, Any] | None = None) -> str:
    """The file as somebody would write it who knows how to sum; why it is refused."""
    policy = read_exported(file)
    weights = dict(policy.weights) if weights is None else weights
    fields = {"format": files.FORMAT, **json.loads(files._text(policy))}
    del fields["sha256"]
    change(fields)
    text = json.dumps(fields | {"sha256": files._sum(fields, weights)})
    if file.suffix == ".onnx":
        model = onnx.ModelProto.FromString(to_onnx(policy))
        model.metadata_props[0].value = text
        others = [tensor for tensor in model.graph.initializer if tensor.name not in policy.weights]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*(numpy_helper.from_array(w, n) for n, w in weights.items()), *others])
        file.write_bytes(model.SerializeToString())
    else:
        file.write_bytes(save(weights, metadata={KEY: text}))
    return reason(file)


def set_config(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["config"].update({name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fields: fields.update(format=2), "of format 2, and this version of atari_dqn reads format 1"),
        (lambda fields: fields.update(format="\x1b[2J\n"), "of format"),
        (lambda fields: fields.pop("env_id"), "header is not as written"),
        (lambda fields: fields.update(code="import os"), "header is not as written"),
        (lambda fields: fields.update(kind="pixels"), "header is not as written"),
        (lambda fields: fields.update(env_id=7), "header is not as written"),
        (lambda fields: fields.update(env_id="CartPole-v1\x1b[2J"), "header is not as written"),
        (lambda fields: fields.update(num_actions=True), "header is not as written"),
        (lambda fields: fields.update(num_actions=10**9), r"q.weight is float32 \[2, 5\] there"),
        (lambda fields: fields.update(observation_shape=[10**9, 10**9]), "header is not as written|hidden.weight"),
        (lambda fields: fields.update(observation_shape=4), "header is not as written"),
        (lambda fields: fields.update(observation_shape=[-4]), "header is not as written"),
        (lambda fields: fields.update(env_step=-1), "header is not as written"),
        (lambda fields: fields.update(config=[]), "header is not as written"),
        (set_config("mlp_hidden", [65536, 65536, 65536]), "layers.0.weight is absent there"),
        (set_config("mlp_hidden", [10**6]), "--mlp-hidden is"),
        (set_config("mlp_hidden", []), "no hidden layer"),
        (set_config("protocol", "\x1b[2Jmine\n"), "--protocol is"),
        (set_config("gamma", float("nan")), "--gamma is"),
        (set_config("evil", 1), "unknown setting 'evil'"),
    ],
)
def test_a_header_that_is_none_of_ours_is_one_line(file: Path, change: Any, words: str) -> None:
    said = signed(file, change)
    assert file.name in said
    assert "a second line" not in said
    assert said.isprintable()
    assert any(word in said for word in words.replace("\\", "").split("|"))


def test_who_signs_the_same_is_taken(file: Path) -> None:
    """Else the tests above would prove nothing."""
    assert signed(file, lambda fields: None) == ""


def test_weights_of_another_shape_or_kind_are_refused(file: Path) -> None:
    weights = dict(read_exported(file).weights)
    name = "q.bias"
    for other in (weights[name][:1], weights[name].astype(np.float64), weights[name].reshape(1, 2)):
        assert signed(file, lambda fields: None, weights | {name: other})
        file.write_bytes((to_onnx if file.suffix == ".onnx" else to_safetensors)(make(*NETWORKS["one layer"])[1]))
    spoilt = weights[name].copy()
    spoilt[0] = np.nan
    assert "NaN or infinity" in signed(file, lambda fields: None, weights | {name: spoilt})


def test_a_weight_too_many_is_refused(tmp_path: Path) -> None:
    _, policy = make(*NETWORKS["one layer"])
    file = tmp_path / SAFETENSORS
    file.write_bytes(to_safetensors(policy))
    more = {**policy.weights, "\x1b[2J": np.zeros(1, np.float32)}
    assert "by its header it is absent" in signed(file, lambda fields: None, more)
    assert reason(file).isprintable()


def test_another_program_under_our_header_is_never_run(tmp_path: Path) -> None:
    """A loop without end, a file of the machine as weights, or just another layer: the graph must be ours."""
    _, policy = make(*NETWORKS["one layer"])
    file, secret = tmp_path / ONNX, tmp_path / "secret"
    secret.write_bytes(policy.weights["q.bias"].tobytes())

    def another(change: Callable[[onnx.ModelProto], None]) -> str:
        model = onnx.ModelProto.FromString(to_onnx(policy))
        change(model)
        file.write_bytes(model.SerializeToString())
        return reason(file)

    def outside(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "q.bias")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret")

    def loop(model: onnx.ModelProto) -> None:
        body = onnx.helper.make_graph([], "body", [], [])
        model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["x"], body=body))

    def widened(model: onnx.ModelProto) -> None:
        model.opset_import.add(domain="com.microsoft", version=1)

    assert another(lambda model: None) == ""
    assert "is no exported policy" in another(outside)
    assert "computes something else" in another(loop)
    assert "computes something else" in another(widened)
    assert "computes something else" in another(lambda model: model.graph.node.reverse())
    assert "computes something else" in another(lambda model: model.functions.add(name="f") and None)


def test_what_is_no_file_of_ours_is_one_line(tmp_path: Path) -> None:
    garbage = random.Random(4).randbytes(5000)
    deep = b'{"a":' * 100_000
    for suffix in (".onnx", ".safetensors"):
        path = tmp_path / f"policy{suffix}"
        for content in (garbage, b"", deep, len(deep).to_bytes(8, "little") + deep, b"\xff" * 8 + b"{}", save({})):
            path.write_bytes(content)
            assert "is no exported policy" in reason(path)
        path.unlink()
        os.mkfifo(path)
        assert "no regular file" in reason(path)
        path.unlink()
        path.symlink_to("/dev/zero")
        assert "no regular file" in reason(path)
        path.unlink()
        with path.open("wb") as file:
            file.truncate(files.MOST_BYTES + 1)  # sparse
        assert "at most 1,073,741,824 are read" in reason(path)
        path.unlink()
        assert "No such file" in reason(path)
