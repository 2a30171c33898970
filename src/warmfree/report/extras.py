"""Import what an extra installs, or say which extra is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import `module`, which the `report` extra installs.

    Args:
        module: its full name, such as `matplotlib.figure`.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says what to type.

    Example:
        >>> require("json").__name__
        'json'
        >>> require("no_such_package")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: the report needs no_such_package: pip install 'warmfree[report]'
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"the report needs {package}: pip install 'warmfree[report]'"
        raise ModuleNotFoundError(message, name=package) from error
    return importlib.import_module(module)
