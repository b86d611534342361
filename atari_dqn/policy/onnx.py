"""The ONNX file: the reference network exported by torch, checked, and run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atari_dqn.config.setting import ConfigError
from atari_dqn.policy.files import KEY, Header, QFunction, extra, header_from_json

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


def read_onnx(content: bytes) -> tuple[Header, QFunction]:
    """The header of an ONNX file, and its Q values as a function that onnxruntime computes on the CPU.

    Raises `ConfigError` for a file that is none of ours, takes or returns something else than its header says, or
    cannot be run; the function does so, too.
    """
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    # The batches of a policy are small, and further threads of onnxruntime spin while they wait.
    options.intra_op_num_threads = 1
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map[KEY]
    except Exception as error:  # onnxruntime's errors have no common class
        raise ConfigError(f"not an ONNX file of atari_dqn ({type(error).__name__})") from None
    header = header_from_json(text)
    element = "tensor(uint8)" if header.kind == "pixels" else "tensor(float)"
    expected = [("observation", element, [*header.observation_shape]), ("q", "tensor(float)", [header.num_actions])]
    values = (*session.get_inputs(), *session.get_outputs())
    if [(value.name, value.type, value.shape[1:]) for value in values] != expected:
        raise ConfigError("its graph has other inputs and outputs than its header says")

    def q(observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            (values,) = session.run(["q"], {"observation": observations})
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigError(f"onnxruntime cannot run the policy: {str(error).splitlines()[0]}") from None
        return np.asarray(values)

    return header, q
