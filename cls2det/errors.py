"""Errors of this package that the command line prints in one line, and how long messages are kept short."""

from collections.abc import Sequence

LISTED = 3  # examples that a message gives


def some(texts: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return f"{', '.join(texts[:LISTED])}{more}"


class LibraryChanged(RuntimeError):
    """A library is not as it was in the version that this was written for.

    Args:
        library: name and version, and which version is known to fit
        difference: from that version
    """

    def __init__(self, library: str, difference: str):
        super().__init__(f"{library}: {difference}. Install the version that is known to fit, or train without distillation")


def first_lines(error: Exception, count: int = 3) -> str:
    """The first lines of an error's message, shortened, in one line. torch's messages name every weight that is missing."""
    lines = (str(error).splitlines() or [type(error).__name__])[:count]
    return " ".join(line if len(line) < 160 else line[:160] + " …" for line in map(str.strip, lines))


class JobFailed(RuntimeError):
    """A job of a sweep, or a process of a bank, ended with an error; the message is its traceback."""
