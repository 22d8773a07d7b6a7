"""Numbers, as headers and extended headers of a tar have them.

What is no such number is a ValueError, whose message comes after "NAME has".

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header Keywords"; GNU tar manual, "Basic Tar
Format", for what octal digits cannot hold.
"""

from __future__ import annotations

LARGEST_NUMBER = 2**63 - 1
_ALL_OWNERS = 2**32
# One more means "leave it as it is" to chown(2).
_LARGEST_OWNER = _ALL_OWNERS - 2


def number(field: bytes) -> int:
    """Return a number of a header: octal digits, or of GNU's form with a first bit of 1 all other bits."""
    if not field[-1]:
        try:
            return int(field[:-1], 8)
        except ValueError:
            pass  # of another form
    first = field[0]
    if first >= 0x80:
        found = int.from_bytes(field, "big", signed=first == 0xFF)
        found = found if first == 0xFF else found - (0x80 << (8 * (len(field) - 1)))
        if not -LARGEST_NUMBER <= found <= LARGEST_NUMBER:
            raise ValueError("a number that is too large")
        return found
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise ValueError("an invalid number") from None


def natural(field: bytes) -> int:
    """Return a number of a header that must not be negative."""
    found = number(field)
    if found < 0:
        raise ValueError("a negative number where none is allowed")
    return found


def owner(found: int) -> int:
    """Return the user or group that a number stands for: what is negative counts from 2^32 down, as in chown(2).

    -2 is nobody on some systems, whose tars have it so.
    """
    found += _ALL_OWNERS if -_ALL_OWNERS // 2 <= found < 0 else 0
    if not 0 <= found <= _LARGEST_OWNER:
        raise ValueError(f"an impossible owner, {found}")
    return found


def decimal(text: bytes | None, otherwise: int) -> int:
    """Return a number of a record, which is neither negative nor too large."""
    if text is None:
        return otherwise
    if not (text.isdigit() and len(text) < 20 and int(text) <= LARGEST_NUMBER):
        raise ValueError(f"{text[:40]!r} for a size or number")
    return int(text)


def signed_decimal(text: bytes | None, otherwise: int) -> int:
    """Return a number of a record, which is not too large."""
    if text is not None and text.startswith(b"-"):
        return -decimal(text[1:], 0)
    return decimal(text, otherwise)


def nanoseconds(text: bytes) -> int:
    """Return a time in seconds, with a fraction or without, in nanoseconds."""
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    if not (whole.isdigit() and len(whole) < 19 and (fraction.isdigit() or not fraction)):
        raise ValueError(f"{text[:40]!r} for a time")
    return sign * (int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0")))
