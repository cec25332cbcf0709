"""One handler for all commands: what a user can cause ends in one sentence and exit code 2, without a traceback.

`--traceback` anywhere on a command line, or the variable LBVQ_TRACEBACK=1, shows where the error comes from. What is a
fault of the program itself keeps its traceback.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import ParamSpec

TRACEBACK_OPTION = "--traceback"
TRACEBACK_VARIABLE = "LBVQ_TRACEBACK"
USER_ERROR = 2  # exit codes
INTERRUPTED = 130
HINT = f"{TRACEBACK_OPTION}, or {TRACEBACK_VARIABLE}=1, shows where an error comes from."

# What files, settings, data and machines can cause; other exceptions are ours.
CAUSED_BY_USERS: tuple[type[BaseException], ...] = (
    ValueError,
    KeyError,
    OSError,
    ImportError,
    FloatingPointError,
    MemoryError,
)
_ALSO_BY_NAME = ("OutOfMemoryError", "UnexpectedResultsError")  # of torch and of ours, which are not imported here
_LAST_LINE = re.compile(r"(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?", re.DOTALL)

P = ParamSpec("P")


def user_command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Decorator of the `main` of a command: returns its exit code and prints what a user has to know."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        shows_traceback = _take_option()
        try:
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # of `lbvq list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return INTERRUPTED
        except Exception as error:
            sentence = user_sentence(error)
            if sentence is None or shows_traceback:
                raise
            print(f"error: {sentence}", file=sys.stderr)
            return USER_ERROR

    return run


def _take_option() -> bool:
    """Whether tracebacks are wanted; the option is taken off the command line before that is parsed."""
    if TRACEBACK_OPTION in sys.argv:
        sys.argv.remove(TRACEBACK_OPTION)
        os.environ[TRACEBACK_VARIABLE] = "1"  # for the processes this one starts
    return os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def user_sentence(error: BaseException) -> str | None:
    """What to tell the user, None for an error that a user cannot cause.

    Errors of loader workers and of processes of a run carry the text of a traceback; its last line counts.
    """
    text = str(error)
    if "Traceback (most recent call last)" in text:
        kind, message = _end_of_traceback(text)
        return message if _is_users(kind) else None
    if not _is_users(type(error)):
        return None
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
        return text if " " in text else f"the key {text!r} is missing"
    return text or type(error).__name__


def _is_users(kind: type[BaseException]) -> bool:
    return issubclass(kind, CAUSED_BY_USERS) or any(base.__name__ in _ALSO_BY_NAME for base in kind.__mro__)


def _end_of_traceback(text: str) -> tuple[type[BaseException], str]:
    """Class and message of the exception that the text of a traceback ends with."""
    lines = text.rstrip().splitlines()
    frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=-1)
    last = next((n for n in range(frame + 1, len(lines)) if lines[n][:1].strip()), len(lines) - 1)
    found = _LAST_LINE.match("\n".join(lines[last:]))
    if not found:
        return Exception, lines[-1]
    module, _, name = found["type"].rpartition(".")
    try:
        kind = getattr(importlib.import_module(module) if module else builtins, name)
    except (ImportError, AttributeError, ValueError):
        kind = Exception
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = Exception
    return kind, found["message"] or name
