"""A ClickHouse server as a process of its own, out of the wheel `chdb-core`: `python -m … DIRECTORY`.

The wheel links upstream's clickhouse-local, which knows SYSTEM START LISTEN. One query starts the listener and then
blocks on its standard input; SIGTERM closes that, the query ends, and the server shuts down in order. kill -9 loses no
finished insert. `_chdb.query` is a private name: the version is pinned, and its absence is told.
"""

import os
import pathlib
import signal
import sys
import threading


def main(directory: pathlib.Path) -> None:
    """Serve from `directory`, which holds config.xml and gets data/, until SIGTERM."""
    os.chdir(directory)
    read_end, write_end = os.pipe()
    os.dup2(read_end, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before any thread: chdb's threads inherit it

    def end_input() -> None:
        signal.sigwait({signal.SIGTERM})
        os.close(write_end)

    threading.Thread(target=end_input, daemon=True).start()
    os.close(read_end)
    try:
        from chdb import _chdb  # noqa: PLC0415 - after the mask
    except ImportError as error:
        sys.exit(f"chdb-core is missing or no longer has _chdb: {error}; install the version that pyproject.toml pins.")
    query = "SYSTEM START LISTEN HTTP; SELECT count() FROM file('stdin', LineAsString) FORMAT Null;"
    result = _chdb.query(  # type: ignore[attr-defined]
        query, "TSV", path=str(directory / "data")
    )
    if result.has_error():
        sys.exit(result.error_message())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
