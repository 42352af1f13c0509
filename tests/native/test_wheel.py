"""`make wheels`, and what is installed of it."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from pipeline.settings import ROOT
from tests.native.both import demand_built

pytestmark = pytest.mark.timeout(400)  # the extension may be compiled
BESIDE = ("schemas", "topics", "migrations", "deploy/local")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An environment with the wheel and nothing of the checkout; what the wheel needs is read from ours."""
    demand_built()
    folder = tmp_path_factory.mktemp("wheel")
    code = folder / "code"
    shutil.copytree(ROOT, code, ignore=shutil.ignore_patterns(".*", "build", "dist", "target", "*.so", "*.egg-info"))
    (code / ".venv").symlink_to(sys.prefix)
    # Without our programs on the PATH, as in a shell that activated no environment; dependencies are compiled already.
    path = [each for each in os.environ["PATH"].split(":") if not each.startswith(sys.prefix)]
    env = {**os.environ, "PATH": ":".join(path), "CARGO_TARGET_DIR": str(ROOT / "pipeline" / "native" / "target")}
    made = subprocess.run(
        ["make", "--assume-old=.venv/stamp", "wheels"], cwd=code, env=env, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    [wheel] = (code / "dist").iterdir()
    assert "abi3-manylinux" in wheel.name
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    pathlib.Path(own, "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--version", "native"),
        ("schemas check", "log_record/1"),
        ("topics check", "declared well"),
        ("gateway --check", "gRPC"),
    ],
)
def test_a_wheel_stands_alone(installed: pathlib.Path, tmp_path: pathlib.Path, command: str, says: str) -> None:
    """It has the extension, and the schemas and topics that a checkout has beside the package."""
    ran = subprocess.run(
        [installed / "bin" / "pipeline", *command.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert says in ran.stdout


def test_what_is_installed_keeps_its_state_beside_its_files(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Unless settings say where."""
    asked = "from pipeline.settings import Settings as S; s = S(); print(s.spool.directory, s.replay.directory, s.local.home)"
    ran = subprocess.run(
        [installed / "bin" / "python", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    state = installed / "share" / "pipeline" / ".local"
    assert ran.stdout.split() == [str(state / "spool"), str(state / "replay"), str(state)]


def test_a_wheel_brings_all_that_code_reads(installed: pathlib.Path) -> None:
    """No file of the declared folders is left out."""
    for folder in BESIDE:
        shipped = installed / "share" / "pipeline" / folder
        files = [each.relative_to(ROOT / folder) for each in (ROOT / folder).rglob("*") if each.is_file()]
        assert files
        for file in files:
            assert (shipped / file).read_bytes() == (ROOT / folder / file).read_bytes()
