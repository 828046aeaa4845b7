"""Text as data sets give it: an entry of a JSON object, or a value of a table."""

import json
from collections.abc import Collection
from typing import Any

from selfdistill.errors import BadSample


def entry(content: str, field: str, remedy: str = "") -> Any:
    """An entry of a JSON object.

    Args:
        remedy: what to do where there is none of that name.

    Raises:
        BadSample: there is none, or no object.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadSample("undecodable json", repr(error)) from error
    reason = f"json without the entry '{field}'"
    if not isinstance(entries, dict):
        raise BadSample(reason, f"it is a {type(entries).__name__}")
    if field not in entries:
        raise BadSample(reason, there_are(entries, remedy))
    return entries[field]


def there_are(names: Collection[str], remedy: str = "") -> str:
    """What could have been meant in place of an entry or a column that is not there."""
    if not names:
        return "it has none"
    return f"it has {', '.join(names)}"[:200] + (remedy and f"; {remedy}")


def as_text(value: Any) -> str:
    """The value, if it is text that UTF-8 can hold; raises ``BadSample``."""
    if not isinstance(value, str):
        raise BadSample("a value that is no text", type(value).__name__)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadSample("text is not UTF-8", "half of a surrogate pair") from error
    return value
