"""What the shop sells, and where it lies."""

from typing import NamedTuple

WAREHOUSES = ("Berlin", "Kraków", "Zürich", "東京")
TAX_PERCENT = {"tea": 7, "kitchen": 19, "books": 5}


class Product(NamedTuple):
    sku: str
    name: str
    category: str
    price_cents: int


_NAMES = {
    "tea": ("Grüner Tee", "Earl Grey", "Lapsang Souchong", "お茶", "Rooibos Crème brûlée 🍮", "Matcha 抹茶"),
    "kitchen": ("Teekanne 1 l", "Tasse mit Henkel", "Sieb, fein", "Thermometer 0-100 °C", "Löffel", "Küchenwaage"),
    "books": ("The Book of Tea", "Teezeremonie für Anfänger", "Чай: история", "Le thé à Paris", "Tea & Code", "茶経"),
}
PRODUCTS = {
    sku: Product(sku, f"{name} {size}", category, 290 + 170 * n)
    for category, names in _NAMES.items()
    for n, (name, size) in enumerate((name, size) for name in names for size in ("S", "M", "L"))
    for sku in (f"{category}-{n:02}",)
}
