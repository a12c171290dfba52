"""The command line without servers: exit codes, messages, help, and what a project to begin with contains."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tallyman.cli import COMMANDS, run
from tallyman.cli.context import who
from tallyman.cli.project import example_events
from tallyman.event import Event, decode_event

NOON = datetime(2026, 10, 5, 12, 7, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.delenv("TALLYMAN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["init", "nimbus"]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "nimbus")
    return tmp_path / "nimbus"


def test_a_new_project_is_well(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check"]) == 0
    assert capsys.readouterr().err == "all well\n"


def test_init_leaves_what_is_there_as_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "entity.yaml").write_text("mine", encoding="utf-8")
    (project / "usage.ndjson").unlink()
    assert run(["init", "."]) == 0
    assert (project / "entity.yaml").read_text(encoding="utf-8") == "mine"
    assert capsys.readouterr().out == "usage.ndjson\n"


def test_the_example_events_are_recent_usage_that_the_example_meters_want() -> None:
    events = [decode_event(line) for line in example_events(NOON).splitlines()]
    times = [datetime.fromtimestamp(event.time_us / 1e6, UTC) for event in events]
    assert isinstance(events[0], Event)
    assert (min(times).hour, max(times).hour, max(times).minute) == (6, 11, 45)
    assert {event.type for event in events} == {"cloud.server.usage"}
    assert len({event.id for event in events}) == len(events) == 48


def test_check_names_every_problem_and_fails(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meters = project / "meters" / "compute.yaml"
    meters.write_text(meters.read_text(encoding="utf-8").replace("unit: s", "unti: s"), encoding="utf-8")
    assert run(["check"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("meters/compute.yaml:") and 'meters[0].unti: unknown key; did you mean "unit"?' in out


def test_check_looks_into_alarms_plans_and_accounts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("alarms/servers.yaml", "plans/standard.yaml"):
        path = project / name
        path.write_text(path.read_text(encoding="utf-8").replace("server.seconds", "server.secs"), encoding="utf-8")
    assert run(["check", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {problem.split("/")[0] for problem in problems} == {"alarms", "plans"}


# (file, what stands there, what is written instead, the line and what is said)
WRONG = {
    "collector": ("tallyman.yaml", "  interval: 10s", "  collectors: {hots: {}}",
                  'tallyman.yaml:16: agent.collectors.hots: unknown collector; did you mean "host"?'),
    "option": ("tallyman.yaml", "  interval: 10s", "  collectors:\n    host: {interface: [eth0]}",
               'tallyman.yaml:17: agent.collectors.host.interface: unknown option; did you mean "interfaces"?'),
    "endpoint": ("tallyman.yaml", "agent:\n  interval: 10s", "rules: {endpoints: {ops: {url: 'http://x.example'}}}",
                 "tallyman.yaml:15: rules.endpoints.ops.url: expected https, got http"),
    "port": ("tallyman.yaml", "agent:\n  interval: 10s", "clickhouse: {host: ch-1, port: 99999}",
             "tallyman.yaml:15: clickhouse.port: expected 1 to 65535, got 99999"),
    "control": ("tallyman.yaml", "agent:\n  interval: 10s", "control: {url: s3cret}",
                "tallyman.yaml:15: control.url: expected a URL such as postgresql+psycopg://tallyman@db-1/tallyman"),
    "partitions": ("tallyman.yaml", "agent:\n  interval: 10s", "pipeline: {partitions: [0, 9]}",
                   "tallyman.yaml:15: pipeline.partitions: expected numbers from 0 to 3 (kafka.partitions: 4), got 9"),
    "slug": ("meters/compute.yaml", "server.reports", "Server Reports!",
             'meters/compute.yaml:15: meters[1].meter: expected a slug of small letters, digits and ". _ -"'),
    "overlap": ("plans/standard.yaml", "{flavor: [m1.small]}", "{flavour: [m1.small]}",
                "with the same dimension in both, got flavour and flavor"),
    "locale": ("accounts/accounts.yaml", "de_DE", "de_XX",
               'accounts/accounts.yaml:8: accounts[0].locale: expected one such as de_DE, got "de_XX"'),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_check_names_file_and_line_and_what_to_write(
    project: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, good, bad, said = WRONG[case]
    text = (project / name).read_text(encoding="utf-8")
    assert good in text
    (project / name).write_text(text.replace(good, bad, 1), encoding="utf-8")
    assert run(["check"]) == 1
    out = capsys.readouterr().out
    assert said in out
    assert "s3cret" not in out


def test_without_the_seller_check_says_what_to_write(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "entity.yaml").unlink()
    assert run(["check"]) == 1
    said = capsys.readouterr().out
    assert "entity.yaml: no such file; it says who writes the invoices. tallyman init makes an example" in said


def test_a_project_without_meters_is_a_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("meters", "alarms", "plans", "accounts"):
        for path in (project / folder).iterdir():
            path.unlink()
    assert run(["check"]) == 3
    assert "no meter is defined" in capsys.readouterr().out


def test_a_type_that_is_ignored_in_vain_is_a_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = project / "tallyman.yaml"
    ignore = "  ignore: [cloud.server.usage, ping]\n"
    settings.write_text(settings.read_text(encoding="utf-8").replace("usage:\n", "usage:\n" + ignore), encoding="utf-8")
    assert run(["check"]) == 3
    out = capsys.readouterr().out
    assert 'usage.ignore: "cloud.server.usage" is counted all the same, for server.' in out
    assert "ping" not in out


def test_a_path_that_begins_with_data_once_more_is_a_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "meters" / "more.yaml").write_text(
        "meters:\n- meter: more.seconds\n  event_type: more\n  aggregation: sum\n  value: data.seconds\n"
        "  dimensions: {az: $.data.az, region: region}\n  where: {data.kind: [a]}\n",
        encoding="utf-8",
    )
    assert run(["check"]) == 3
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(", since")[0] for line in out] == [
        'warning: meters/more.yaml:5: meters[0].value: "data.seconds" is looked for at data.data.seconds of an event',
        'warning: meters/more.yaml:6: meters[0].dimensions.az: "$.data.az" is looked for at data.$.data.az of an event',
        'warning: meters/more.yaml:7: meters[0].where: "data.kind" is looked for at data.data.kind of an event',
    ]
    assert [line.partition("; ")[2] for line in out] == ['is "seconds" meant?', 'is "az" meant?', 'is "kind" meant?']


def test_a_file_that_is_not_read_is_a_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "alarms" / "more.YAML").write_text("groups: []\n", encoding="utf-8")
    assert run(["check"]) == 3
    assert "warning: alarms/more.YAML: not read; expected the ending .yaml" in capsys.readouterr().out


def test_a_folder_that_is_no_project_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "zoë-åström", "--meter", "m", "--project", str(tmp_path)]) == 2
    assert "make a project with: tallyman init FOLDER" in capsys.readouterr().err


def test_options_of_the_project_may_stand_before_or_after_the_command(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["--project", "nimbus", "check"]) == run(["check", "--project", "nimbus"]) == 0


def test_without_a_stack_the_next_step_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "zoë-åström", "--meter", "server.seconds"]) == 1
    err = capsys.readouterr().err
    assert "start one with: tallyman up" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(project: Path) -> None:
    with pytest.raises(Exception, match="start one with: tallyman up"):
        run(["usage", "zoë-åström", "--meter", "server.seconds", "--debug"])


def test_an_unknown_command_is_wrong_usage_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usge"]) == 2
    assert 'Did you mean "usage"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--zone", "Europe/Berln"], 'did you mean "Europe/Berlin"?'),
        (["--from", "yesterdayish"], "--from: expected a day (2026-10-01)"),
        (["--from", "2026-10-25T02:30", "--zone", "Europe/Berlin"], "comes twice in Europe/Berlin"),
        (["--from", "2026-03-29T02:30", "--zone", "Europe/Berlin"], "does not exist in Europe/Berlin"),
        (["--window", "fortnight"], "'fortnight' is not one of"),
        (["--json", "--csv"], "expected one of them, got both"),
    ],
)
def test_a_question_that_has_no_answer_is_wrong_usage(
    project: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["usage", "zoë-åström", "--meter", "server.seconds", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_month_that_is_none_is_wrong_usage(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["invoice", "run", "--month", "2026-13"]) == 2
    assert 'expected a year and a month such as 2026-10, got "2026-13"' in capsys.readouterr().err


def test_nothing_runs_is_said_by_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 1
    assert "start it with: tallyman up" in capsys.readouterr().err
    assert run(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["running"] is False


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/var/lib/tallyman"),
         "/var/lib/tallyman: Permission denied; let this user read and write it, or name another folder with --data"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/srv/x/stack.json"),
         "/srv/x/stack.json: Not a directory; a file stands where a folder has to be"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on its disk"),
        (OSError("nobody knows"), "OSError: nobody knows; where it comes from is shown with --debug"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_the_disk_refuses_is_a_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, said: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("tallyman.project.load_project", refuse)
    assert run(["check"]) == 1
    assert said in capsys.readouterr().err
    with pytest.raises(type(error)):
        run(["check", "--debug"])


def test_a_file_where_the_data_folder_has_to_be_is_a_sentence(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "data").touch()
    for command in (["up"], ["audit", "usage"], ["invoice", "preview", "--month", "2026-10"]):
        assert run([*command, "--data", "data"]) == 1, command
        err = capsys.readouterr().err
        assert "data" in err and "Traceback" not in err


def test_somebody_whom_nobody_knows_by_name_is_named_by_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user often has no entry in passwd."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert who() == "uid 12345"


@pytest.mark.parametrize("words", [["repair", "²"], ["repair", "٣"], ["rebuild", "use", "²"], ["rebuild", "undo", "٣"]])
def test_a_number_is_written_in_plain_digits(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(words) == 2
    assert f'got "{" ".join(words[1:])}"' in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "clickhouse_driver", None)
    (project / "tallyman.yaml").write_text("clickhouse: {host: 127.0.0.1, port: 1}\n", encoding="utf-8")
    assert run(["dead", "list"]) == 1
    assert 'pip install "tallyman[rules]"' in capsys.readouterr().err


def test_a_clickhouse_that_is_away_is_a_sentence(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tallyman.yaml").write_text("clickhouse: {host: 127.0.0.1, port: 1}\n", encoding="utf-8")
    assert run(["dead", "list"]) == 1
    assert "ClickHouse at 127.0.0.1:1: " in capsys.readouterr().err


def commands() -> list[list[str]]:
    below = {"dead": ["list", "show", "retry", "discard"], "invoice": ["preview", "run"]}
    return [[], *([name] for name in COMMANDS), *([name, sub] for name, subs in below.items() for sub in subs)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "tallyman " + " ".join(command[:1]) in text
    if command:
        assert "Example" in text


def test_the_agent_command_loads_nothing_that_a_host_need_not_have(project: Path) -> None:
    heavy = ("apache_beam", "clickhouse_driver", "jinja2", "sqlalchemy", "pyarrow", "numpy", "chdb", "rich")
    code = (
        "import sys; from tallyman.cli import run; run(['agent', '--help']); "
        "from tallyman.project import load_project; from pathlib import Path; load_project(Path('.')); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project, env={**os.environ}
    )
    assert done.stderr.strip() == "[]"


def test_a_server_that_is_away_is_one_sentence(project: Path) -> None:
    """In a process of its own, because here pytest listens to the libraries' loggers."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = project / "tallyman.yaml"
    away = f"clickhouse: {{host: 127.0.0.1, port: {port}}}\n"
    settings.write_text(settings.read_text(encoding="utf-8") + away, encoding="utf-8")
    command = [sys.executable, "-m", "tallyman", "usage", "--meter", "host.cpu"]
    asked = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert asked.returncode == 1
    assert len(asked.stderr.splitlines()) == 1, asked.stderr
    assert f"ClickHouse at 127.0.0.1:{port}: Connection refused" in asked.stderr
