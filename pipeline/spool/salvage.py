"""A damaged file is replaced by a fresh one with every readable row, and moved whole into the quarantine.

    spool-3.salvage              the fresh file while it is written: worth nothing
    spool-3.<moment>.fresh       the same, complete and fsynced: from here on it is the truth, and `finish` goes on
    spool-3.sqlite               the same, once the damaged file is in quarantine/<moment>-3/

So a crash at any instant leaves either the damaged file in place or a complete fresh one.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog

from pipeline.spool.message import Row
from pipeline.spool.pages import Pages
from pipeline.spool.quarantine import Quarantine, sync_directory

log = structlog.get_logger()


def salvage(
    file: Path, number: int, quarantine: Quarantine, *, reason: str, write: Callable[[Path, Iterable[Row]], None]
) -> None:
    """Replace the damaged `file`, which nobody has open. `write` makes a complete, fsynced file of rows.

    What the index lists and nothing holds is counted as lost. Raise OSError, or what `write` raises, where the disk
    does not play along: then the damaged file is still in place, or `finish` has the rest to do.
    """
    moment = quarantine.moment(number)
    unfinished = file.with_suffix(".salvage")
    unfinished.unlink(missing_ok=True)
    pages = Pages(file, log_of(file))
    try:
        listed = {row.id: row.records for row in pages.listed()}
        found: set[int] = set()
        write(unfinished, _readable(pages, listed, found))
    finally:
        pages.close()
    lost = listed.keys() - found
    quarantine.count(len(lost), sum(listed[row] for row in lost))
    log.error(
        f"{file} was damaged; its readable messages go on, the damaged file is moved to "
        f"{quarantine.place(moment, number)}: keep it until the lost messages are accounted for",
        reason=reason, readable_messages=len(found), lost_messages=len(lost),
        lost_records=sum(listed[row] for row in lost),
    )  # fmt: skip
    unfinished.rename(file.with_suffix(f".{moment}.fresh"))
    sync_directory(file.parent)
    finish(file, number, quarantine)


def _readable(pages: Pages, listed: dict[int, int], found: set[int]) -> Iterator[Row]:
    """Each whole row once; `found` grows with what is yielded."""
    for row in pages.rows():
        if row.id not in found:
            found.add(row.id)
            yield row
    if listed.keys() <= found:
        return
    for row in pages.leftovers():
        if row.id in listed and row.id not in found:
            found.add(row.id)
            yield row


def finish(file: Path, number: int, quarantine: Quarantine) -> None:
    """Complete a replacement that a crash interrupted, if there is one."""
    for fresh in sorted(file.parent.glob(f"{file.stem}.*.fresh")):
        place = quarantine.place(fresh.name.split(".")[1], number)
        for damaged in (log_of(file), file):
            if damaged.exists():
                damaged.rename(place / damaged.name)
        sync_directory(place)
        sync_directory(file.parent)
        fresh.rename(file)
        sync_directory(file.parent)


def log_of(file: Path) -> Path:
    """Where SQLite keeps its write-ahead log."""
    return file.with_name(file.name + "-wal")
