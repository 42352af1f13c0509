"""A real process that spools until it is killed: prints the number of each acknowledged message.

python -m tests.spool.worker DIRECTORY FIRST    numbers from FIRST on
"""

import itertools
import sys
from concurrent.futures import Future, wait
from pathlib import Path

from tests.spool.world import message, spool


def main(directory: str, first: str) -> None:
    into = spool(Path(directory))

    def put(number: int) -> Future[None]:
        future = into.put(message(number, size=number % 10 * 3000))
        future.add_done_callback(lambda done: done.exception() or print(number, flush=True))
        return future

    for group in itertools.count(int(first), 8):
        wait([put(number) for number in range(group, group + 8)])


if __name__ == "__main__":
    main(*sys.argv[1:])
