"""What a family of processes takes: the id of its first process flows in, two figures in bytes flow out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import psutil


@dataclasses.dataclass(frozen=True)
class Memory:
    each_page_once: int
    """Private pages, and those that the family shares (after a fork, or in shared memory) once; of the mapped files
    (libraries) those of the process that has most of them. This is what the family costs the machine."""
    resident: int
    """Every process's resident set, summed: shared pages as often as they are shared. This is what is usually told."""

    def peak(self, other: Memory) -> Memory:
        """The larger of each."""
        return Memory(max(self.each_page_once, other.each_page_once), max(self.resident, other.resident))


def family_memory(pid: int) -> Memory:
    """Of `pid` and its descendants, now; 0 where they are gone. Where the kernel does not tell of shared pages (they
    are in Linux's `smaps_rollup`), both figures are the resident ones."""
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
