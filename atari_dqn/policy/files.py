"""A trained network as a file for anybody: a header and weights flow in, the bytes of `policy.safetensors` and
`policy.onnx` flow out, and back again.

Both files hold the same header, as JSON, and the same weights, in the layouts of the papers (`weight_shapes`). Such a
file may be anybody's: nothing in one can run code or take more memory than some times its size, and none is taken that
is torn or altered. Nothing here imports torch or gymnasium.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from atari_dqn.config.file import from_dict
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.envs.ids import is_atari

if TYPE_CHECKING:
    from atari_dqn.envs.protocol import EnvSpec

FORMAT = 1
"""Of the header, the weights' names and shapes, and the graph."""
SAFETENSORS, ONNX = "policy.safetensors", "policy.onnx"
KEY = "atari_dqn"
"""Under which both files keep the header."""
MOST_BYTES, MOST_HEADER = 1 << 30, 1 << 20
"""Of a file, and of a header, that are read; ours have some megabytes and 2,000 bytes."""
CONVOLUTIONS = (("conv1", 32, 8, 4), ("conv2", 64, 4, 2), ("conv3", 64, 3, 1))
"""Name, channels, kernel and stride (Mnih et al. 2015)."""
HIDDEN = 512

Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Header:
    """All that is needed, beside the weights, to rebuild a network and to act with it."""

    config: TrainConfig
    """the run's; `run_dir` is left out"""
    env_id: str
    kind: Literal["pixels", "vector"]
    observation_shape: tuple[int, ...]
    """what the network looks at, as an env shows it: stacked frames of pixels, or a vector that need not be flat"""
    num_actions: int
    first_action: int
    """The env's actions begin here; the network's at 0."""
    env_step: int
    git_revision: str | None
    """of the code that exported it"""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an observation."""
        return np.dtype(np.uint8 if self.kind == "pixels" else np.float32)

    @property
    def spec(self) -> EnvSpec:
        from atari_dqn.envs.protocol import EnvSpec

        shape = self.observation_shape
        stack, *frame_shape = shape if self.kind == "pixels" else (1, math.prod(shape))
        return EnvSpec(
            env_id=self.env_id,
            is_atari=is_atari(self.env_id),
            kind=self.kind,
            frame_shape=tuple(frame_shape),
            frame_dtype=self.dtype,
            num_actions=self.num_actions,
            stack=stack,
        )


@dataclasses.dataclass(frozen=True)
class Exported:
    """What a file of either kind holds."""

    header: Header
    weights: Weights


def weight_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the layers.

    Convolutions [out, in, height, width], as in the paper; dense layers [out, in], whose inputs behind the convolutions
    are in the order (channel, row, column). Dueling streams are apart: `value_hidden`, `value`, `advantage_hidden`,
    `advantage`. Raises `ConfigError` for a network that cannot be.
    """
    config = header.config.network
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    if header.kind == "pixels":
        frames, height, width, *colors = header.observation_shape
        channels = frames * math.prod(colors)
        for name, out, kernel, stride in CONVOLUTIONS:
            layer(name, out, channels, kernel, kernel)
            channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        features, hidden = channels * height * width, HIDDEN
    elif config.mlp_hidden:
        features = math.prod(header.observation_shape)
        *widths, hidden = config.mlp_hidden
        for number, out in enumerate(widths):
            layer(f"layers.{number}", out, features)
            features = out
    else:
        raise ConfigError("it has no hidden layer")
    if config.dueling and config.head == "shared":
        layer("shared", hidden, features)
        features, hidden = hidden, max(1, hidden // 2)
    if config.dueling:
        for stream, outputs in (("value", 1), ("advantage", header.num_actions)):
            layer(f"{stream}_hidden", hidden, features)
            layer(stream, outputs, hidden)
    else:
        layer("hidden", hidden, features)
        layer("q", header.num_actions, hidden)
    return shapes


def extra(name: str) -> ModuleType:
    """Import a package of the extra `[export]`. Raises `ConfigError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'{error}; exported policies need: pip install "atari_dqn[export]"') from None


def to_safetensors(policy: Exported) -> bytes:
    """The content of `policy.safetensors`. Raises `ConfigError` where the extra is missing."""
    ordered = {name: policy.weights[name] for name in weight_shapes(policy.header)}
    content: bytes = extra("safetensors.numpy").save(ordered, metadata={KEY: _text(policy)})
    return content


def to_onnx(policy: Exported) -> bytes:
    """The content of `policy.onnx`: `observation`, uint8 or float32 [B, *observation_shape], to `q`, float32 [B, A].

    Raises `ConfigError` where the extra is missing.
    """
    extra("onnx")
    from atari_dqn.policy.onnx import model

    content: bytes = model(policy, {KEY: _text(policy)}).SerializeToString()
    return content


def read_exported(file: Path) -> Exported:
    """The policy in a file, whose name ends in one of `READERS`. Raises `ConfigError`, in one line, for any other."""
    try:
        return READERS[file.suffix](_content(file))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except _Unfit as reason:
        raise ConfigError(f"{file} is no exported policy: {reason}") from None


class _Unfit(Exception):
    """Why a file is none of ours, in part of a line."""


def _content(file: Path) -> bytes:
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise _Unfit("it is no regular file")
    if facts.st_size > MOST_BYTES:
        raise _Unfit(f"it has {facts.st_size:,} bytes; at most {MOST_BYTES:,} are read")
    with file.open("rb") as opened:
        return opened.read(facts.st_size)


def _from_safetensors(content: bytes) -> Exported:
    reader = extra("safetensors.numpy")
    try:
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + min(length, 2 * MOST_HEADER)])["__metadata__"][KEY]
        weights: Weights = reader.load(content)
    except Exception as error:  # whatever a foreign file makes the readers say
        raise _Unfit(_said(error, "no safetensors file of atari_dqn")) from None
    return _checked(text, weights)


def _from_onnx(content: bytes) -> Exported:
    onnx = extra("onnx")
    from atari_dqn.policy.onnx import model

    try:
        stored = onnx.ModelProto.FromString(content)
        text = next(entry.value for entry in stored.metadata_props if entry.key == KEY)
        # By hand: the library's own way would read a file that a tensor names.
        weights = {
            tensor.name: np.frombuffer(tensor.raw_data, "<f4").reshape(tensor.dims)
            for tensor in stored.graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name != "scale"
        }
    except Exception as error:  # whatever a foreign file makes the readers say
        raise _Unfit(_said(error, "no ONNX file of atari_dqn")) from None
    policy = _checked(text, weights)
    # What is run, or compared with what is run, is the graph that we make of these weights: there is no other in it.
    if stored != model(policy, {KEY: text}):
        raise _Unfit("it computes something else than its header says")
    return policy


READERS = {".safetensors": _from_safetensors, ".onnx": _from_onnx}


def _said(error: Exception, otherwise: str) -> str:
    return f"{otherwise} ({type(error).__name__})"


def _text(policy: Exported) -> str:
    fields = _fields(policy.header)
    return json.dumps(fields | {"sha256": _sum(fields, policy.weights)}, sort_keys=True)


def _fields(header: Header) -> dict[str, Any]:
    fields = {field.name: getattr(header, field.name) for field in dataclasses.fields(header)}
    config = {name: value for name, value in header.config.to_dict().items() if name != "run_dir"}
    return fields | {"format": FORMAT, "observation_shape": list(header.observation_shape), "config": config}


def _sum(fields: Mapping[str, Any], weights: Weights) -> str:
    """SHA-256 over the header without its sum, and every weight with its name."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(name.encode() + b"\0" + weight.tobytes())
    return digest.hexdigest()


def _checked(text: Any, weights: Weights) -> Exported:
    """Raises `_Unfit` unless the header is one of ours and the weights are, to the bit, those it was written with."""
    try:
        if not isinstance(text, str) or len(text) > MOST_HEADER:
            raise _Unfit("its header is no text, or too long")
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            stored = fields.get("format") if isinstance(fields, dict) else None
            raise _Unfit(f"it is of format {shown(stored)}, and this version of atari_dqn reads format {FORMAT}")
        expected = fields.pop("sha256", None)
        header = _header(fields)
        shapes = weight_shapes(header)
    except ConfigError as error:
        raise _Unfit(str(error)) from None
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise _Unfit(_said(error, "its header is not as written")) from None
    for name in (*shapes, *weights):
        found = weights.get(name)
        if found is None or name not in shapes or found.shape != shapes[name] or found.dtype != np.float32:
            there = "absent" if found is None else f"{found.dtype} {list(found.shape)}"
            here = f"float32 {list(shapes[name])}" if name in shapes else "absent"
            raise _Unfit(f"the weight {shown(name)} is {there} there; by its header it is {here}")
    if _sum(fields, weights) != expected:
        raise _Unfit("it does not match its checksum")
    if not all(np.isfinite(weight).all() for weight in weights.values()):
        raise _Unfit("there is NaN or infinity in its weights")
    return Exported(header, weights)


def _header(fields: Mapping[str, Any]) -> Header:
    """Raises `ConfigError` or, where a field is of another kind than ours, one of what Python raises then."""
    config, shape = from_dict(fields["config"]).validate(), tuple(fields["observation_shape"])
    header = Header(**{name: value for name, value in fields.items() if name != "format"})
    header = dataclasses.replace(header, config=config, observation_shape=shape)
    pixels = header.kind == "pixels"
    sound = (
        isinstance(header.env_id, str)
        and header.env_id.isprintable()
        and header.kind in ("pixels", "vector")
        and all(type(size) is int and 0 < size <= MOST_BYTES for size in shape)
        and (not pixels or (len(shape) in (3, 4) and min(shape[1:3]) >= 36))
        and all(type(number) is int for number in (header.num_actions, header.first_action, header.env_step))
        and header.num_actions > 0
        and header.env_step >= 0
        and isinstance(header.git_revision, str | None)
    )
    if not sound:
        raise ConfigError("its header is not as written")
    return header
