"""Errors that are the user's to mend."""


class DwlthError(ValueError):
    """Bad input: the message names the file or argument, the value seen and what would be right.

    The command line prints it as one line and exits with code 2; a notebook's cell shows that line, and no traceback,
    and the run ends there.
    """

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"{type(self).__name__}: {self}"]


class NotYet(DwlthError):
    """The runs that are needed are not done yet."""


def check(name: str, value: object, right: bool, what: str) -> None:
    """Raise `DwlthError` unless the value of `name` is right; `what` says which would be."""
    if not right:
        raise DwlthError(f"{name} is {value!r}: give {what}")
