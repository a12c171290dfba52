"""Documentation that cannot drift: every setting and its default, every command line in the README and the docs."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest

from tallyman.cli import COMMANDS, cli
from tallyman.config import EndpointConfig, TallymanConfig
from tallyman.files import load_yaml, write_duration
from tallyman.meter import Meter
from tallyman.metrics import METRICS
from tallyman.project import load_project

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("collectors", "pipeline", "rules", "invoices", "tallyman")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.default


EVERY_SETTING = [*settings(TallymanConfig), *settings(EndpointConfig, "rules.endpoints.NAME.")]


@pytest.mark.parametrize(("name", "default"), EVERY_SETTING, ids=[name for name, _ in EVERY_SETTING])
def test_every_setting_is_in_the_docs_with_its_default(name: str, default: Any) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    if isinstance(default, timedelta):
        assert f"| `{write_duration(default)}` |" in rows[0]
    elif isinstance(default, int | str) and default != "":
        assert f"| `{str(default).lower() if isinstance(default, bool) else default}` |" in rows[0]


def test_the_docs_name_no_setting_that_does_not_exist() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)) == {name for name, _ in EVERY_SETTING}


def test_make_bench_runs_every_bench_of_the_docs_and_none_that_is_part_of_another() -> None:
    """The first one that fails ends it: `bench.load` and `bench.peer` are started by others, with arguments."""
    asked = ["make", "-s", "--eval=names: ; @echo $(BENCHES)", "names"]
    run = set(subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    told = set(re.findall(r"python -m bench\.(\w+)", "\n".join(page.read_text(encoding="utf-8") for page in PAGES)))
    assert len(told) > 10 and told - run == set()
    assert run.isdisjoint({"load", "peer"})


def test_make_bench_measures_on_when_a_limit_is_missed_and_names_it_at_the_end(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "ran $2"\ntest "$2" != bench.latency\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    asked = ["make", "-s", "bench", f"VENV={tmp_path}", "BENCHES=ingest latency restart"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.findall(r"^ran bench\.(\w+)$", done.stdout, re.MULTILINE) == ["ingest", "latency", "restart"]
    assert done.returncode != 0 and "missed or failed: latency" in done.stderr


def meter_rows() -> dict[str, str]:
    page = (ROOT / "docs" / "meters.md").read_text(encoding="utf-8")
    return {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}


def test_every_key_of_a_meter_is_in_the_docs_with_its_default_and_no_other() -> None:
    rows = meter_rows()
    assert list(rows) == [field.name for field in dataclasses.fields(Meter)]
    for field in dataclasses.fields(Meter):
        told = rows[field.name].split("|")[2].strip()
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        nothing = field.default in ("", None, ()) or field.default is dataclasses.MISSING
        assert told == ("required" if needed else "" if nothing else f"`{shown}`"), field.name


def test_the_docs_name_every_word_that_a_key_of_a_meter_may_have() -> None:
    rows, hints = meter_rows(), get_type_hints(Meter)
    words = {name: get_args(kind) for name, kind in hints.items() if get_origin(kind) is Literal}
    assert words.keys() == {"aggregation", "rounding", "bucket", "level", "answer", "of"}
    for name, known in words.items():
        told = rows[name]
        assert [word for word in known if f"`{word}`" not in told] == [], name


def command_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("#")[0].split("&&"):
                    if part.strip().startswith("tallyman "):
                        yield page.name, part.strip()
    for name in COMMANDS:
        context = click.Context(cli)
        command = cli.get_command(context, name)
        assert command is not None
        for line in (command.help or "").replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||>", line):
                if line.startswith("  ") and part.strip().startswith("tallyman "):
                    yield f"{name} --help", part.strip()


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_every_command_line_in_the_docs_is_one(page: str, line: str) -> None:
    command: click.Command = cli
    words = shlex.split(line)[1:]
    context = click.Context(cli, info_name="tallyman")
    while isinstance(command, click.Group):
        parser = command.make_parser(context)
        _, words, _ = parser.parse_args(words)
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: {line}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("folder", ["tallyman/template", "examples/cloud"])
def test_the_sample_projects_load(folder: str) -> None:
    assert load_project(ROOT / folder, environment={}).meters


def test_the_sample_settings_that_are_commented_out_load_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_URL", "postgresql+psycopg://tallyman@db-1/tallyman")
    for name in ("ALARM_SECRET", "CLICKHOUSE_PASSWORD"):
        monkeypatch.setenv(name, "x")
    sample = (ROOT / "tallyman" / "template" / "tallyman.yaml").read_text(encoding="utf-8")
    path = tmp_path / "tallyman.yaml"
    path.write_text(re.sub(r"^( *)# ( *[a-z_]+:.*)$", r"\1\2", sample, flags=re.MULTILINE), encoding="utf-8")
    config = load_yaml(path, TallymanConfig)
    assert config.kafka.brokers == ("kafka-1:9092", "kafka-2:9092", "kafka-3:9092")
    assert config.rules.endpoints["operations"].secrets == ("x",)
    assert config.usage.ignore == ("cloud.server.heartbeat",)


def test_no_message_names_a_command_that_does_not_exist() -> None:
    """Who is woken at night types what the message says."""
    sources = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    named = {
        (str(path.relative_to(ROOT)), word)
        for path in sources
        for word in re.findall(r"[\"'`:] ?tallyman ([a-z]+)\b", path.read_text(encoding="utf-8"))
    }
    assert {found for found in named if found[1] not in COMMANDS} == set()
    assert len(named) > 10


def test_the_docs_name_no_metric_that_does_not_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"\btallyman_(?:collectors|pipeline|rules|invoices)_[a-z_]+", text))
    assert named - {metric.name for metric in METRICS} == set()
    assert len(named) > 5


def named_code() -> Iterator[tuple[Path, str]]:
    """Yield (file, name) of the table in the architecture that says where things stand."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Where things stand")[2]
    for row in (line for line in text.splitlines() if line.startswith("| ")):
        file = None
        for word in re.findall(r"`([^`]+)`", row):
            if word.endswith((".py", ".sql")):
                file = ROOT / word if "/" in word else (file or ROOT).with_name(word)
            elif file is not None:
                yield file, word


def test_every_name_in_the_table_of_the_architecture_stands_where_it_says() -> None:
    named = list(named_code())
    assert len(named) > 100
    missing = [f"{file.relative_to(ROOT)}: {name}" for file, name in named if not stands_in(file, name)]
    assert missing == []


def stands_in(file: Path, name: str) -> bool:
    """Whether a file defines a name, or is where it is to be imported from."""
    python = rf"^\s*(?:def|class) {name}\b|^{name}\b.*=|^from .* import .*\b{name}\b"
    sql = rf"^CREATE (?:OR REPLACE )?(?:TABLE|VIEW)(?: IF NOT EXISTS)? {name}(?: AS)?$"
    return re.search(f"{python}|{sql}", file.read_text(encoding="utf-8"), re.MULTILINE) is not None
