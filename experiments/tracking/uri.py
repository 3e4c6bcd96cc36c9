"""The URI of a store without its password, for everything that is written down or shown."""

from __future__ import annotations

import re

USER = re.compile(r"(://[^:/@\s'\"]*):[^\s'\"]*@")  # up to the last @: a password may hold one
SECRET = re.compile(r"([?&][^=&\s'\"]*(?:pass|pwd|token|secret|key)[^=&\s'\"]*=)[^&\s'\")]*", re.IGNORECASE)
LOGIN = re.compile(r"(://)[^/\s'\"]*@")


def without_password(text: str) -> str:
    """Replace the passwords of all URIs in a text by `***`."""
    return SECRET.sub(r"\1***", USER.sub(r"\1:***@", text))


def page(uri: str) -> str:
    """Return the address of a server for a browser, which asks for name and password itself."""
    return without_password(LOGIN.sub(r"\1", uri))
