"""Numbers in texts that anybody may have written: headers of messages, parameters of a question."""


def number(text: str | bytes, digits: int, otherwise: int) -> int:
    """What the text says in at most so many decimal digits, `otherwise` where that is no number. Never fails: int()
    takes no more than 4300 digits, and str.isdigit() takes a '²'."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else otherwise
