"""The URI of a store without its password, for everything that is written down or shown."""

from __future__ import annotations

import re

# No pattern may need quadratic time: a text can be the message of a server.
WORD = re.compile(r"[^\s'\"]+")
USER = re.compile(r":?//?[^:/@]*:")  # of a mistyped URI too: http//user:
ALONE = re.compile(r"://([^:/@]*)@")
PARAMETER = re.compile(r"([?&][^=&?\s'\"]*=)[^&\s'\")]*")
SECRETS = ("pass", "pwd", "token", "secret", "key")  # in the name of a parameter
LOGIN = re.compile(r"(://)[^/\s'\"]*@")
TOKEN = re.compile(r"\b(hf_|gh[pousr]_|dapi)[A-Za-z0-9]{20,}|\b(github_pat_|glpat-|sk-)[\w-]{20,}")  # by issuer
HEADER = re.compile(r"\b(Bearer +|Authorization: *Basic +)[\w.~+/=-]{8,}")  # of HTTP
WORDS = re.compile(r"((?:\b|%3B)(?:password|passwd|pwd)(?:=|%3D))(?!\*)[^\s&;%'\")]+", re.IGNORECASE)  # libpq and ODBC
VARIABLE = re.compile(r"((?:PASSWORD|TOKEN|SECRET|API_KEY|ACCESS_KEY)=['\"]?)(?![*'\"])[^\s&;%'\")]+")  # of a shell
# of Python, JSON, YAML and the lines of a notebook, whose quotes have backslashes
NAME = r"(?:(?i:passw(?:or)?d|secret|api_?key|access_?key|secret_key|(?:auth|access)_token)|[A-Z]_TOKEN)"
ASSIGNED = re.compile(NAME.join([r"(", r"(?:\\?['\"])?\]? {0,3}[=:] {0,3}\\?['\"])(?!\*)[^\s'\"\\]+(?=\\?['\"])"]))
HEX_KEY = re.compile(r"(\bkey=\\?['\"])[0-9a-f]{40}\b")  # of Weights & Biases
LONGEST_USER = 19  # characters: a longer name without a password is a token (https://TOKEN@host)


def without_password(text: str) -> str:
    """Replace passwords and tokens in a text by `***`: of URIs, headers, variables, and those that look like tokens."""
    text = PARAMETER.sub(_parameter, WORD.sub(_user, text))
    for pattern in (TOKEN, HEADER, WORDS, VARIABLE, ASSIGNED, HEX_KEY):
        text = pattern.sub(lambda found: f"{found[found.lastindex or 1]}***", text)
    return text


def passwords_of(uri: str) -> list[str]:
    """Return what `without_password` replaces as passwords of users: other texts may repeat them alone."""
    words = [(word[0], user.end()) for word in WORD.finditer(uri) if (user := USER.search(word[0]))]
    return [word[start : word.rfind("@")] for word, start in words if word.rfind("@") > start]


def page(uri: str) -> str:
    """Return the address of a server for a browser, which asks for name and password itself."""
    return without_password(LOGIN.sub(r"\1", uri))


def _user(word: re.Match[str]) -> str:
    """Replace all from `//user:` up to the last @: a password may hold one."""
    user, at = USER.search(word[0]), word[0].rfind("@")
    if not user and (alone := ALONE.search(word[0])) and len(alone[1]) > LONGEST_USER:
        return word[0].replace(alone[1], "***")
    return f"{word[0][: user.end()]}***{word[0][at:]}" if user and at >= user.end() else word[0]


def _parameter(found: re.Match[str]) -> str:
    name = found[1].lower()
    return f"{found[1]}***" if any(secret in name for secret in SECRETS) else found[0]
