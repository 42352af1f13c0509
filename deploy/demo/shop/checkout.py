"""The checkout: orders, tax, payment, and the settlement of many payments at once."""

import itertools
import time
from typing import Any

from catalogue import PRODUCTS, TAX_PERCENT
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, get_current_span
from telemetry import Telemetry
from web import Answer, Client, RefusedError, Route, traced_call

DECLINED_CARD = "4000000000000002"
SETTLE_ORDERS = 10


class PaymentDeclinedError(Exception):
    """The bank said no."""


class Checkout:
    def __init__(self, telemetry: Telemetry, *, inventory: Client) -> None:
        self._telemetry = telemetry
        self._inventory = inventory
        self._numbers = itertools.count(1)
        self._unsettled: list[SpanContext] = []
        meter = telemetry.meter
        self._orders = meter.create_counter("checkout.orders", unit="{order}", description="Orders by outcome.")
        self._revenue = meter.create_counter("checkout.revenue", unit="EUR", description="Paid, with tax.")
        self._durations = meter.create_histogram(
            "checkout.order.duration",
            unit="ms",
            description="From order to payment.",
            explicit_bucket_boundaries_advisory=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
        )
        self._totals = meter.create_histogram("checkout.order.total.size", unit="EUR", description="Order totals.")
        self._unsettled_orders = meter.create_up_down_counter("checkout.unsettled_orders", unit="{order}")
        meter.create_observable_gauge("checkout.tax.rate", callbacks=[_tax_rates], unit="%")

    def routes(self) -> dict[str, Route]:
        return {"POST /orders": self.order}

    def order(self, request: dict[str, Any]) -> Answer:
        started = time.perf_counter()
        telemetry, cart, number = self._telemetry, request["cart"], next(self._numbers)
        get_current_span().set_attribute("order.id", number)
        # A body that is a structure, not a text.
        telemetry.log.info({"event": "order received", "order": number, "lines": len(cart), "express": number % 7 == 0})
        total_cents = request["total_cents"] + sum(self._tax(sku, quantity) for sku, quantity in cart)
        outcome = "failed"
        try:
            reserved = traced_call(telemetry, self._inventory, "POST /reservations", {"order": number, "cart": cart})
            if reserved.status >= 400:
                outcome = "out of stock"
                raise RefusedError(reserved.status, reserved.body["error"])
            try:
                self._charge(request["card"], total_cents)
            except PaymentDeclinedError as error:
                outcome = "declined"
                raise RefusedError(402, str(error)) from error
            outcome = "paid"
        finally:
            self._orders.add(1, {"outcome": outcome})
            self._durations.record((time.perf_counter() - started) * 1000, {"outcome": outcome})
        self._totals.record(total_cents / 100)
        self._revenue.add(total_cents / 100, {"currency": "EUR"})
        telemetry.events.emit(
            LogRecord(
                timestamp=time.time_ns(),
                event_name="order.paid",
                severity_number=SeverityNumber.INFO,
                body={"order": number, "total_eur": total_cents / 100, "paid": True},
                attributes={"order.id": number, "order.skus": [sku for sku, _ in cart]},
                context=get_current(),
            )
        )
        # An address in a log, as it happens: something for an agent to mask.
        telemetry.log.info("receipt of order %d sent to customer-%d@example.com", number, number % 500)
        self._settle_later()
        return Answer(201, {"order": number, "total_cents": total_cents})

    def _tax(self, sku: str, quantity: int) -> int:
        product = PRODUCTS[sku]
        percent = TAX_PERCENT[product.category]
        with self._telemetry.tracer.start_as_current_span(
            "tax line", attributes={"product.category": product.category, "tax.percent": percent}
        ):
            cents = product.price_cents * quantity * percent // 100
            self._telemetry.log.debug("tax of %s: %d cents", sku, cents, extra={"tax.percent": percent})
            return cents

    def _charge(self, card: str, total_cents: int) -> None:
        with self._telemetry.tracer.start_as_current_span(
            "charge card", attributes={"payment.card": f"…{card[-4:]}", "payment.cents": total_cents}
        ) as span:
            span.add_event("bank asked", {"bank": "Sparbank Süd"})
            try:
                if card == DECLINED_CARD:
                    raise PaymentDeclinedError(f"The bank declined card …{card[-4:]} for {total_cents / 100:.2f} €.")
            except PaymentDeclinedError:
                self._telemetry.log.exception("payment declined", extra={"payment.cents": total_cents})
                raise  # the span records the exception and fails
            span.set_status(Status(StatusCode.OK))
            self._telemetry.log.info("paid %.2f €", total_cents / 100, extra={"payment.cents": total_cents})

    def _settle_later(self) -> None:
        """Remember this order; settle many in a trace of their own that links to each."""
        self._unsettled.append(get_current_span().get_span_context())
        self._unsettled_orders.add(1)
        if len(self._unsettled) < SETTLE_ORDERS:
            return
        settled, self._unsettled = self._unsettled, []
        with self._telemetry.tracer.start_as_current_span(
            "settle payments", context=Context(), links=[Link(order, {"settled": True}) for order in settled]
        ):
            self._telemetry.log.info("%d payments settled", len(settled))
        self._unsettled_orders.add(-len(settled))


def _tax_rates(_: CallbackOptions) -> list[Observation]:
    return [Observation(percent, {"product.category": category}) for category, percent in TAX_PERCENT.items()]
