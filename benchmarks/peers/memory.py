"""Memory of a process and its descendants."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import psutil


@dataclasses.dataclass(frozen=True)
class Memory:
    each_page_once: int
    """Bytes of private pages, of pages shared among the processes (after a fork, or in shared memory) counted once, and
    of mapped files (libraries) in the process that has most of them. This is what the processes cost the machine."""
    resident: int
    """Sum of the resident sets in bytes, which counts shared pages once per process. This is the usual figure."""

    def peak(self, other: Memory) -> Memory:
        """The larger value of each figure."""
        return Memory(max(self.each_page_once, other.each_page_once), max(self.resident, other.resident))


def family_memory(pid: int) -> Memory:
    """Current memory of `pid` and its descendants; 0 if they have ended.

    Without Linux's `smaps_rollup`, which reports shared pages, both figures are the resident one.
    """
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return Memory(0, 0)
    resident, private, files, detailed = 0, 0, 0, True
    for process in family:
        try:
            resident += process.memory_info().rss
            # Not the proportional share of files: other contestants map the same libraries.
            shares = _kilobytes(Path(f"/proc/{process.pid}/smaps_rollup"))
            private += shares["Pss_Anon"] + shares["Pss_Shmem"]
            files = max(files, _kilobytes(Path(f"/proc/{process.pid}/status"))["RssFile"])
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
        except (OSError, KeyError):
            detailed = False
    return Memory((private + files) * 1024 if detailed else resident, resident)


def _kilobytes(file: Path) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", file.read_text(), re.MULTILINE)}
