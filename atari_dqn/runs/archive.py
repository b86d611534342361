"""Archives of tensors, `torch.save`'s: a file flows in, perhaps somebody else's, and tensors and numbers flow out.

No such file can run code: torch's `weights_only` sees to it, and before it a look at what the pickle names. None can
make us allocate more than its own size: nothing in it is compressed, and torch refuses tensors beyond their bytes.
"""

from __future__ import annotations

import pickletools
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch

from atari_dqn.config.setting import shown
from atari_dqn.system.machine import is_out_of_memory

MOST_PICKLE = 1 << 22
"""Bytes of an archive's pickle; ours have a few thousand."""
END_BYTES, MOST_DIRECTORY = 22, 1 << 20
"""Bytes of a zip's end, without a comment, and of its list of members; ours have a few thousand."""
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NAMEABLE = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {s}Storage" for s in _STORAGES)}
"""What a pickle of ours names, and all that a foreign one may."""


class Unsound(Exception):
    """A checkpoint, or a file of one, is not whole or not one at all; the message says why, in part of a line."""


def load_tensors(file: Path, device: torch.device | str, most_bytes: int) -> dict[str, Any]:
    """A dict of tensors and numbers from an archive of `torch.save`. Raises `Unsound`.

    It allocates no more than the file's size: torch itself refuses tensors that reach beyond their bytes.
    """
    try:
        _check_archive(file, most_bytes)
        state = torch.load(file, map_location=device, weights_only=True)
    except Unsound:
        raise
    except OSError as error:
        raise Unsound(f"{file.name}: {error.strerror or error}") from None
    except Exception as error:  # whatever a foreign file makes the readers of archives and pickles say
        if is_out_of_memory(error):
            raise
        raise Unsound(f"{file.name} is no archive of tensors ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise Unsound(f"{file.name} holds no dict")
    return state


def _check_archive(file: Path, most_bytes: int) -> None:
    """Refuse what could grow when read, or name anything but tensors; `weights_only` stands behind this."""
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise Unsound(f"{file.name} is no file")
    if facts.st_size > most_bytes:
        raise Unsound(f"{file.name} has {facts.st_size:,} bytes; at most {most_bytes:,} are read")
    with file.open("rb") as opened:
        begins = opened.read(4)
        opened.seek(max(0, facts.st_size - END_BYTES))
        end = opened.read()
    # What reads zips begins at their end; torch would take another beginning for a pickle.
    if begins != b"PK\x03\x04" or len(end) < END_BYTES or end[:4] != b"PK\x05\x06":
        raise Unsound(f"{file.name} is no archive")
    if int.from_bytes(end[12:16], "little") > MOST_DIRECTORY:
        raise Unsound(f"{file.name} has too many members")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # torch finds a member whatever its case, and the first of several.
        if len({member.filename.casefold() for member in members}) != len(members):
            raise Unsound(f"{file.name} has two members of one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Unsound(f"{file.name} has compressed members")
        if sum(max(member.file_size, member.compress_size) for member in members) > facts.st_size:
            raise Unsound(f"{file.name} has members larger than itself")
        for member in members:
            if member.filename.casefold().endswith(".pkl"):
                _check_pickle(file.name, archive, member)


def _check_pickle(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.file_size > MOST_PICKLE:
        raise Unsound(f"{name} has a pickle of {member.file_size:,} bytes")
    for opcode, argument, _ in pickletools.genops(archive.read(member)):
        named = opcode.name in {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"} or (
            opcode.name == "GLOBAL" and argument not in NAMEABLE
        )
        if named:
            raise Unsound(f"{name} holds more than tensors: it names {shown(argument or opcode.name)}")
