"""`tallyman alarms`: what is pending or firing now, what happened, and what an endpoint did not take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from tallyman.cli.context import Options, load_room, project_options
from tallyman.cli.output import count, plain, print_json, print_table, result, say, show_time
from tallyman.errors import UsageQueryError
from tallyman.files import nearest

if TYPE_CHECKING:
    from sqlalchemy import Engine

_REFUSALS_SHOWN = 5  # of each endpoint
_OLD = timedelta(minutes=15)  # windows end with a minute and wait for what is late; no running engine takes so long
_COMMANDS = ("enable", "deliver-again")


@click.command()
@click.argument("words", nargs=-1, metavar="[enable ENDPOINT | deliver-again MESSAGE_ID]")
@click.option("--history", type=click.IntRange(0), default=20, show_default=True, metavar="N",
              help="How many of the newest transitions to show.")  # fmt: skip
@click.option("--delivered", is_flag=True, help="With deliver-again: also to endpoints that took the message already.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def alarms(options: Options, words: tuple[str, ...], history: int, delivered: bool, as_json: bool) -> None:
    """Show alarms and what happened to them, or have an endpoint get what it did not take.

    First those that are pending or firing, then the newest transitions, then which endpoints answered "410 Gone" and
    are disabled, and which messages were given up after three days. What waits for a disabled endpoint is kept:
    enable sends it. deliver-again sends a message that was given up as it was made then, with the same id.

    \b
    Examples:
      tallyman alarms --history 50
      tallyman alarms enable operations
      tallyman alarms deliver-again msg_2b9e0f6c51
    """
    from tallyman.control import open_control

    what, name = _command(words)
    if delivered and what != "deliver-again":
        raise click.UsageError("--delivered is for: tallyman alarms deliver-again MESSAGE_ID")
    project = options.load()
    engine = open_control(project.control_url)
    try:
        load_room("rules.tables:prepare")(engine)
        if what == "enable":
            _enable(engine, name, project.config.rules.endpoints, as_json)
        elif what == "deliver-again":
            _deliver_again(engine, name, project.config.rules.endpoints, delivered, as_json)
        else:
            _show(engine, history, as_json)
    finally:
        engine.dispose()


def _command(words: Sequence[str]) -> tuple[str, str]:
    """Return which command the words are, and what it is about."""
    if not words:
        return "", ""
    if words[0] in _COMMANDS and len(words) == 2:
        return words[0], words[1]
    near = get_close_matches(words[0], _COMMANDS, n=1)
    hint = f'. Did you mean "{near[0]}"?' if near and near[0] != words[0] else ""
    raise click.UsageError(
        f'expected nothing, or "enable ENDPOINT" or "deliver-again MESSAGE_ID", got "{" ".join(words)}"{hint}'
    )


def _enable(engine: Engine, name: str, known: Mapping[str, object], as_json: bool) -> None:
    if name not in known:
        listed = nearest(name, known) or "; see rules.endpoints in tallyman.yaml"
        raise UsageQueryError(f'endpoint: no endpoint is called "{name}"{listed}')
    done = load_room("rules.outbox:enable")(engine, name)
    waiting = load_room("rules.outbox:count_waiting")(engine).get(name, 0)
    if as_json:
        print_json({"endpoint": name, "enabled": done, "waiting": waiting})
    elif done:
        result(f"{name} is enabled; for it {_wait(waiting)}")
    else:
        say(f"{name} was not disabled, nothing was done; for it {_wait(waiting)}")


def _wait(waiting: int) -> str:
    return count(waiting, "message") + (" waits" if waiting == 1 else " wait")


def _deliver_again(
    engine: Engine, message_id: str, known: Mapping[str, object], delivered: bool, as_json: bool
) -> None:
    before = load_room("rules.outbox:read_deliveries")(engine, message_id)
    if not before:
        raise UsageQueryError(
            f'message: no message is called "{message_id}"; see those that were given up with: tallyman alarms, and'
            " all with: tallyman alarms --json"
        )
    which = "ended" if delivered else "given up"
    number = load_room("rules.outbox:deliver_again")(engine, message_id, datetime.now(UTC), which)
    if as_json:
        print_json({"message_id": message_id, "deliveries": number, "before": before})
        return
    states = {"dead": "was given up", "waiting": "waits already", "delivered": "was delivered"}
    for endpoint, status in before.items():
        again = status == "dead" or (delivered and status == "delivered")
        gone = "" if endpoint in known else ", but no endpoint is called so any more in tallyman.yaml: it waits"
        say(f"{endpoint}: {states.get(status, status)}" + (f", is sent again{gone}" if again else ""))
    if number:
        result(f"{message_id}: {count(number, 'delivery') if number == 1 else f'{number:,} deliveries'} again")
    else:
        say("nothing was done" + ("" if delivered else "; with --delivered it is sent again to who took it"))
    stopped = {each.endpoint for each in load_room("rules.outbox:read_refusals")(engine, 0) if not each.message_id}
    for endpoint in sorted(stopped & before.keys()):
        say(f"{endpoint} is disabled. Next: {shlex.join(['tallyman', 'alarms', 'enable', endpoint])}")


def _show(engine: Engine, history: int, as_json: bool) -> None:
    rules = load_room("rules.state:load_states")(engine)
    events = load_room("rules.state:read_history")(engine, history) if history else []
    refusals = load_room("rules.outbox:read_refusals")(engine, _REFUSALS_SHOWN)
    states = [state for rule in rules.values() for state in rule.states if state.phase != "seen"]
    decided_to = max((rule.decided_to for rule in rules.values() if rule.decided_to), default=None)
    if as_json:
        print_json({
            "decided_to": decided_to,
            "alarms": [_state(state) for state in states],
            "history": [_event(event) for event in events],
            "disabled": [_refusal(each) for each in refusals if each.message_id is None],
            "given_up": [_refusal(each) for each in refusals if each.message_id is not None],
        })  # fmt: skip
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
        say(f"no alarm is pending or firing; {_decided(decided_to)}")
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
    if refusals:
        result()
        print_table(
            ["endpoint", "since", "message", "answer"],
            [[each.endpoint, show_time(each.at, UTC), each.message_id or "all", each.answer] for each in refusals],
        )
        endpoint, message_id = refusals[0].endpoint, refusals[0].message_id
        step = ["enable", endpoint] if message_id is None else ["deliver-again", message_id]
        say(f"Next: {shlex.join(['tallyman', 'alarms', *step])}")


def _decided(decided_to: datetime | None) -> str:
    """Say how old that is: nothing is decided while the rules engine stands still, or what it asks."""
    if decided_to is None:
        return "no window was decided yet. Does the rules engine run? tallyman status says so"
    told = f"windows are decided up to {show_time(decided_to, UTC)}"
    return told if datetime.now(UTC) - decided_to < _OLD else f"{told}: is that old? See tallyman status"


def _refusal(refusal: Any) -> dict[str, object]:
    named = {"message_id": refusal.message_id} if refusal.message_id else {}
    return {"endpoint": refusal.endpoint, **named, "answer": refusal.answer, "at": refusal.at}


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
