"""Who waits for a seal or a repair sees in the terminal that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.sealing import SealReport
from tallyman.cli import repair as repair_room
from tallyman.cli import run
from tallyman.cli import seal as seal_room


class Desk:
    """Seals nothing, step by step."""

    def __init__(self, project: Any) -> None: ...

    def seal(self, show: Callable[[str], None]) -> SealReport:
        show("staging, 3 done")
        return SealReport(sealed=(), sealed_to=20_757_003, unsealed=())

    def close(self) -> None: ...


def repaired(*_: Any, show: Callable[[str], None], **__: Any) -> Any:
    show("fenced")
    return SimpleNamespace(to_offset=7, booking=20_757_004, skipped=2, number=1)


ROOMS: dict[str, Any] = {
    "pipeline.sealing:SealDesk": Desk,
    "pipeline.repair:repair": repaired,
    "pipeline.repair:plan_repair": lambda *_: SimpleNamespace(),
}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["seal"], ["seal: staging, 3 done", "seal: done"]),
        (["repair", "3", "--yes"], ["repair of partition 3: fenced", "repair of partition 3: done"]),
    ],
)
def test_the_steps_are_shown_as_they_are_done(
    words: list[str], shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def progress_line(what: str) -> Callable[..., None]:
        return lambda text, done=False: told.append(f"{what}: {text}")

    (tmp_path / "tallyman.yaml").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for room in (seal_room, repair_room):
        monkeypatch.setattr(room, "clickhouse", nullcontext)
        monkeypatch.setattr(room, "load_room", ROOMS.__getitem__)
        monkeypatch.setattr(room, "progress_line", progress_line)
    monkeypatch.setattr(repair_room, "preview", lambda _: [])
    assert run(words) == 0
    assert told == shown
