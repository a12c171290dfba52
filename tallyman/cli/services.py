"""`tallyman agent|pipeline|rules`: run one service in the foreground, as `tallyman up` and production do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from tallyman.cli.context import Options, leave, load_room, project_options

METRICS_PORT = "TALLYMAN_METRICS_PORT"


def _service(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="PORT",
                            help="Serve /metrics, /healthz and /readyz on this loopback port; 0 takes a free one."
                                 f"  [default: ${METRICS_PORT}, else none]")(function)  # fmt: skip
    function = click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
                            show_default=True, help="How much is logged.")(function)  # fmt: skip
    return click.option("--log-json", is_flag=True, help="Log JSON, one object a line.")(function)


@click.command()
@_service
@project_options
def agent(options: Options, **settings: Any) -> None:
    """Measure this host and send what it used.

    Accepts into a spool on disk first, so that nothing accepted is lost while Kafka is away.

    \b
    Example:
      tallyman agent --project /etc/tallyman --data /var/lib/tallyman --metrics-port 9464
    """
    run_service("collectors.agent:main", options, **settings)


@click.command()
@click.option("--runner", type=click.Choice(["FnApiRunner", "PortableRunner"]), default="FnApiRunner",
              show_default=True, help="Beam's runner: in this process, or a cluster's (Apache Flink).")  # fmt: skip
@click.option("--job-endpoint", metavar="HOST:PORT", help="The cluster's Beam job server.")
@click.option("--environment", type=click.Choice(["LOOPBACK", "EXTERNAL"]), default=None,
              help="Where Python runs: in this process, or in worker pools.  [default: LOOPBACK]")  # fmt: skip
@click.option("--environment-config", metavar="HOST:PORT", help="The worker pool, as a TaskManager sees it.")
@click.option("--flink-rest", metavar="URL", help="Flink's REST API, by which a job that is left is cancelled.")
@click.argument("beam_options", nargs=-1, metavar="[-- --OPTION=VALUE ...]")
@_service
@project_options
def pipeline(
    options: Options,
    runner: str,
    job_endpoint: str | None,
    environment: str | None,
    environment_config: str | None,
    flink_rest: str | None,
    beam_options: tuple[str, ...],
    **settings: Any,
) -> None:
    """Count what arrives in Kafka into ClickHouse, exactly once.

    Any number of them may run; a partition that two of them read is still counted once. With --runner PortableRunner
    the work is done on a cluster; what follows "--" are options of Beam and of Flink.

    \b
    Examples:
      tallyman pipeline --metrics-port 9465
      tallyman pipeline --runner PortableRunner --job-endpoint flink-1:8099 --environment EXTERNAL
        --environment-config localhost:50000 --flink-rest http://flink-1:8081 -- --parallelism=4
    """
    if runner == "FnApiRunner":
        if job_endpoint or environment or environment_config or flink_rest or beam_options:
            raise click.UsageError("these options are a cluster's: add --runner PortableRunner")
        run_service("pipeline.worker:main", options, **settings)
        return
    if not job_endpoint:
        raise click.UsageError("--runner PortableRunner needs --job-endpoint, such as flink-1:8099")
    asked = {"job_endpoint": job_endpoint, "environment": environment or "LOOPBACK"}
    portable = load_room("pipeline.portable:Portable")(
        **asked, environment_config=environment_config or "", flink_rest=flink_rest or "", options=beam_options
    )
    run_service("pipeline.submit:main", options, more={"portable": portable}, **settings)


@click.command()
@_service
@project_options
def rules(options: Options, **settings: Any) -> None:
    """Evaluate alarms as usage is booked, and deliver them.

    \b
    Example:
      tallyman rules --metrics-port 9466
    """
    run_service("rules.engine:main", options, **settings)


def run_service(
    target: str,
    options: Options,
    *,
    metrics_port: int | None,
    log_level: str,
    log_json: bool,
    more: Mapping[str, object] | None = None,
) -> None:
    """Run a room's main function until SIGTERM or SIGINT; a second signal does not wait for it.

    Args:
        target: "module:function" of `main(project, stop, metrics_port, **more) -> exit code`.
    """
    from tallyman.log import setup
    from tallyman.memory import use_one_arena

    use_one_arena()
    setup(log_level, json=log_json)
    if metrics_port is None and (given := os.environ.get(METRICS_PORT)):
        metrics_port = _port(given)
    project = options.load()
    main: Callable[..., int] = load_room(target)
    with stopped_by_signals() as stop:
        code = main(project, stop, metrics_port, **(more or {}))
    leave(code)


def _port(text: str) -> int:
    try:
        port = int(text)
        if 0 <= port <= 65535:
            return port
    except ValueError:
        pass
    raise click.UsageError(f'{METRICS_PORT}: expected a port from 0 to 65535, got "{text}"')


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
