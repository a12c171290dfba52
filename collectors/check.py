"""Check which collectors a project switches on, and with what options; `tallyman check` calls it."""

from __future__ import annotations

from collectors.agent import open_collectors
from tallyman.errors import ConfigError
from tallyman.project import Project, settings_place


def check_collectors(project: Project) -> list[str]:
    """Return every collector and option that does not exist, one line each; nothing is measured."""
    problems = []
    for name, options in project.config.agent.collectors.items():
        try:
            open_collectors({name: options})
        except ConfigError as error:
            _, path, problem = str(error).split(": ", 2)  # "tallyman.yaml: agent.collectors.host: ..."
            problems.append(f"{settings_place(project, path)}: {problem}")
    return problems
