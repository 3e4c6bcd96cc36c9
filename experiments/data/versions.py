"""Versions of packages that decide which replies are right: a part of the keys of cached grades.

The base's grades are kept over runs and machines. After an upgrade of math-verify they would be compared with grades of
another code.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform

# of the grades that were cached before versions were part of the key: these are left out, so that such caches stay
FIRST = {
    "reasoning_gym": "0.1.25",
    "math-verify": "0.9.0",
    "latex2sympy2_extended": "1.11.0",
    "sympy": "1.14.0",
    "python": "3.11",
}


@functools.cache
def version_of(package: str) -> str:
    """Return the version of an installed package, of Python with two numbers; empty if it is not installed."""
    if package == "python":
        return ".".join(platform.python_version_tuple()[:2])
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def other_versions(*packages: str) -> list[str]:
    """Return name and version of the installed packages that have another one than in FIRST."""
    found = {package: version_of(package) for package in packages}
    return [f"{name} {version}" for name, version in found.items() if version and version != FIRST.get(name)]
