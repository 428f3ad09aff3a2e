"""How far work is: a bar on a terminal and in a notebook, and plain lines in a log."""

import math
import sys
import time

from tqdm.auto import tqdm


def in_log() -> bool:
    """Whether what is written on stderr goes into a file or a pipe, where a bar would be thousands of lines."""
    return not (sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel"))


def bar(total: int, shown: bool = True, **options) -> "tqdm | Lines":
    """A tqdm bar with its options, or `Lines` in a log, which know its `update`, `refresh`, `set_description`
    and `set_postfix_str`."""
    return Lines(total, shown) if in_log() else tqdm(total=total, disable=not shown, **options)


def brief(total: int, what: str) -> "tqdm | Lines":
    """A bar that goes when its work, of seconds, is done; in a log one line that says `what`."""
    if in_log() and total:
        print(f"{what} ...", file=sys.stderr, flush=True)
    return bar(total, shown=total > 0 and not in_log(), desc=what, leave=False, bar_format="{desc} {bar} {n}/{total}")


QUIET = 300.0
"""Seconds after which a log gets a line although less than 5 % were done (our choice)."""


class Lines:
    """A line at the start, for every 5 % that are done, and after `QUIET` seconds without one."""

    def __init__(self, total: int, shown: bool = True):
        self.total, self.shown, self.done, self.postfix, self.description = total, shown and total > 0, 0, "", ""
        self.began, self.said = time.monotonic(), -math.inf

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_) -> None:
        pass

    def set_description(self, text: str, refresh: bool = True) -> None:
        self.description = text
        self.refresh()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.postfix = text

    def update(self, n: int) -> None:
        before, self.done = self.done, self.done + n
        if self.shown and 20 * self.done // self.total > 20 * before // self.total:
            self._say()

    def refresh(self) -> None:
        if self.shown and time.monotonic() - self.said > QUIET:
            self._say(f"under way: {self.description}")

    def _say(self, more: str = "") -> None:
        self.said = time.monotonic()
        took = self.said - self.began
        left = took * (self.total - self.done) / self.done if self.done else 0
        words = [f"{100 * self.done // self.total:3} %", self.postfix, f"{duration(took)} so far"]
        words += [f"about {duration(left)} left" if left else "", more]
        print(", ".join(filter(None, words)), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words, in a unit that suits."""
    for limit, unit, words in (
        (90, 1, "{:.0f} seconds"),
        (5400, 60, "{:.1f} minutes"),
        (172_800, 3600, "{:.1f} hours"),
        (2 * 365 * 86_400, 86_400, "{:.0f} days"),
    ):
        if seconds < limit:
            return words.format(seconds / unit)
    return f"{seconds / (365 * 86_400):,.0f} years"
