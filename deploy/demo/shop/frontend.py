"""The frontend: pages, carts, and the call that turns a cart into an order."""

import time
from typing import Any

import psutil
from catalogue import PRODUCTS
from opentelemetry.metrics import CallbackOptions, Observation
from telemetry import Telemetry
from web import Answer, Client, RefusedError, Route, traced_call


class Frontend:
    def __init__(self, telemetry: Telemetry, *, checkout: Client, inventory: Client) -> None:
        self._telemetry = telemetry
        self._checkout = checkout
        self._inventory = inventory
        meter = telemetry.meter
        self._views = meter.create_counter("shop.page.views", unit="{view}", description="Pages shown.")
        self._page_sizes = meter.create_histogram("shop.page.size", unit="By", description="Rendered page.")
        self._cart_lines = meter.create_histogram(
            "shop.cart.lines", unit="{line}", explicit_bucket_boundaries_advisory=[1, 2, 4, 8, 16]
        )
        self._sessions = meter.create_up_down_counter("shop.sessions", unit="{session}")
        meter.create_observable_gauge("process.memory.usage", callbacks=[_memory], unit="By")
        meter.create_observable_counter("process.cpu.time", callbacks=[_cpu_time], unit="s")

    def routes(self) -> dict[str, Route]:
        return {"GET /": self.home, "POST /products": self.products, "POST /cart/checkout": self.check_out}

    def home(self, _: dict[str, Any]) -> Answer:
        with self._telemetry.tracer.start_as_current_span("render home"):
            self._telemetry.log.debug("home page rendered")
        self._views.add(1, {"page": "home", "locale": "de"})
        return Answer(200, {"title": "Tee & Bücher"})

    def products(self, request: dict[str, Any]) -> Answer:
        telemetry, category, locale = self._telemetry, request["category"], request["locale"]
        self._views.add(1, {"page": category, "locale": locale})
        listed = [product for product in PRODUCTS.values() if product.category == category]
        stock = traced_call(telemetry, self._inventory, "POST /stock", {"skus": [product.sku for product in listed]})
        size = 0
        for product in listed:
            with telemetry.tracer.start_as_current_span(
                "render card", attributes={"product.sku": product.sku, "product.name": product.name}
            ):
                left = stock.body["stock"][product.sku]
                size += 200 + len(product.name)
                telemetry.log.debug(
                    "card of %s rendered, %d left", product.name, left, extra={"product.sku": product.sku}
                )
        self._page_sizes.record(size, {"page": category, "locale": locale})
        telemetry.log.info("category %s shown", category, extra={"products": len(listed), "locale": locale})
        return Answer(200, {"products": len(listed), "bytes": size})

    def check_out(self, request: dict[str, Any]) -> Answer:
        telemetry, cart, customer = self._telemetry, request["cart"], request["customer"]
        self._sessions.add(1)
        try:
            self._cart_lines.record(len(cart), {"locale": customer["locale"]})
            telemetry.log.info(
                "cart of %s checked out",
                customer["name"],
                extra={"enduser.id": customer["id"], "cart": {"lines": len(cart), "skus": [line[0] for line in cart]}},
            )
            total_cents = sum(self._price(sku, quantity) for sku, quantity in cart)
            order = {"cart": cart, "card": request["card"], "total_cents": total_cents}
            answer = traced_call(telemetry, self._checkout, "POST /orders", order)
            if answer.status >= 400:
                telemetry.log.warning(
                    "order refused: %s", answer.body["error"], extra={"order.total_cents": total_cents}
                )
                raise RefusedError(answer.status, answer.body["error"])
            with telemetry.tracer.start_as_current_span("render receipt") as span:
                span.add_event("receipt rendered", {"order.id": answer.body["order"], "lines": len(cart)})
            return Answer(201, answer.body)
        finally:
            self._sessions.add(-1)

    def _price(self, sku: str, quantity: int) -> int:
        product = PRODUCTS[sku]
        with self._telemetry.tracer.start_as_current_span(
            "price line", attributes={"product.sku": sku, "quantity": quantity}
        ) as span:
            discount_percent = 10 if quantity >= 5 else 0
            cents = product.price_cents * quantity * (100 - discount_percent) // 100
            span.set_attribute("line.cents", cents)
            self._telemetry.log.debug(
                "%d x %s: %.2f €", quantity, product.name, cents / 100, extra={"product.sku": sku}
            )
            return cents


def _memory(_: CallbackOptions) -> list[Observation]:
    return [Observation(psutil.Process().memory_info().rss, {"process.memory.type": "rss"})]


def _cpu_time(_: CallbackOptions) -> list[Observation]:
    return [Observation(time.process_time(), {"cpu.mode": "all"})]
