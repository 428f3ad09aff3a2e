"""Settings from the command line: `--set NAME=VALUE`."""

import ast
import dataclasses
import math
import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dwlth.errors import DwlthError
from dwlth.presets import Preset
from dwlth.runs import digest


def override(preset: Preset, settings: list[str]) -> Preset:
    """A preset with settings like `transfer.epochs=5` (every recipe of that stage), `imp.adversarial.lr=0.1` or
    `fractions=1.0,0.1`. Where a setting changes what a run is, the name gets a suffix, so that results of different
    settings lie in different folders.

    Raises:
        DwlthError: for a name that does not exist or a value of the wrong kind.
    """
    changed = preset
    while settings:  # two may be right together alone: those that were refused are tried again after the others
        refused = {}
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise DwlthError(f"--set {setting}: write it as name=value")
            try:
                changed = _set(changed, path.split("."), text, setting)
            except DwlthError as error:
                refused[setting] = error
        if len(refused) == len(settings):
            raise next(iter(refused.values()))
        settings = list(refused)
    identity, stacked = changed.identity(), changed.together > 1
    if stacked != (preset.together > 1):
        identity["stacked"] = stacked
    if identity != preset.identity():
        changed = replace(changed, name=f"{preset.name}-{digest(identity, 6)}")
    return changed


def _set(target: Any, path: list[str], text: str, setting: str) -> Any:
    """A copy of a dataclass, dict or value with what lies at `path` replaced by the value in `text`."""
    names = [name for name in target if isinstance(name, str)] if isinstance(target, dict) else []
    if dataclasses.is_dataclass(target):
        names = [f.name for f in dataclasses.fields(target) if f.name != "name"]
    if not path:
        if names:
            raise DwlthError(f"--set {setting}: this is a group: go on with .{' or .'.join(names)}")
        return _value(target, text, setting)
    key, *rest = path
    if not names:
        raise DwlthError(f"--set {setting}: no setting {key!r} within {target!r}: give that as a whole")
    if isinstance(target, dict):
        if key in target:
            return target | {key: _set(target[key], rest, text, setting)}
        if "@" in key:
            raise DwlthError(f"--set {setting}: no recipe {key!r}: choose from {', '.join(names)}")
        return {name: _set(item, path, text, setting) for name, item in target.items()}
    if key not in names:
        raise DwlthError(f"--set {setting}: no setting {key!r}: choose from {', '.join(names)}")
    return replace(target, **{key: _set(getattr(target, key), rest, text, setting)})


def _value(old: Any, text: str, setting: str) -> Any:
    """`text` read as a value of the kind of `old`."""
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        one = old[0] if old else 0
        return tuple(_value(one, part, setting) for part in text.strip("(),").split(","))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(old) or (isinstance(value, float) and not math.isfinite(value)):
        raise DwlthError(f"--set {setting}: {text!r} is no {type(old).__name__}")
    return value


def command(verb: str, preset: str, settings: Iterable[str], **options: Any) -> str:
    """A command line of dwlth, quoted for a shell. An option with a list is written once for each item, and one that
    is None is left out."""
    words = ["python", "-m", "dwlth", verb, preset]
    for name, value in (options | {"set": list(settings)}).items():
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{name}", str(item)] if item is not None else []
    return shlex.join(words)
