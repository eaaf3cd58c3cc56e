"""The number that a reply ends with."""

import re
from decimal import Decimal

_NUMBER = re.compile(
    r"(?P<minus>(?<![\w.)%])[-−][ ]?)?"  # after a figure or a bracket it is a dash
    r"[$€£¥]?"
    r"(?P<minus_inside>(?<=[$€£¥])[-−])?"
    r"(?P<figure>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?"
    r"|(?<![0-9])\.[0-9]+)"
)


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text; None if there is none.

    Commas between thousands, a currency's sign and a full stop after it are no part of
    it: `$1,234.` is 1234. Words, fractions and decimal commas are not understood: of
    `three`, `3/4` and `2,5` the last number is none, 4 and 5.

    Args:
        text: What was written.

    Example:
        >>> last_number("So that makes $1,250.50 in all.")
        Decimal('1250.50')
    """
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    figure = Decimal(found[-1]["figure"].replace(",", ""))
    return -figure if found[-1]["minus"] or found[-1]["minus_inside"] else figure
