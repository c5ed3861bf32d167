"""Types and shapes of every call within the package, each kind of call checked once.

`jaxtyping` has `beartype` check the arguments and the result of each call, which takes several
times as long as most of the functions themselves. A call is checked here if none with these types,
shapes and dtypes has passed before; so is a result that no such call has had yet.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import is_dataclass
from functools import cache, partial, wraps
from itertools import islice
from types import FunctionType
from typing import Any

import jaxtyping
import numpy as np
import torch

checked = jaxtyping.jaxtyped
PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
LOOKED_AT = 16
"""Items of a container, of which `beartype` itself looks at one by chance."""
PASSED: defaultdict[tuple, dict[Hashable, set[Hashable]]] = defaultdict(dict)
"""The results that each kind of call of each function has had, however often `def` made it."""


def install() -> None:
    """Let what is imported of the package from now on check its types."""
    jaxtyping.install_import_hook("foredraft", "beartype.beartype")
    jaxtyping.jaxtyped = once


def once(function: object = None, *, typechecker: Callable) -> object:
    """Decorate as `jaxtyping.jaxtyped` does."""
    if function is None:
        return partial(once, typechecker=typechecker)
    if isinstance(function, classmethod | staticmethod):
        return type(function)(once(function.__func__, typechecker=typechecker))
    if isinstance(function, FunctionType):
        return checked_once(function, typechecker)
    if isinstance(function, type) and is_dataclass(function) and "__init__" in vars(function):
        function.__init__ = once(function.__init__, typechecker=typechecker)
        return function
    return checked(function, typechecker=typechecker)


def checked_once(function: FunctionType, typechecker: Callable) -> Callable:
    """Check a call, or a result, if none of its kind has passed before."""
    passed = PASSED[function.__module__, function.__qualname__, function.__code__]

    @cache
    def whole() -> Callable:
        """Make the function with checks when it is needed first: that takes milliseconds."""
        return checked(function, typechecker=typechecker)

    @wraps(function)
    def call(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        asked = tuple(map(kind, args))
        if kwargs:
            asked += tuple((name, kind(value)) for name, value in kwargs.items())
        results = passed.get(asked)
        if results is None:
            result = whole()(*args, **kwargs)
            passed.setdefault(asked, set()).add(kind(result))
            return result
        result = function(*args, **kwargs)
        if (answered := kind(result)) not in results:
            checked(giving(result, function), typechecker=typechecker)(*args, **kwargs)
            results.add(answered)
        return result

    return call


def giving(result: object, function: FunctionType) -> FunctionType:
    """Make a function that is annotated as another one and whose result is known."""

    def give(*_, **__):
        return result

    code, closure = give.__code__, give.__closure__
    return wraps(function)(FunctionType(code, function.__globals__, closure=closure))


def kind(value: object) -> Hashable:
    """Give what annotations distinguish: types at any depth, shapes and dtypes."""
    cls = type(value)
    if cls in PLAIN:
        return cls
    how = HOW.get(cls)
    if how is None:
        found = (how for base, how in CONTAINERS.items() if issubclass(cls, base))
        how = HOW[cls] = next(found, lambda cls, value: value if cls is type else cls)
    return how(cls, value)


def kinds(values: Iterable, length: int) -> Hashable:
    """Give the kinds that occur among values, or among some of many."""
    return frozenset(map(kind, islice(values, 0, None, 1 + length // LOOKED_AT)))


CONTAINERS: dict[type, Callable[[type, Any], Hashable]] = {
    torch.Tensor: lambda cls, value: (cls, value.shape, value.dtype),
    np.ndarray: lambda cls, value: (cls, value.shape, value.dtype),
    tuple: lambda cls, value: (cls, *map(kind, value[:LOOKED_AT])),
    list: lambda cls, value: (cls, kinds(value, len(value))),
    set: lambda cls, value: (cls, kinds(value, len(value))),
    frozenset: lambda cls, value: (cls, kinds(value, len(value))),
    dict: lambda cls, value: (cls, kinds(value, len(value)), kinds(value.values(), len(value))),
}
HOW: dict[type, Callable[[type, Any], Hashable]] = {}
