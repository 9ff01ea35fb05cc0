"""The two kinds of errors: a request that cannot be met, and a defect of skipform itself."""


class SkipformError(ValueError):
    """A request that cannot be met: the message names the cause, where it was and what is accepted.

    Raised before any work starts. The command line prints its text as one line and exits with status 2.
    """


class InternalError(RuntimeError):
    """A defect of skipform: a result failed its own check, and is not returned.

    The text names the first operation whose value is wrong. The command line prints it as one line and exits with
    status 2.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
