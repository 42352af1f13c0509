"""Between taking and delivering: what waits for the store gathers to one batch."""

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """Items in order, together up to `records` and `size`, or one item of any size.

    While a batch is under way the next one gathers until it is full: so batches are prompt where little comes, and few
    and large where much does.
    """

    def __init__(self, records: int, size: int) -> None:
        self._limit = records, size
        self._items: list[Item] = []
        self._records = self._size = 0
        self._full = False
        self._under_way = 0
        self._changed = asyncio.Condition()

    async def put(self, item: Item, records: int, size: int) -> None:
        """Return when there is room for it and it waits."""
        async with self._changed:
            if not self._fits(records, size):
                self._full = True
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._fits(records, size))
            self._items.append(item)
            self._records += records
            self._size += size
            self._changed.notify_all()

    def _fits(self, records: int, size: int) -> bool:
        return not self._items or (self._records + records <= self._limit[0] and self._size + size <= self._limit[1])

    async def ready(self) -> None:
        """Return when something waits, and it is as much as may be or nothing is under way."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._items and (self._full or not self._under_way))

    async def take(self) -> list[Item]:
        """Everything that waits, which is under way now."""
        async with self._changed:
            items, self._items = self._items, []
            self._records = self._size = 0
            self._full = False
            self._under_way += 1
            self._changed.notify_all()
        return items

    async def done(self) -> None:
        """Of what is under way, one batch has arrived."""
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
