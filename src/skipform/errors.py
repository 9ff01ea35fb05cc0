"""The two kinds of errors: a request that cannot be met, and a defect of skipform itself. And how to write one line."""

from typing import Any


class SkipformError(ValueError):
    """A request that cannot be met: the message names the cause, where it was and what is accepted.

    Raised before any work starts. The command line prints its text as one line and exits with status 2.
    """


class InternalError(RuntimeError):
    """A defect of skipform: a result failed its own check, and is not returned.

    The text names the first operation whose value is wrong. The command line prints it as one line and exits with
    status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException | str, longest: int = 2000) -> str:
    """An error's message on one line, or its type if it has none; of a longer one, the beginning and the end."""
    text = " ".join(str(error).split()) or type(error).__name__
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def shown(value: Any, longest: int = 80) -> str:
    """The value as an error shows it, cut to `longest` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of more than 4,300 digits"
    return text if len(text) <= longest else f"{text[: longest - 20]}... ({len(text):,} characters)"
