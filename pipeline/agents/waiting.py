"""Between taking and delivering: what waits for the store gathers to one batch."""

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """Items in order, together up to `records` and `size`, or one item of any size.

    So batches are prompt where little comes, and few and large where much does.
    """

    def __init__(self, records: int, size: int) -> None:
        self._limit = records, size
        self._items: list[Item] = []
        self._records = self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, item: Item, records: int, size: int) -> None:
        """Return when there is room for it and it waits."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(records, size))
            self._items.append(item)
            self._records += records
            self._size += size
            self._changed.notify_all()

    def _fits(self, records: int, size: int) -> bool:
        return not self._items or (self._records + records <= self._limit[0] and self._size + size <= self._limit[1])

    async def some(self) -> None:
        """Return when something waits."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._items))

    async def take(self) -> list[Item]:
        """Everything that waits."""
        async with self._changed:
            items, self._items = self._items, []
            self._records = self._size = 0
            self._changed.notify_all()
        return items
