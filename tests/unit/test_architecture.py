"""The shape of the house: rooms, arrows between them, sizes, pins, and nothing that only one machine has."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = ("tallyman", "collectors", "pipeline", "rules", "invoices")
LONGEST = 500  # lines; a file that needs more has a second noun inside
TOO_HEAVY_FOR_A_HOST = ("apache_beam", "clickhouse_driver", "chdb", "jinja2", "sqlalchemy", "pyarrow", "numpy")


def tracked_files() -> list[Path]:
    """Return what git keeps, of the files that are here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def tracked_lines() -> Iterator[tuple[str, str]]:
    """Yield (place, line) of every tracked text file."""
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a recorded payload
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def distribution(requirement: str) -> str:
    """Return the normalised name in a requirement.

    >>> distribution("kafka-python[crc32c,lz4,zstd]>=3.0.12")
    'kafka-python'
    """
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_the_rooms_of_pyproject_exist_and_say_what_they_are_for():
    assert tuple(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == ROOMS
    assert tuple(PYPROJECT["tool"]["importlinter"]["root_packages"]) == ROOMS
    assert tuple(PYPROJECT["tool"]["mypy"]["packages"]) == ROOMS
    for room in ROOMS:
        first = (ROOT / room / "__init__.py").read_text(encoding="utf-8")
        assert first.startswith('"""'), f"{room}/__init__.py: expected a docstring that says what the room is for"


def test_no_import_crosses_the_arrows():
    """Every room may import tallyman, invoices may import rules, arithmetic imports contracts only."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_a_host_that_collects_loads_neither_beam_nor_clickhouse_nor_jinja():
    """Not with the package, and not with any module in it: an agent has to fit into 60 MiB."""
    program = (
        "import collectors, importlib, pkgutil, sys\n"
        "for module in pkgutil.walk_packages(collectors.__path__, 'collectors.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        f"print([name for name in {TOO_HEAVY_FOR_A_HOST!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "[]"


def test_no_python_file_is_longer_than_five_hundred_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix == ".py" and (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long


def test_no_tracked_file_names_a_path_of_the_machine_it_was_made_on():
    own = [str(path) for path in (ROOT, ROOT.parent, Path.home()) if len(path.parts) > 2]
    homes = [r"/home/[a-z][a-z0-9_-]*", r"/Users/[A-Za-z][A-Za-z0-9_-]*"]
    pattern = re.compile(r"(?<![\w.$}])(?:" + "|".join([*map(re.escape, own), *homes]) + r")(?=[/\s\"'`,;:)]|$)")
    assert [place for place, line in tracked_lines() if pattern.search(line)] == []


def test_no_tracked_file_names_a_package_registry():
    """Where packages come from is the business of the machine that installs them."""
    address = re.compile(r"https?://[^\s\"'<>)]*(?:pypi|pythonhosted|npmjs|registry|artifactory|jfrog|nexus|repo1?\.maven)")
    option = re.compile(r"--(?:extra-)?index-url|--trusted-host|--find-links|\bindex-url\s*=")
    found = [place for place, line in tracked_lines() if address.search(line) or option.search(line)]
    assert [place for place in found if not place.startswith("tests/unit/test_architecture.py")] == []


def test_constraints_are_exact_pins_of_names_and_versions_only():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+", line)] == []


def test_every_dependency_of_pyproject_is_pinned():
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pinned = {distribution(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[2:]}
    assert {distribution(one) for one in wanted} - {"tallyman"} - pinned == set()


FRONT = ("README.md", "CHANGELOG.md", "LICENSE", "docs/architecture.md", "docs/decisions/README.md")


@pytest.mark.parametrize("name", FRONT)
def test_what_a_stranger_looks_for_first_is_there(name):
    assert len((ROOT / name).read_text(encoding="utf-8")) > 200


def test_every_decision_note_is_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [note.name for note in sorted(folder.glob("[0-9]*.md")) if f"({note.name})" not in index] == []
