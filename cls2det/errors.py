"""Errors of this package that the command line tells in one line."""


class LibraryChanged(RuntimeError):
    """A library is not as it was in the version that this was written for.

    Args:
        library: name and version, and which version is known to fit
        what: differs
    """

    def __init__(self, library: str, what: str):
        super().__init__(f"{library}: {what}. Install the version that is known to fit, or train without distillation")
