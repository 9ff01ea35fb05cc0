"""What tests ask about processes, which may end while they are asked."""

import psutil


def runs(process):
    """Whether a process has not ended; a zombie has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid, word):
    """The descendants of a process that have not ended and have the word in their command line."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if word in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:  # a zombie too
            continue
    return found
