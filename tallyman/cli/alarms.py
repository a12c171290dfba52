"""`tallyman alarms`: what is pending or firing now, and what happened."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import click

from tallyman.cli.context import Options, load_room, project_options
from tallyman.cli.output import plain, print_json, print_table, result, say, show_time


@click.command()
@click.option("--history", type=click.IntRange(0), default=20, show_default=True, metavar="N",
              help="How many of the newest transitions to show.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def alarms(options: Options, history: int, as_json: bool) -> None:
    """Show alarms and what happened to them.

    First those that are pending or firing, then the newest transitions.

    \b
    Example:
      tallyman alarms --history 50
    """
    from tallyman.control import open_control

    project = options.load()
    engine = open_control(project.control_url)
    try:
        load_room("rules.tables:prepare")(engine)
        rules = load_room("rules.state:load_states")(engine)
        events = load_room("rules.state:read_history")(engine, history) if history else []
    finally:
        engine.dispose()
    states = [state for rule in rules.values() for state in rule.states if state.phase != "seen"]
    if as_json:
        print_json({"alarms": [_state(state) for state in states], "history": [_event(event) for event in events]})
        return
    if states:
        print_table(
            ["alarm", "phase", "since", "value", "labels"],
            [
                [
                    state.rule,
                    state.phase,
                    show_time(state.fired_at or state.active_at, UTC),
                    _value(state.value),
                    _labels(state.labels),
                ]
                for state in states
            ],
        )
    else:
        say("no alarm is pending or firing")
    if events:
        result()
        print_table(
            ["at", "alarm", "from", "to", "value", "labels"],
            [
                [
                    show_time(event.at, UTC),
                    event.alert,
                    event.previous,
                    event.to,
                    _value(event.value),
                    _labels(event.labels),
                ]
                for event in events
            ],
        )


def _value(value: Any) -> str | None:
    return None if value is None else plain(value)


def _labels(labels: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()) if name != "alertname")


def _state(state: Any) -> dict[str, object]:
    return {
        "alarm": state.rule,
        "phase": state.phase,
        "active_at": state.active_at,
        "fired_at": state.fired_at,
        "value": state.value,
        "labels": dict(state.labels),
    }


def _event(event: Any) -> dict[str, object]:
    return {
        "at": event.at,
        "alarm": event.alert,
        "from": event.previous,
        "to": event.to,
        "reason": event.reason,
        "value": event.value,
        "labels": dict(event.labels),
        "annotations": dict(event.annotations),
        "window": {"from": event.window_start, "to": event.window_end, "complete": event.complete},
        "message_id": event.message_id,
    }
