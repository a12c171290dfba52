"""Check a project's alarms and endpoints without starting anything; `tallyman check` prints what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from rules.load import load_rules
from rules.webhook import parse_secret
from tallyman.config import EndpointConfig
from tallyman.errors import ConfigError
from tallyman.project import Project, settings_place

ALARMS_FOLDER = "alarms"


def check_alarms(project: Project) -> list[str]:
    """Return every problem of the alarm files and of the endpoints, one line each; empty when all is well."""
    endpoints = project.config.rules.endpoints
    problems = [problem for name in endpoints for problem in _check_endpoint(project, name)]
    try:
        load_rules(project.folder / ALARMS_FOLDER, project.meters, endpoints)
    except ConfigError as error:
        problems += str(error).splitlines()
    return problems


def check_endpoints(project: Project) -> None:
    """Refuse endpoints that nothing should be sent to.

    Raises:
        ConfigError: All problems, one line each.
    """
    endpoints = project.config.rules.endpoints
    problems = [problem for name in endpoints for problem in _check_endpoint(project, name)]
    if problems:
        raise ConfigError("\n".join(problems))


def _check_endpoint(project: Project, name: str) -> list[str]:
    endpoint = project.config.rules.endpoints[name]
    found = list(_find_problems(endpoint))
    return [f"{settings_place(project, f'rules.endpoints.{name}.{below}')}: {problem}" for below, problem in found]


def _find_problems(endpoint: EndpointConfig) -> Iterator[tuple[str, str]]:
    try:
        url = urlsplit(endpoint.url)
        port_fits = url.port is None or url.port > 0
    except ValueError:
        yield "url", "expected https://host/path, got something that is no URL"
        return
    if not url.hostname or not port_fits:
        yield "url", "expected https://host/path, got no host"
    if url.username is not None or url.password is not None:
        yield "url", "expected no user or password in it; the signature says who sends"
    if url.scheme != "https" and not endpoint.allow_private:
        yield (
            "url",
            f"expected https, got {url.scheme}; anybody on the way could read and drop alarms. "
            "For a receiver in a private network set allow_private: true",
        )
    if not endpoint.secrets and endpoint.format == "standard":
        yield "secrets", 'expected one or two secrets ("whsec_..."), got none'
    for i, secret in enumerate(endpoint.secrets):
        try:
            parse_secret(secret)
        except ConfigError as error:
            yield f"secrets[{i}]", str(error)
