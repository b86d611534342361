"""The network as an ONNX graph: an exported policy flows in, the model or its Q values flow out.

Written node by node, as the network is small and its arithmetic fixed: the graph has the papers' layers under their
names, and no tracing, torch or optimiser stands between. The same policy gives the same graph, to the byte, so that a
reader can tell one of ours from any other program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from atari_dqn.policy.files import CONVOLUTIONS, Exported, extra, weight_shapes

OPSET, IR_VERSION = 23, 11
"""The newest that onnxruntime 1.23 takes; nothing here needs more than opset 18."""


def model(policy: Exported, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """`observation`, uint8 (pixels) or float32 (vectors) [batch, *observation_shape], to `q`, float32 [batch, A]."""
    header, config = policy.header, policy.header.config.network
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(policy.weights[name], name) for name in weight_shapes(header)]

    def add(name: str, op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def dense(name: str, x: str) -> str:
        return add(name, "Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)

    def active(x: str) -> str:
        if config.activation == "silu":
            return add(f"{x}.active", "Mul", x, add(f"{x}.gate", "Sigmoid", x))
        return add(f"{x}.active", "Relu", x)

    x = "observation"
    if header.kind == "pixels":
        frames, height, width, *colors = header.observation_shape
        if colors:
            constants.append(numpy_helper.from_array(np.array([-1, frames * colors[0], height, width]), "planes_shape"))
            x = add("planes", "Reshape", add("colors_first", "Transpose", x, perm=[0, 1, 4, 2, 3]), "planes_shape")
        constants.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
        x = add("pixels", "Mul", add("levels", "Cast", x, to=TensorProto.FLOAT), "scale")
        for name, _, kernel, stride in CONVOLUTIONS:
            sizes = {"kernel_shape": [kernel, kernel], "strides": [stride, stride]}
            x = active(add(name, "Conv", x, f"{name}.weight", f"{name}.bias", **sizes))
    x = add("features", "Flatten", x, axis=1)
    if header.kind == "vector":
        for number in range(len(config.mlp_hidden) - 1):
            x = active(dense(f"layers.{number}", x))
    if config.dueling and config.head == "shared":
        x = active(dense("shared", x))
    if config.dueling:  # Wang et al. 2016, eq. 9
        value = dense("value", active(dense("value_hidden", x)))
        advantage = dense("advantage", active(dense("advantage_hidden", x)))
        constants.append(numpy_helper.from_array(np.array([1]), "over_actions"))
        mean = add("mean_advantage", "ReduceMean", advantage, "over_actions", keepdims=1)
        add("q", "Add", value, add("centred", "Sub", advantage, mean))
    else:
        dense("q", active(dense("hidden", x)))
    seen = TensorProto.UINT8 if header.kind == "pixels" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "q_network",
        [helper.make_tensor_value_info("observation", seen, ["batch", *header.observation_shape])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["batch", header.num_actions])],
        constants,
    )
    made = helper.make_model(
        graph, producer_name="atari_dqn", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    helper.set_model_props(made, dict(metadata))
    return made


def onnx_q(policy: Exported) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """Observations [B, *observation_shape] in their dtype to Q, float32 [B, A], by onnxruntime on the CPU."""
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    # A policy's batches are small, and onnxruntime's further threads spin while they wait.
    options.intra_op_num_threads = 1
    content = model(policy, {}).SerializeToString()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def q(observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        (values,) = session.run(["q"], {"observation": observations})
        return np.asarray(values)

    return q
