"""The ONNX file: the reference network exported by torch, checked, and run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from atari_dqn.config.setting import ConfigError
from atari_dqn.policy.files import KEY, Header, extra

if TYPE_CHECKING:
    from atari_dqn.agent.reference import ReferenceNetwork

OPSET, IR = 18, 8
"""The lowest opset that torch's exporter writes, and the IR version that it needs: onnxruntime 1.14 reads them."""


def to_onnx(header: Header, network: ReferenceNetwork) -> bytes:
    """The content of `policy.onnx`: `observation` [batch, *observation_shape] to `q`, float32 [batch, num_actions].

    Raises `ConfigError` if the extra is not installed.
    """
    import torch

    extra("onnxscript")
    observation = torch.from_numpy(np.zeros((2, *header.observation_shape), header.dtype))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # or it reports that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about torch's own code
        program = torch.onnx.export(
            network.eval(),
            (observation,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["observation"],
            output_names=["q"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None, "returned by the exporter if dynamo is True"
    model = program.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")  # of IR version 10; in nodes stack traces, with paths of this machine
    model.ir_version = IR
    model.metadata_props.add(key=KEY, value=header.to_json())
    content: bytes = model.SerializeToString()
    return content


def read_metadata(content: bytes) -> tuple[onnx.ModelProto, str]:
    """The model in a file, and the text of its header. Raises `ConfigError` for any other content."""
    try:
        model = onnx.ModelProto.FromString(content)
        return model, next(entry.value for entry in model.metadata_props if entry.key == KEY)
    except Exception as error:  # anything that a foreign file makes the reader raise
        raise ConfigError(f"not an ONNX file of atari_dqn ({type(error).__name__})") from None


def check_graph(model: onnx.ModelProto, header: Header) -> None:
    """Raise `ConfigError` unless a graph takes and returns what its header says."""
    element = TensorProto.UINT8 if header.kind == "pixels" else TensorProto.FLOAT
    expected = (
        [("observation", element, list(header.observation_shape))],
        [("q", TensorProto.FLOAT, [header.num_actions])],
    )
    graph = model.graph
    if ([_signature(value) for value in graph.input], [_signature(value) for value in graph.output]) != expected:
        raise ConfigError("its graph has other inputs and outputs than its header says")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
    """Name, element type, and sizes but that of the batch."""
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [size.dim_value for size in tensor.shape.dim[1:]]


def onnx_q(graph: bytes, num_actions: int) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """A function from observations [B, *observation_shape] to Q values, float32 [B, A], by onnxruntime on the CPU.

    Raises `ConfigError` for a graph that onnxruntime cannot run, or, when called, one that gives no Q value per action.
    """
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    # The batches of a policy are small, and further threads of onnxruntime spin while they wait.
    options.intra_op_num_threads = 1
    try:
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise ConfigError(f"onnxruntime cannot run it: {str(error).splitlines()[0]}") from None

    def q(observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            (values,) = session.run(["q"], {"observation": observations})
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigError(f"onnxruntime cannot run the policy: {str(error).splitlines()[0]}") from None
        if values.shape != (len(observations), num_actions):
            expected = [len(observations), num_actions]
            raise ConfigError(f"the policy's graph returns Q values {list(values.shape)} instead of {expected}")
        return np.asarray(values)

    return q
