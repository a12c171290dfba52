"""The embedded ClickHouse: chDB's engine behind ClickHouse's native TCP protocol, in a process of its own.

`clickhouse_driver.Client` and clickhouse-go talk to it as to any server; no service has to know which it has.
Run it with `python -m tallyman.local.clickhouse --data DIR --port N`.

    server        listens, one thread for each client
    conversation  what one client and the server say to each other
    execute       a statement run and answered, block by block or whole
    insert        an INSERT that brings data blocks: spool all of it, then one statement
    statement     what a client's SQL asks for, and what is taken out of it before the engine sees it
    engine        chDB: open a folder, sessions, KILL
    session       a client's settings and statements in the engine
    blocks        where a block of columns ends, without decoding it (types, shapes: of each column)
    reader, wire  the protocol's bytes, in and out
"""

# With less room than this on its disk the engine refuses inserts and merges. One that has begun when the last byte is
# taken ends without an error, with empty files (26.9.2.1): docs/operations.md, "When a disk is full".
DISK_RESERVE_BYTES = 256 << 20
