"""Prompts from a Python file of the user: `get_prompter(args)` gives them one after the other.

    def get_prompter(args):
        for colour in args.prompter_module_args.split(","):
            yield f"a {colour} car --w 512 --h 512"

`args` has the options of the run as attributes. A function with three parameters, as other trainers call it with their
pipeline and networks, gets None for these two.
"""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from library.errors import OptionError
from library.generation.prompt_lines import shortened

_OPTION = "--from_module"


def prompts_of_module(path: Path, args: Any) -> Iterator[str]:
    """The lines that the module's prompter gives, each as it is asked for.

    Args:
        path: A Python file with `get_prompter`. It is run.
        args: What the function is called with: the options of the run as attributes.

    Raises:
        OptionError: There is no such file or function, it fails, or it gives something that is no text.
    """
    prompter = _guarded(path, lambda: _function_of(path)(args))
    if callable(prompter):  # modules for sd-scripts may give a function that gives the texts
        prompter = _guarded(path, prompter)
    lines = iter(_guarded(path, lambda: iter(prompter)))
    return _checked(path, lines)


def _checked(path: Path, lines: Iterator[Any]) -> Iterator[str]:
    while True:
        line = _guarded(path, lambda: next(lines, None))
        if line is None:
            return
        if not isinstance(line, str):
            raise OptionError(f"{_OPTION}: the prompter of {path} gives {shortened(repr(line))}. It must give texts.")
        yield line


def _function_of(path: Path) -> Callable[[Any], Any]:
    """`get_prompter` of the file, as a function of the options alone."""
    if not path.is_file():
        raise OptionError(f"{_OPTION}: {path} does not exist or is no file. Give a .py file with get_prompter(args).")
    spec = importlib.util.spec_from_file_location("prompter_module", path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{_OPTION}: {path} is no Python file. Give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "get_prompter", None)
    if not callable(function):
        raise OptionError(f"{_OPTION}: {path} has no function get_prompter(args). Add it.")
    parameters = inspect.signature(function).parameters.values()
    needed = sum(one.default is one.empty and one.kind in (0, 1) for one in parameters)
    if needed not in (1, 3):
        raise OptionError(f"{_OPTION}: get_prompter of {path} has {needed} parameters. Give it one, the options.")
    return (lambda args: function(args, None, None)) if needed == 3 else function


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """What the user's code gives; what it raises is told with its line."""
    try:
        return action()
    except OptionError:
        raise
    except Exception as error:
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {own[-1]}" if own else ""
        reason = shortened(f"{type(error).__name__}: {error}", 200)
        raise OptionError(f"{_OPTION}: {path} fails{where} ({reason}). Mend the module.") from error
