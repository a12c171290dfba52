"""Fetch the jars of Kafka, or of another part, once, with neither Maven nor a JDK; check each against the pinned list.

`docker/kafka/jars.txt` says what we want, `jars.lock` every jar that this means, with its checksum.
`python -m tallyman.local.jars` fetches; with `--lock` it writes `jars.lock` anew when `jars.txt` has changed.
`python -m tallyman.local.jars flink` does so for `docker/flink`, which only tests run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tallyman.errors import StackError
from tallyman.local.files import only_one, write_atomically

FETCHES_AT_ONCE = 8
ATTEMPTS = 3

Progress = Callable[[int, int], None]
"""Called with (jars that are here, jars in all)."""

Download = Callable[[str, Path], Path]
"""Fetches a coordinate into a repository folder and returns the file; raises whatever went wrong."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of `jars.lock`."""

    coordinate: str  # group:artifact:version
    sha256: str

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def files_of(part: str) -> Path:
    """Find `docker/<part>`: beside the packages in a checkout, inside `tallyman.local` in a wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here / f"_{part}", here.parents[1] / "docker" / part):
        if (folder / "jars.txt").is_file():
            return folder
    raise StackError(
        f"docker/{part}/jars.lock: the list of its jars is not beside this installation; "
        f"run from a checkout, or install a wheel that was built with docker/{part} in it"
    )


def kafka_files() -> Path:
    """Find `docker/kafka`."""
    return files_of("kafka")


def user_cache() -> Path:
    """Where downloads are kept between projects: `$TALLYMAN_CACHE`, else the user's cache folder."""
    if own := os.environ.get("TALLYMAN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tallyman"


def read_lock(path: Path) -> tuple[Jar, ...]:
    """Read `jars.lock`: a checksum and a coordinate a line.

    Raises:
        StackError: If a line is something else.
    """
    jars = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match line.split():
            case [sha256, coordinate] if len(sha256) == 64 and coordinate.count(":") == 2:
                jars.append(Jar(coordinate, sha256))
            case _:
                raise StackError(
                    f"{path}: line {number}: expected a sha256 and group:artifact:version, got {line!r}; "
                    f"write it anew with: python -m tallyman.local.jars {path.parent.name.lstrip('_')} --lock"
                )
    return tuple(jars)


def fetch_jars(
    cache: Path | None = None,
    *,
    part: str = "kafka",
    lock: Path | None = None,
    on_progress: Progress | None = None,
    download: Download | None = None,
) -> tuple[Path, ...]:
    """Return a part's class path, fetching what is not in the cache yet.

    The first call needs the network; later ones only look at the marker. A download that was cut off is
    taken up again: a jar gets its name only when its checksum is right, the folder only when all are there.

    Raises:
        StackError: If a jar cannot be fetched, or is not the one that is pinned.
    """
    lock = lock or files_of(part) / "jars.lock"
    jars = read_lock(lock)
    digest = hashlib.sha256("\n".join(f"{jar.sha256} {jar.coordinate}" for jar in jars).encode()).hexdigest()
    root = (cache or user_cache()) / part
    folder = root / digest[:16]
    if not _is_complete(folder, digest):
        root.mkdir(parents=True, exist_ok=True)
        with only_one(root / "fetch.lock"):
            if not _is_complete(folder, digest):
                _fill(folder, digest, jars, on_progress or (lambda done, total: None), download or _download)
    return tuple(folder / jar.file_name for jar in jars)


def _is_complete(folder: Path, digest: str) -> bool:
    """Say if the marker is there and every jar has the length it had when it was checked."""
    try:
        marker = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
        sizes: dict[str, int] = marker["sizes"]
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        return bool(marker["digest"] == digest and whole)
    except (OSError, ValueError, KeyError):
        return False


def _fill(folder: Path, digest: str, jars: tuple[Jar, ...], on_progress: Progress, download: Download) -> None:
    for left_by_a_kill in folder.parent.glob("fetch-*/"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    on_progress(0, len(jars))
    with (
        tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as work,
        ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="jars") as pool,
    ):
        fetches = [pool.submit(_fetch_one, jar, folder / jar.file_name, Path(work), download) for jar in jars]
        try:
            for done, fetch in enumerate(as_completed(fetches), start=1):
                fetch.result()
                on_progress(done, len(jars))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    sizes = {jar.file_name: (folder / jar.file_name).stat().st_size for jar in jars}
    write_atomically(folder / "complete.json", json.dumps({"digest": digest, "sizes": sizes}), everyone=True)


def _fetch_one(jar: Jar, target: Path, work: Path, download: Download) -> None:
    if target.exists() and sha256_of(target) == jar.sha256:
        return
    fault: Exception | None = None
    for attempt in range(ATTEMPTS):
        # A repository folder for each attempt: jgo takes a file that was cut off for a whole one.
        repository = work / f"{jar.file_name}.{attempt}"
        try:
            fetched = download(jar.coordinate, repository)
        except Exception as error:  # noqa: BLE001  (jgo raises RuntimeError, OSError and requests' own)
            fault = error
            continue
        found = sha256_of(fetched)
        if found != jar.sha256:
            raise StackError(
                f"jars.lock: {jar.coordinate}: expected sha256 {jar.sha256}, got {found}; "
                "the repository serves another file than the pinned one: find out why before going on"
            )
        fetched.replace(target)
        shutil.rmtree(repository, ignore_errors=True)
        return
    raise StackError(
        f"jars.lock: {jar.coordinate}: could not be fetched in {ATTEMPTS} attempts ({fault}); "
        "check the network, or name a mirror under [repositories] in jgo's settings (~/.config/jgo.conf), "
        "and run again: what is here already is kept"
    ) from fault


def _download(coordinate: str, repository: Path) -> Path:
    group, artifact, version = coordinate.split(":")
    with _quiet_jgo():
        context = _maven(repository)
        return Path(context.project(group, artifact).at_version(version).artifact().resolve())


def _maven(repository: Path) -> Any:  # jgo's context; it ships no types that mypy is shown
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    remotes = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    return MavenContext(repo_cache=repository, remote_repos=remotes, timeout=60)


@contextmanager
def _quiet_jgo() -> Iterator[None]:
    """Keep jgo's remarks about JDKs that nobody needs off the screen."""
    logging.getLogger("jgo").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lock_jars(files: Path) -> tuple[Jar, ...]:
    """Resolve `jars.txt` with all that it depends on, and write `jars.lock`.

    jgo's own `build` would sort the jars into class path and module path, for which it downloads a JDK; all of
    them are needed on the class path, so the resolver alone is used.
    """
    lines = (files / "jars.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    with tempfile.TemporaryDirectory(prefix="tallyman-jars-") as work, _quiet_jgo():
        context = _maven(Path(work))
        roots = [context.create_dependency(coordinate) for coordinate in wanted]
        inputs, others = context.resolver.resolve(roots)
        jars = []
        for dependency in [*inputs, *(other for other in others if other.scope in ("compile", "runtime"))]:
            artifact = dependency.artifact
            coordinate = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            jars.append(Jar(coordinate, sha256_of(Path(artifact.resolve()))))
    jars.sort(key=lambda jar: jar.coordinate)
    head = f"# Written by `python -m tallyman.local.jars {files.name} --lock` from jars.txt; do not edit.\n"
    pins = [f"{jar.sha256}  {jar.coordinate}\n" for jar in jars]
    write_atomically(files / "jars.lock", head + "".join(pins), everyone=True)
    return tuple(jars)


def sha256_of(path: Path) -> str:
    """Return the checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _show(done: int, total: int) -> None:
    print(f"\r{done} of {total} jars", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    wanted = next((word for word in sys.argv[1:] if word != "--lock"), "kafka")
    if "--lock" in sys.argv[1:]:
        print(f"{len(lock_jars(files_of(wanted)))} jars locked")
    else:
        print(os.pathsep.join(str(jar) for jar in fetch_jars(part=wanted, on_progress=_show)))
