"""Numbers as people read them."""

from math import floor, isfinite, log10


def counted(number: int, what: str, plural: str = "s") -> str:
    """Such as "1 shard" or "2 shards"."""
    return f"{number:,} {what}" + (plural if number != 1 else "")


def size(count: int) -> str:
    """Bytes, in three digits or more."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= amount:
            value = count / amount
            return f"{value:,.{max(2 - floor(log10(value)), 0)}f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    if not isfinite(seconds):
        return "unknown"
    whole = max(round(seconds), 0)
    days = f"{whole // 86400} d " if whole >= 86400 else ""
    return f"{days}{whole % 86400 // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def round_step(rough: float) -> float:
    """The next larger of 1, 2 and 5 times a power of 10; 1 for 0."""
    power = 10.0 ** floor(log10(rough)) if rough else 1.0
    return power * next((n for n in (1, 2, 5) if n * power >= rough), 10)
