"""Made and mutated records through decoding, counting once and folding, against a reference that sees them one by one.

    python -m tests.fuzz                          # 1,000,000 records
    python -m tests.fuzz --records 20000 --seed 7

Ends at the first difference, with what differs; else it prints what became of the events, and how much memory was held.
"""

from __future__ import annotations

import argparse
import time

from tests.fuzz.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    for report in Run(arguments.seed, arguments.records).go():
        took_s = time.monotonic() - began
        print(f"{report.records:>10,} records  {report.rss_mb:>5} MB  {took_s:>6,.0f} s", end="\r", flush=True)
    print(f"\nseed {arguments.seed}: every event has the fate and every total the value of the reference")
    for name, count in (*report.fates.most_common(), *report.reasons.most_common()):
        print(f"{count:>12,}  {name}")


if __name__ == "__main__":
    main()
