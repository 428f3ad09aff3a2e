"""What identifies a run: the values of its configuration as plain JSON, and their hash."""

import dataclasses
import hashlib
import json
from typing import Any


def later(before: Any, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that was added after results existed. `before` is the value that means "as before": at this
    value the field is left out of `plain`, so the ids of earlier results stay what they are. Another `default`
    changes ids, as it should."""
    return dataclasses.field(default=before if default is dataclasses.MISSING else default, metadata={"before": before})


def plain(value: Any) -> Any:
    """Dataclasses and tuples as plain dicts and lists, as JSON has them, without `later` fields at their `before`."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: field for field in dataclasses.fields(value)}
        held = {name: getattr(value, name) for name in fields}
        return {
            name: plain(item)
            for name, item in held.items()
            if "before" not in fields[name].metadata or item != fields[name].metadata["before"]
        }
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def digest(config: Any, length: int = 12) -> str:
    """So many hex digits that name a plain value: the start of the SHA-256 of its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:length]
