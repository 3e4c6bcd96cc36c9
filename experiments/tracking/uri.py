"""The URI of a store without its password, for everything that is written down or shown."""

from __future__ import annotations

import re

# No pattern may need quadratic time: a text can be the message of a server.
WORD = re.compile(r"[^\s'\"]+")
USER = re.compile(r"://[^:/@]*:")
PARAMETER = re.compile(r"([?&][^=&?\s'\"]*=)[^&\s'\")]*")
SECRETS = ("pass", "pwd", "token", "secret", "key")  # in the name of a parameter
LOGIN = re.compile(r"(://)[^/\s'\"]*@")


def without_password(text: str) -> str:
    """Replace the passwords of all URIs in a text by `***`."""
    return PARAMETER.sub(_parameter, WORD.sub(_user, text))


def page(uri: str) -> str:
    """Return the address of a server for a browser, which asks for name and password itself."""
    return without_password(LOGIN.sub(r"\1", uri))


def _user(word: re.Match[str]) -> str:
    """Replace all from `://user:` up to the last @: a password may hold one."""
    user, at = USER.search(word[0]), word[0].rfind("@")
    return f"{word[0][: user.end()]}***{word[0][at:]}" if user and at >= user.end() else word[0]


def _parameter(found: re.Match[str]) -> str:
    name = found[1].lower()
    return f"{found[1]}***" if any(secret in name for secret in SECRETS) else found[0]
