"""Read services and hosts, put what they used into a spool on disk, and send it to Kafka in numbered batches.

`COLLECTORS` names every source. A source is one module with `Options` (what an operator may set) and
`open_collector(options)`, which returns something with `read() -> list[Sample]`; it is imported when it is used.
"""

from collections.abc import Mapping

COLLECTORS: Mapping[str, str] = {
    "host": "collectors.host",  # this machine: CPU, memory, network, disks
}
