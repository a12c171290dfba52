"""What benchmarks print, a table as wide as its cells need, and how long answers take that stand in it."""

from __future__ import annotations

import time
from collections.abc import Callable

from clickhouse_driver import Client


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, left: tuple[int, ...] = (0, 4)) -> None:
    """Print rows under a head, columns as wide as they need to be; those named in `left` begin at the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) if i in left else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths, strict=True))))  # fmt: skip


def forget_conditions(client: Client) -> None:
    """Let ClickHouse forget which granules a condition matched: a question that is repeated would read no others."""
    client.execute("SYSTEM DROP QUERY CONDITION CACHE")


def times(client: Client, question: Callable[[], object], count: int) -> list[float]:
    """Return how many milliseconds each of some answers took, each as if nobody had asked before."""
    for _ in range(5):  # a server that has been running for a while
        question()
    spent = []
    for _ in range(count):
        forget_conditions(client)
        began = time.perf_counter()
        question()
        spent.append((time.perf_counter() - began) * 1000)
    return spent
