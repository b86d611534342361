"""Distribution of workers over nodes."""

from collections.abc import Mapping, Sequence


def spread(workers: int, free: Mapping[str, int]) -> dict[str, int]:
    """Number of workers of each node, in proportion to its `free` CPUs, of which there must be as many or more."""
    total = sum(free.values())
    exact = {node: workers * cpus / total for node, cpus in free.items()}
    counts = {node: int(share) for node, share in exact.items()}
    largest = sorted(exact, key=lambda node: counts[node] - exact[node])
    for node in largest[: workers - sum(counts.values())]:
        counts[node] += 1
    return {node: count for node, count in counts.items() if count}


def crowd(workers: int, load: Mapping[str, int], cpus: Mapping[str, int]) -> dict[str, int]:
    """Number of workers of each node where no CPU is free: each goes to the node with the fewest workers per CPU.

    Args:
        workers: Workers to distribute.
        load: Workers that each node has already.
        cpus: CPUs of each node.
    """
    counts = dict.fromkeys(cpus, 0)
    for _ in range(workers):
        counts[min(cpus, key=lambda node: (load.get(node, 0) + counts[node] + 1) / max(cpus[node], 0.01))] += 1
    return {node: count for node, count in counts.items() if count}


def ranges(workers: Sequence[int], counts: Mapping[str, int]) -> list[tuple[str, range]]:
    """Deal sorted `workers` to nodes, as many as `counts` says, in ranges without gaps."""
    dealt, left = [], list(workers)
    for node, count in counts.items():
        mine, left = left[:count], left[count:]
        first = 0
        for end in range(1, len(mine) + 1):
            if end == len(mine) or mine[end] != mine[end - 1] + 1:
                dealt.append((node, range(mine[first], mine[end - 1] + 1)))
                first = end
    return dealt
