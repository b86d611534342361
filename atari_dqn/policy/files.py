"""Files of an exported policy: `policy.safetensors`, `policy.onnx` and `SHA256SUMS`.

Both policy files hold the same header and the reference network (`agent/reference.py`): one its state_dict, the other
its graph. A file may come from anybody: reading one runs no code of its author. Running a foreign ONNX graph may take
memory, though, since its operators broadcast. A file must match the checksums that lie beside it; these reveal damage,
not forgery. Reading imports neither torch nor gymnasium.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.policy.header import KEY, MAX_LENGTH, Header, header_from_json

if TYPE_CHECKING:
    from atari_dqn.agent.reference import ReferenceNetwork

SAFETENSORS, ONNX, CHECKSUMS = "policy.safetensors", "policy.onnx", "SHA256SUMS"
SUFFIXES = (".safetensors", ".onnx")
MAX_BYTES = 1 << 30
"""Size of the largest file that is read; ours have some megabytes."""

Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """The content of a policy file."""

    header: Header
    weights: Weights
    """State_dict of the reference network; empty for an ONNX file."""
    graph: bytes | None = None
    """The ONNX model; None for a safetensors file."""


def extra(name: str) -> ModuleType:
    """Import a package of the extra `[export]`. Raises `ConfigError` if it is not installed."""
    if name == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at its import; a later call does not stop it
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'{error}; exported policies need: pip install "atari_dqn[export]"') from None


def to_safetensors(header: Header, network: ReferenceNetwork) -> bytes:
    """The content of `policy.safetensors`. Raises `ConfigError` if the extra is not installed."""
    content: bytes = extra("safetensors.torch").save(network.state_dict(), metadata={KEY: header.to_json()})
    return content


def checksums(contents: Mapping[str, bytes]) -> bytes:
    """The content of `SHA256SUMS` for files by name, as `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()).encode()


def read_exported(file: Path) -> Exported:
    """Read a file whose suffix is in `SUFFIXES`.

    Raises:
        ConfigError: one line; the file is not an exported policy, is corrupt, or does not match `SHA256SUMS` beside it.
    """
    try:
        return (_from_onnx if file.suffix == ".onnx" else _from_safetensors)(_content(file))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except ConfigError as error:
        raise ConfigError(f"{file} is not a valid exported policy: {error}") from None


def _content(file: Path) -> bytes:
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError("it is not a regular file")
    if facts.st_size > MAX_BYTES:
        raise ConfigError(f"it has {facts.st_size:,} bytes; at most {MAX_BYTES:,} are read")
    with file.open("rb") as opened:
        content = opened.read(facts.st_size)
    _check_sum(file, content)
    return content


def _check_sum(file: Path, content: bytes) -> None:
    """Raise `ConfigError` unless the file matches its line in `SHA256SUMS`, if that lies beside it."""
    sums = file.with_name(CHECKSUMS)
    if not os.path.lexists(sums):
        return
    text = sums.read_bytes() if sums.is_file() and sums.stat().st_size <= MAX_LENGTH else b""
    # As `sha256sum` writes them, in text or binary mode.
    listed = re.findall(rb"^([0-9a-fA-F]{64}) [ *](.+?)\r?$", text, re.MULTILINE)
    expected = {digest.lower() for digest, name in listed if name == os.fsencode(file.name)}
    if not expected:
        raise ConfigError(f"{CHECKSUMS} beside it has no checksum of {file.name}; correct or remove {CHECKSUMS}")
    if expected != {hashlib.sha256(content).hexdigest().encode()}:
        raise ConfigError(f"it does not match its checksum in {CHECKSUMS}")


def _from_safetensors(content: bytes) -> Exported:
    reader = extra("safetensors.numpy")
    try:
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + min(length, 2 * MAX_LENGTH)])["__metadata__"][KEY]
        weights: Weights = reader.load(content)
    except Exception as error:  # anything that a foreign file makes the readers raise
        raise ConfigError(f"not a safetensors file of atari_dqn ({type(error).__name__})") from None
    for name, weight in weights.items():
        if weight.dtype != np.float32:
            raise ConfigError(f"the weight {shown(name)} is {weight.dtype}, not float32")
        if not np.isfinite(weight).all():
            raise ConfigError(f"the weight {shown(name)} has NaN or infinity")
    return Exported(header_from_json(text), weights)


def _from_onnx(content: bytes) -> Exported:
    extra("onnx")
    from atari_dqn.policy.onnx import check_graph, read_metadata

    model, text = read_metadata(content)
    header = header_from_json(text)
    check_graph(model, header)
    return Exported(header, {}, content)
