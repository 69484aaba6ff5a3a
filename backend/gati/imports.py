"""What a user names as `package.module:function`, a backbone, a decoder or an agreement, as the object that it is."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from gati.errors import GatiError


def import_callable(spec: str, error: type[GatiError]) -> Callable[..., Any]:
    """Imports a callable of the working directory or of an installed package.

    Args:
        spec: `package.module:name`; the name may be dotted.
        error: Class of what is raised, by whose message the user knows which option was wrong.

    Raises:
        GatiError: Of class `error`, if there is no such callable or its module can't be imported.
    """
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise error(f"{spec!r} names nothing to import; write it as package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as cause:  # a user's module may raise anything while it is imported
        raise error(f"Module {module_name!r} could not be imported ({type(cause).__name__}: {cause}).") from cause
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise error(f"Module {module_name!r} has no function or class {name!r}; check the name after the colon.")
    return found
