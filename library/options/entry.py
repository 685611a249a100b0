"""What every entry script does around its run: parse, set up the log, turn errors into one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from library.errors import EnvironmentFault, OutputError, UserError
from library.log import get_logger, set_up_logging
from library.options.groups import CommonOptions
from library.options.groups.logging import ConsoleOptions
from library.options.spec import Finished, parse_options

INTERRUPTED = 130
GRACE_SECONDS = 5.0

logger = get_logger(__name__)

AnyCommonOptions = TypeVar("AnyCommonOptions", bound=CommonOptions)


def run_script(
    options_class: type[AnyCommonOptions],
    run: Callable[[AnyCommonOptions], int | None],
    *,
    prog: str,
    description: str,
    example: str,
    ignored: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line and run; unexpected exceptions pass through with their traceback.

    Args:
        options_class: The script's options.
        run: Does the work; None stands for 0.
        prog: As for `parse_options`, and so the next three.
        argv: Arguments after the script's name; None takes those of the process.

    Returns:
        The exit code: 0, what `run` returned, the code of a `UserError`, or 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    is_debug = "--debug" in arguments
    is_main = _is_main_process()
    try:
        options = parse_options(
            options_class, arguments, prog=prog, description=description, example=example, ignored=ignored
        )
        is_debug = options.logging.debug
        _set_up_log(options.logging, is_main)
    except Finished as finished:
        if is_main:
            _write(sys.stdout, str(finished))
        return 0
    except UserError as error:
        return _report(error, is_debug)
    for line in options.warnings:
        logger.warning("%s", line)
    try:
        code = run(options) or 0
        _leave_other_processes()
        return code
    except UserError as error:
        return _report(error, is_debug)
    except ModuleNotFoundError as error:
        return _report(_missing_package(error), is_debug)
    except (RuntimeError, MemoryError) as error:
        return _report(_no_memory(error), is_debug)
    except KeyboardInterrupt:
        _write(sys.stderr, "interrupted")
        return INTERRUPTED


def _missing_package(error: ModuleNotFoundError) -> EnvironmentFault:
    """A package that the set-up would have installed. A missing module of the project itself is our own mistake."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "library", "networks"):
        raise error
    return EnvironmentFault(
        f"the Python package {package} is not installed. Run `python3 quickstart.py setup` and use its environment, "
        "or `pip install -r requirements.txt`."
    )


def _no_memory(error: RuntimeError | MemoryError) -> EnvironmentFault:
    """What has found no memory outside of training itself, which saves first. Other errors are our own mistakes."""
    from library.memory_use import is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    reason = str(error).partition("\n")[0] or type(error).__name__
    return EnvironmentFault(
        f"out of memory ({reason}). Close other programs, or use --fit with the memory of the GPU, which chooses "
        "settings, or a smaller model, resolution or batch."
    )


def _set_up_log(options: ConsoleOptions, is_main: bool) -> None:
    file = options.console_log_file
    try:
        set_up_logging(
            options.console_log_level or "INFO",
            str(file) if file is not None and is_main else None,
            options.console_log_simple,
            is_main,
        )
    except OSError as fault:
        raise OutputError(f"--console_log_file: {file} cannot be written ({fault.strerror}).") from None


def _report(error: UserError, is_debug: bool) -> int:
    """Write the error. Most are found by all processes alike: the first one tells, and the launcher ends the others."""
    if not _is_first_of_machine():
        time.sleep(GRACE_SECONDS)
    if is_debug:
        import traceback

        _write(sys.stderr, "".join(traceback.format_exception(error)).rstrip())
    _write(sys.stderr, f"error: {_sentences(str(error))}")
    _leave_other_processes()
    return error.exit_code


def _leave_other_processes() -> None:
    """End the threads that talk to the other processes, if there are any.

    A process that ends while they run may be aborted, be it the first to end or the last, and its exit code is lost.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _sentences(message: str) -> str:
    """One line; only the items of a list, which are indented, keep lines of their own."""
    text, *items = re.split(r"\n\s+", message)
    return "\n  ".join(" ".join(part.split()) for part in (text, *items))


def _write(stream: object, text: str) -> None:
    """Write a line; signs that the console does not have are written as escapes."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    stream.write(text + "\n")  # type: ignore[attr-defined]
    stream.flush()  # type: ignore[attr-defined]


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0") or 0) == 0


def _is_first_of_machine() -> bool:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) or 0) == 0
