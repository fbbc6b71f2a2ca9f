"""The function that a user checks: found in its module, with its arguments and its claim.

By convention ``loss_args`` stands beside ``loss`` in its module, and ``loss_grad`` or
``loss_grads``, the claimed gradient; options of the command name others.  Whatever the user's code
raises is shown with the user's own lines of the traceback.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxbp
from jaxbp.checking.jaxprs import UNTRACEABLE
from jaxbp.cli.options import UsageError
from jaxbp.text import one_line

_FOLDERS = tuple(f"{folder}{os.sep}" for each in (jaxbp, jax, np) for folder in each.__path__)
_STDLIB = f"{sysconfig.get_paths()['stdlib']}{os.sep}"
#: exceptions of ours, or of JAX, whose message says enough
_EXPLAINED = (TypeError, ValueError, MemoryError, jax.errors.JaxRuntimeError)


@dataclass(frozen=True)
class UsersFunction:
    """A function to check, at its arguments, and the gradient claimed for it."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    grads: Any  # a tree, a function, or None: autodiff's
    options: dict[str, Any]  # of gradcheck
    source: str  # where arguments and claim are from, in a sentence


def find(
    request: str,
    *,
    args: str | None = None,
    grads: str | None = None,
    argnums: tuple[int, ...] = (),
    returns: str | None = None,
) -> UsersFunction:
    """Import a function, and find its arguments and its claim.

    Raises UsageError where there is no such thing, where two claims would do, and for whatever the
    module or a function of arguments raises.

    request: MODULE:FUNCTION; the module by its name or its file, the function by its name, dotted
        for an attribute of a class or an object.  A method is one of an instance made without
        arguments.
    args: the name of the arguments, a tuple or a function that returns one; FUNCTION_args unless
        given.
    grads: the name of the claim, a tree or a function; FUNCTION_grad or FUNCTION_grads unless
        given, and autodiff's without either.
    argnums: the arguments to differentiate by; those of FUNCTION_options, or 0, unless given.
    returns: "value,grads" if the function returns the value and then its gradient, one for each
        argument of argnums; "value" unless given, where that cannot be mistaken.
    """
    module_name, _, path = request.rpartition(":")
    if not module_name or not path:
        raise UsageError(f"{request}: expected MODULE:FUNCTION, as in my_module:my_loss")
    module = import_named(module_name)
    with raising(module_name):
        owner, f = _resolve(module, path, module_name)
    if not callable(f):
        raise UsageError(f"{request}: got {type(f).__name__}, expected a function")
    places, name = [owner, module], path.split(".")[-1]  # a class's names come before the module's
    options = _beside(places, f"{name}_options", {})
    if not isinstance(options, dict):
        raise UsageError(f"{request}: {name}_options is {type(options).__name__}, expected a dict")
    if argnums:
        options = options | {"argnums": argnums[0] if len(argnums) == 1 else argnums}
    by = options.get("argnums", 0)
    point = _arguments(places, args or f"{name}_args", module_name, named=args is not None)
    if returns == "value,grads":
        if grads is not None:
            raise UsageError(
                f"--grads: got {grads}, but by --returns value,grads {name} itself returns them"
            )
        f, claim, claimed = _value(f, request), _gradient(f, request, by), f"{name} itself"
    elif grads is not None:
        claim, claimed = _named(places, grads, "--grads"), grads
    else:
        claim, claimed = _claim_beside(places, name)
    if claim is None and returns is None:
        with raising(request):
            _refuse_without_claim(f, request, point, by)
    source = f"{name} at {args or f'{name}_args'}; its gradient by {claimed}"
    return UsersFunction(f, point, claim, options, source)


def _arguments(places: list[Any], name: str, module: str, *, named: bool) -> tuple[Any, ...]:
    """The arguments by their name, which the user has named, or which is the conventional one."""
    point = _named(places, name, "--args") if named else _beside(places, name, None)
    if point is None:
        raise UsageError(
            f"{module} does not say at which arguments; expected {name} there, a tuple or a "
            "function that returns one, or its name by --args"
        )
    with raising(f"{module}:{name}"):
        point = point() if callable(point) else point
    return point if isinstance(point, tuple) else (point,)


# Names


def _resolve(module: Any, path: str, title: str) -> tuple[Any, Any]:
    """The object that a dotted name leads to, and the one whose attribute it is."""
    found = owner = module
    for name in path.split("."):
        owner = found
        if inspect.isclass(owner) and not _of_class(owner, name):
            try:
                owner = owner()
            except TypeError as error:
                raise UsageError(
                    f"{title}: {owner.__name__} cannot be made without arguments ({error}); make "
                    "one in the module and check a method of that"
                ) from error
        if not hasattr(owner, name):
            kind = "function" if owner is module else "attribute"
            names = [each for each in dir(owner) if callable(getattr(owner, each, None))]
            where = title if owner is module else f"{title}: {_called(owner)}"
            raise UsageError(f"{where} has no {kind} {name}{_did_you_mean(name, names)}")
        found = getattr(owner, name)
    return owner, found


def _of_class(owner: type, name: str) -> bool:
    """Whether an attribute is the class's own: a static or a class method, or a class; or none."""
    static = inspect.getattr_static(owner, name, None)
    return static is None or isinstance(static, staticmethod | classmethod | type)


def _called(owner: Any) -> str:
    return owner.__name__ if inspect.isclass(owner) else type(owner).__name__


def _beside(places: Iterable[Any], name: str, default: Any) -> Any:
    """The attribute of the first of some places that has one of that name."""
    return next((getattr(place, name) for place in places if hasattr(place, name)), default)


def _named(places: list[Any], name: str, option: str) -> Any:
    """The attribute that an option names."""
    found = _beside(places, name, None)
    if found is None:
        names = [each for place in places for each in dir(place)]
        raise UsageError(f"{option}: there is no {name}{_did_you_mean(name, names)}")
    return found


def _claim_beside(places: list[Any], name: str) -> tuple[Any, str]:
    """The claim by convention, and its name; without one None, and autodiff."""
    found = {
        title: claim
        for title in (f"{name}_grads", f"{name}_grad")
        if (claim := _beside(places, title, None)) is not None
    }
    names, claims = list(found), list(found.values())
    if len(found) == 2 and claims[0] is not claims[1]:
        raise UsageError(f"{name} has {' and '.join(names)}: say by --grads which is to be checked")
    return (claims[0], names[0]) if found else (None, "autodiff")


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, [each for each in names if not each.startswith("_")], n=1)
    return f"; did you mean {close[0]}?" if close else ""


# A function that returns its value and its gradient


def _value(f: Callable[..., Any], request: str) -> Callable[..., Any]:
    """The function that returns the value alone."""

    @wraps(f, updated=())
    def value(*args: Any) -> Any:
        result = f(*args)
        if not _is_several(result):
            raise UsageError(
                f"{request}: --returns value,grads: got one result, expected a value and then its "
                "gradient"
            )
        return result[0]

    return value


def _gradient(f: Callable[..., Any], request: str, argnums: Any) -> Callable[..., Any]:
    """The function that returns what comes after the value, a tuple where it is several."""
    count = len(argnums) if isinstance(argnums, tuple | list) else 1

    @wraps(f, updated=())
    def gradient(*args: Any) -> Any:
        _, *grads = f(*args)
        if len(grads) == 1:
            return grads[0]
        if len(grads) != count:
            raise UsageError(
                f"{request}: returned {len(grads)} gradients, expected {count}: name the arguments "
                "that they are for, as in --argnums 0 1"
            )
        return tuple(grads)

    return gradient


def _refuse_without_claim(
    f: Callable[..., Any], request: str, args: tuple[Any, ...], argnums: Any
) -> None:
    """Raise UsageError where the function returns a number and then arrays like the arguments, and
    where JAX, which has to find the gradient, cannot trace it."""
    traceable = True
    try:
        result = jax.eval_shape(f, *args)
    except Exception as error:
        traceable = not isinstance(error, UNTRACEABLE)  # another argument may be a name, say
        result = f(*args)
    positions = argnums if isinstance(argnums, tuple | list) else (argnums,)
    by = [args[position] for position in positions if position < len(args)]
    if _is_several(result) and [(), *_shapes(by)] == _shapes(result):
        raise UsageError(
            f"{request}: returns a number, and arrays like the argument: expected "
            "--returns value,grads if they are its gradient, --returns value if they are results"
        )
    if not traceable:
        raise UsageError(
            f"{request}: JAX cannot trace it, and so has no gradient: expected the one to check, "
            "as FUNCTION_grad beside it, by --grads NAME or by --returns value,grads"
        )


def _is_several(result: Any) -> bool:
    return isinstance(result, tuple | list) and len(result) > 1


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [tuple(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(tree)]


# The module, and what it raises


def import_named(name: str) -> Any:
    """Import a module by its name, as seen from the working directory, or by its file."""
    path = Path(name)
    if path.suffix == ".py" and not path.is_file():
        names = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UsageError(f"{name}: no such file{_did_you_mean(name, names)}")
    with raising(name, ": cannot be imported ({})"):
        if path.suffix != ".py":
            sys.path.insert(0, os.getcwd())
            return importlib.import_module(name)
        sys.path.insert(0, str(path.resolve().parent))
        spec = importlib.util.spec_from_file_location(path.stem, name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # as dataclasses and pickle look it up
        spec.loader.exec_module(module)
        return module


@contextmanager
def raising(title: str, words: str = " raises {}") -> Iterator[None]:
    """Turn what the user's code raises into a UsageError: a line, and its traceback below.

    title: what raises it.
    words: the line after that, with {} for the exception; " raises {}" unless given.
    """
    try:
        yield
    except (UsageError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        below, theirs = _traceback(error)
        if not theirs and isinstance(error, _EXPLAINED):
            raise UsageError(f"{title}: {str(error) or type(error).__name__}") from error
        if not theirs and isinstance(error, ImportError):
            below = ""
        raise UsageError(f"{title}{words.format(one_line(error))}\n{below}".rstrip()) from error


def _traceback(error: BaseException) -> tuple[str, bool]:
    """The traceback of an exception in the user's frames or, without any, in all of them; whether
    there are any."""
    found = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in found.stack if _is_theirs(frame.filename)]
    is_syntax = isinstance(error, SyntaxError)  # which names file and line itself
    lines = traceback.format_list(theirs if theirs or is_syntax else found.stack)
    found.__notes__ = [note for note in found.__notes__ or () if "JAX has removed" not in note]
    title = ["Traceback (most recent call last):\n"] if lines else []
    return "".join([*title, *lines, *found.format_exception_only()]), bool(theirs) or is_syntax


def _is_theirs(file: str) -> bool:
    """Whether a file is neither ours nor JAX's, NumPy's or Python's."""
    from_python = file.startswith(("<frozen", _STDLIB)) and "-packages" not in file
    return not from_python and not file.startswith(_FOLDERS)
