"""The inventory: what lies where, reservations, and the slow warehouse."""

import random
import threading
import time
from typing import Any

from catalogue import PRODUCTS, WAREHOUSES
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanKind
from telemetry import Telemetry
from web import Answer, RefusedError, Route

FULL_SHELF = 120
SLOW_QUERIES = 0.004  # wait for a lock
SQL = {"db.system.name": "postgresql", "db.namespace": "inventory"}


class OutOfStockError(Exception):
    """No warehouse has as many."""


class Inventory:
    def __init__(self, telemetry: Telemetry, *, chance: random.Random) -> None:
        self._telemetry = telemetry
        self._chance = chance
        self._lock = threading.Lock()
        self._shelves = {(sku, warehouse): FULL_SHELF for sku in PRODUCTS for warehouse in WAREHOUSES}
        meter = telemetry.meter
        self._picked = meter.create_counter("inventory.units.picked", unit="{unit}", description="Taken off shelves.")
        self._level = meter.create_gauge("inventory.stock.level", unit="{unit}", description="Left on a shelf.")
        self._query_seconds = meter.create_histogram(
            "db.client.operation.duration", unit="s", explicit_bucket_boundaries_advisory=[0.0001, 0.001, 0.01, 0.1]
        )
        self._result_sizes = meter.create_histogram("db.client.response.size", unit="By", description="Of answers.")
        meter.create_observable_gauge("inventory.warehouse.temperature", callbacks=[self._temperatures], unit="Cel")
        meter.create_observable_up_down_counter("inventory.units", callbacks=[self._units], unit="{unit}")

    def routes(self) -> dict[str, Route]:
        return {"POST /stock": self.stock, "POST /reservations": self.reserve}

    def stock(self, request: dict[str, Any]) -> Answer:
        levels = {sku: sum(self._shelves[sku, w] for w in WAREHOUSES) for sku in request["skus"]}
        self._query("SELECT stock", len(levels))
        self._result_sizes.record(24 * len(levels), {"db.operation.name": "SELECT"})
        self._telemetry.log.debug("stock of %d products read", len(levels), extra={"levels": levels})
        return Answer(200, {"stock": levels})

    def reserve(self, request: dict[str, Any]) -> Answer:
        order = request["order"]
        self._query("SELECT stock FOR UPDATE", len(request["cart"]))
        for sku, quantity in request["cart"]:
            try:
                self._take(sku, quantity)
            except OutOfStockError as error:
                self._telemetry.log.error(
                    "order %d cannot be filled: %s", order, error, exc_info=error, extra={"product.sku": sku}
                )
                raise RefusedError(409, str(error)) from error
        self._telemetry.log.info("order %d reserved", order, extra={"order.id": order})
        return Answer(201, {"order": order})

    def _take(self, sku: str, quantity: int) -> None:
        with self._telemetry.tracer.start_as_current_span(
            "take from shelf", attributes={"product.sku": sku, "quantity": quantity}
        ) as span:
            with self._lock:
                warehouse = max(WAREHOUSES, key=lambda w: self._shelves[sku, w])
                left = self._shelves[sku, warehouse] - quantity
                self._shelves[sku, warehouse] = left if left >= 0 else FULL_SHELF  # an empty shelf is filled again
            if left < 0:
                raise OutOfStockError(
                    f"{PRODUCTS[sku].name}: {quantity} wanted, {left + quantity} left in {warehouse}."
                )
            self._query("UPDATE stock", 1)
            place = {"product.sku": sku, "warehouse": warehouse}
            span.set_attribute("warehouse", warehouse)
            self._level.set(left, place)
            self._picked.add(quantity, place)
            self._telemetry.log.debug("%d x %s taken from %s", quantity, sku, warehouse, extra={"left": left})

    def _query(self, statement: str, rows: int) -> None:
        started = time.perf_counter()
        labels = {"db.operation.name": statement.partition(" ")[0]}
        with self._telemetry.tracer.start_as_current_span(
            statement, kind=SpanKind.CLIENT, attributes={**SQL, "db.query.text": f"{statement} WHERE sku = $1"}
        ) as span:
            if self._chance.random() < SLOW_QUERIES:
                span.add_event("waiting for a lock", {"lock": "shelf"})
                self._telemetry.log.warning("%s waits for a lock", statement, extra=labels)
                time.sleep(self._chance.uniform(0.005, 0.020))
            span.set_attribute("db.response.returned_rows", rows)
            self._query_seconds.record(time.perf_counter() - started, labels)

    def _temperatures(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(self._chance.gauss(18.5, 0.4), {"warehouse": w}) for w in WAREHOUSES]

    def _units(self, _: CallbackOptions) -> list[Observation]:
        with self._lock:
            shelves = dict(self._shelves)
        return [
            Observation(units, {"product.sku": sku, "warehouse": warehouse})
            for (sku, warehouse), units in shelves.items()
        ]
