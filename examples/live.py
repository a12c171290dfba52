"""The demo's first half: this machine is measured, an alarm on it becomes pending, fires and resolves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from examples.display import DemoError, Display
from examples.report.page import figure
from examples.report.story import AlarmStep, Story, UsageLine
from examples.traffic import push_bytes, seconds_left_in_minute
from rules.load import load_rules
from rules.model import AlarmRule
from rules.receiver import Received, Receiver
from rules.state import AlarmEvent, read_history
from rules.tables import prepare
from tallyman.aggregates import read_usage
from tallyman.clickhouse import connect
from tallyman.control import open_control
from tallyman.errors import TallymanError
from tallyman.meter import encode_dimensions
from tallyman.project import Project
from tallyman.usage import UsageQuery

ALERT = "unexpected-traffic"
PUSH = 1_500_000_000  # half as much again as the alarm's bound
ENOUGH_OF_A_MINUTE_S = 6.0
UNTIL_COMPLETE_S = 5.0  # about so long after its end the watermark says that a minute is complete
MINUTE = timedelta(minutes=1)


def find_rule(project: Project) -> AlarmRule:
    """Return the rule that the demo brings to fire."""
    rules = load_rules(project.folder / "alarms", project.meters, project.config.rules.endpoints)
    return next(rule for rule in rules if rule.alert == ALERT)


class Watch:
    """Keep what ClickHouse shows of the rule's usage in the current minute, once a second, in a thread of its own."""

    def __init__(self, project: Project, rule: AlarmRule) -> None:
        self.rule = rule
        self.began_s = time.time()
        self.points: list[tuple[float, Decimal]] = []
        self._project = project
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        client = connect(self._project.clickhouse)
        while not self._stop.wait(1 - time.time() % 1):
            now = datetime.now(UTC).replace(second=0, microsecond=0)
            query = UsageQuery(
                meter=self.rule.usage.meter, start=now, end=now + MINUTE, where=self.rule.usage.where, group_by=()
            )
            try:
                rows = read_usage(client, query, meters=self._project.meters).rows
            except (TallymanError, OSError):
                continue  # the line on the page has a gap; what is promised is checked elsewhere
            self.points.append((time.time() - self.began_s, rows[0].value if rows else Decimal(0)))
        client.disconnect()


def wait_for_usage(display: Display, project: Project, story: Story) -> None:
    """Wait until what the agent measures of this machine can be read from ClickHouse.

    Raises:
        DemoError: Nothing came.
    """
    with display.step("measure", "the agent reads this machine's counters") as step:
        meters = [meter for meter in project.meters if meter.meter.startswith("host.")]

        def seen() -> bool:
            story.host_usage = read_host_usage(project)
            return {line.meter for line in story.host_usage} >= {"host.cpu", "host.memory", "host.network"}

        wait_until(seen, 60, "usage of this machine in ClickHouse; see data/logs/agent.log and pipeline.log")
        readings = sum(line.events for line in story.host_usage)
        step.said(f"{readings:,} readings for {len(meters)} meters are in ClickHouse")


def read_host_usage(project: Project) -> list[UsageLine]:
    """Read everything that the agent has measured in the last hour."""
    client = connect(project.clickhouse)
    end = datetime.now(UTC).replace(second=0, microsecond=0) + MINUTE
    lines = []
    for meter in project.meters:
        if not meter.meter.startswith("host."):
            continue
        query = UsageQuery(
            meter=meter.meter,
            start=end - timedelta(hours=1),
            end=end,
            subjects=(project.agent_subject,),
            group_by=tuple(meter.dimensions),
        )
        for row in read_usage(client, query, meters=project.meters).rows:
            if not row.value:
                continue  # an interface that is down, a mode that the kernel does not use
            dimensions = encode_dimensions(dict(row.groups))
            lines.append(
                UsageLine(
                    tenant=project.agent_subject,
                    subject=project.agent_subject,
                    meter=meter.meter,
                    dimensions=dimensions,
                    unit=meter.unit,
                    value=row.value,
                    expected=row.value,
                    events=row.events,
                )
            )
    client.disconnect()
    return lines


def raise_alarm(display: Display, project: Project, receiver: Receiver) -> float:
    """Send more over loopback than the alarm allows in a minute, and wait until the alarm is told.

    Returns:
        When that minute ends, in seconds since 1970.

    Raises:
        DemoError: It did not become pending and fire.
    """
    with display.step("alarm", "bytes over loopback, more than the alarm allows in a minute") as step:
        if (left_s := seconds_left_in_minute()) < ENOUGH_OF_A_MINUTE_S:
            step.tell(f"a new minute begins in {left_s:.0f} s")
            time.sleep(left_s)
        began_s = time.time()
        minute_ends_s = began_s + seconds_left_in_minute(began_s)
        sent = push_bytes(PUSH)
        step.tell(f"{sent / 1e9:.1f} GB sent; waiting for the alarm")
        fired = wait_for_state(project, receiver, "firing", 60)
        step.said(f"{sent / 1e9:.1f} GB sent, pending, then firing; told {fired.at - began_s:.1f} s later")
    return minute_ends_s


def wait_until_resolved(display: Display, project: Project, receiver: Receiver, minute_ends_s: float) -> None:
    """Wait until the minute after the busy one is in, which is below the bound, and the alarm has said so.

    Raises:
        DemoError: It did not resolve.
    """
    due_s = minute_ends_s + MINUTE.total_seconds() + UNTIL_COMPLETE_S
    waiting_s = max(1, round(due_s - time.time()))

    def tick() -> None:
        left_s = max(0, round(due_s - time.time()))
        step.count(waiting_s - min(left_s, waiting_s), waiting_s, f"in about {left_s} s")

    with display.step("resolve", "the minute after the busy one has to be in, and below the bound") as step:
        wait_for_state(project, receiver, "resolved", waiting_s + 60, tick)
        if receiver.refused:
            raise DemoError(f"webhooks: expected every signature to be right, got {receiver.refused[0]}")
        step.said("a whole minute below the bound: resolved, and told")


def wait_for_state(
    project: Project,
    receiver: Receiver,
    state: str,
    patience_s: float,
    on_wait: Callable[[], None] = lambda: None,
) -> Received:
    """Wait for a state of the demo's alarm in the history, and for its webhook."""
    found: list[Received] = []

    def told() -> bool:
        on_wait()
        events = [event for event in history(project) if event.to == state]
        found[:] = [hook for event in events if (hook := find_webhook(receiver, event))]
        return bool(found)

    wait_until(told, patience_s, f'"{ALERT}" {state}, and its webhook; see data/logs/rules.log')
    return found[0]


def find_webhook(receiver: Receiver, event: AlarmEvent) -> Received | None:
    """Return the webhook that told an event, once the receiver has verified it; pending alarms are not told."""
    return next((each for each in receiver.messages if each.message_id == event.message_id), None)


def history(project: Project) -> list[AlarmEvent]:
    """Return what happened to the demo's alarm, oldest first."""
    engine = open_control(project.control_url)
    try:
        prepare(engine)
        return [event for event in read_history(engine) if event.alert == ALERT]
    finally:
        engine.dispose()


def tell_alarms(project: Project, story: Story, watch: Watch, receiver: Receiver) -> None:
    """Put the alarm's history, with the webhooks that told it, into the story."""
    began = datetime.fromtimestamp(watch.began_s, UTC)
    story.live = list(watch.points)
    for event in history(project):
        hook = find_webhook(receiver, event)
        story.alarms.append(
            AlarmStep(
                alarm=event.alert,
                state=event.to,
                at=event.at,
                at_s=(event.at - began).total_seconds(),
                value="" if event.value is None else f"{event.value:,f} By",
                webhook_id=hook.message_id if hook else "",
                took_s=hook.at - event.at.timestamp() if hook else None,
            )
        )
    story.counts["webhooks verified"] = len({message.message_id for message in receiver.messages})
    story.threshold = watch.rule.condition.threshold
    story.threshold_label = f"alarm above {figure(story.threshold)} {watch.rule.unit}"
    states = [step.state for step in story.alarms]
    if states != ["pending", "firing", "resolved"]:
        raise DemoError(f'alarm "{ALERT}": expected pending, firing, resolved, got {", ".join(states)}')


def wait_until(holds: Callable[[], bool], patience_s: float, what: str) -> None:
    """Ask again and again until something holds.

    Raises:
        DemoError: It did not within `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            raise DemoError(f"expected {what}; it did not come within {patience_s:.0f} s")
        time.sleep(0.2)
