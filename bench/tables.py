"""What benchmarks print: a table as wide as its cells need."""

from __future__ import annotations


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, left: tuple[int, ...] = (0, 4)) -> None:
    """Print rows under a head, columns as wide as they need to be; those named in `left` begin at the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) if i in left else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths, strict=True))))  # fmt: skip
