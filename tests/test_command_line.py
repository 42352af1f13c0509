"""The command `pipeline` itself: how it ends where not its work but its surroundings fail."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from pipeline.cli import registry
from pipeline.cli.common import files_named
from pipeline.errors import Misconfigured
from pipeline.settings import ROOT
from pipeline.workers import NUMBER_VARIABLE

LONG = ["agents", "show", "redact"]


@pytest.mark.parametrize("words", [["agents", "show"], LONG, ["--help"]])
def test_an_output_without_room_is_exit_2(words: list[str]) -> None:
    """A sentence, whether it fails at a line or at the end; so no script takes it for a difference."""
    with pathlib.Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        2, "The output cannot be written: No space left on device: make room for it.\n",
    )  # fmt: skip


def test_an_output_that_is_read_no_further_is_no_problem() -> None:
    """As by `| head -1`: not a word."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "pipeline", *LONG], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_only_a_file_that_a_command_uses_is_misconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a socket says stays, and so does what a worker meets, whom its supervisor starts again."""
    lost = FileNotFoundError(errno.ENOENT, "No such file or directory", "plan.json")
    with pytest.raises(Misconfigured, match=r"plan\.json cannot be used: No such file"), files_named():
        raise lost
    for error in (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), OSError(errno.EADDRINUSE, "in use")):
        with pytest.raises(type(error), match=error.strerror), files_named():
            raise error
    monkeypatch.setenv(NUMBER_VARIABLE, "0")
    with pytest.raises(FileNotFoundError), files_named():
        raise lost


def test_ctrl_c_while_it_is_imported_is_exit_130(tmp_path: pathlib.Path) -> None:
    """Without a traceback, from the first module on."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--version"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


def test_who_has_no_name_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's user that is in no list: who registers a table is told all the same."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(registry.getpass, "getuser", nobody)
    assert registry._me() == f"uid {os.getuid()}"
