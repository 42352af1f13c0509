"""Which times a client may claim: outside of these the receipt time stands in for them."""

SANE_FROM_NS = 946_684_800 * 10**9  # 2000-01-01
SANE_AHEAD_NS = 86_400 * 10**9  # of the receipt
