"""The URI of a store without its password, for everything that is written down or shown."""

from __future__ import annotations

import re

# No pattern may need quadratic time: a text can be the message of a server.
WORD = re.compile(r"[^\s'\"]+")
USER = re.compile(r":?//?[^:/@]*:")  # of a mistyped URI too: http//user:
ALONE = re.compile(r"://([^:/@]*)@")
QUOTED = re.compile(r"(://[^\s:/@'\"]*:)(?!\*)[^\s/@?#,{}\[\]]*(?=@)")  # a password may hold a quote
PARAMETER = re.compile(r"([?&#][^=&?#\s'\"]*=)[^&#\s'\")]*")
# in the name of a parameter
SECRETS = ("pass", "pwd", "token", "secret", "key", "signature", "sig=", "auth", "access", "cred")
LOGIN = re.compile(r"(://)[^/\s'\"]*@")
TOKEN = re.compile(
    r"\b(hf_|api_org_|gh[pousr]_|dapi|npm_|gsk_|r8_|wandb_v1_|[sr]k_(?:live|test)_)[A-Za-z0-9]{20,}"
    r"|\b(github_pat_|glpat-|sk-|xox[abeprs]-|xapp-|AIza|pypi-|nvapi-|ya29\.|SG\.)[\w.-]{20,}"
    r"|\b(AKIA|ASIA)[A-Z0-9]{16}\b|\b(eyJ)[\w-]{8,}\.[\w-]{8,}[\w.-]*"
    r"|(hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/)[\w/-]+"
)  # by issuer
PEM = re.compile(r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)(?:[\s\\A-Za-z0-9+/=]|(?<=\n)-(?!-))+")
HEADER = re.compile(
    r"((?i:\bBearer +|Authorization\\?['\"]?: *\\?['\"]?(?:Basic|Token|Digest) +|\bX-[\w-]{0,30}(?:Key|Token): *))"
    r"(?!\*)[\w.~+/=-]{8,}"
)  # of HTTP
WORDS = re.compile(
    r"((?:\b|_|%3B)(?:password|passwd|pwd|accountkey|sharedaccesskey)(?:=|%3D))(?![*'\"])[^\s&;%'\")]+", re.IGNORECASE
)  # libpq and ODBC
VARIABLE = re.compile(r"((?:PASSWORD|TOKEN|SECRET|API_KEY|ACCESS_KEY)=['\"]?)(?![*'\"])[^\s&;%'\")]+")  # of a shell
OPTION = re.compile(
    r"(--[\w-]{0,30}(?:passw(?:or)?d|token|secret|api-key)(?:[ =]|['\"], {0,3}['\"]))(?![-*<'\"])[^\s'\"]+"
    r"|((?: -u |--user[ =])[^\s:'\"]{1,80}:)(?!\*)[^\s'\"]+"
)  # of a command
LOGINS = re.compile(r"(\b(?:auth ?= ?|HTTPBasicAuth)\( {0,3}(['\"])[^'\"\n]{1,80}\2, {0,3}['\"])(?!\*)[^'\"\n]+")
# of Python, JSON, YAML and the lines of a notebook, whose quotes have backslashes
NAME = (
    r"(?:(?i:passw(?:or)?d|passphrase|secret|credentials?|(?:api|access|secret|private|account)[_ -]?key"
    r"|(?:auth|access|api|hf|refresh|session|bearer|github|gitlab|slack|wandb|bot)[_-]?token"
    r"|(?<![a-z])(?:pass|pwd))|[A-Z]_TOKEN)"
)
TYPE = r"(?:: {0,3}(?:str|bytes|Final|ClassVar|Optional)(?:\[[\w., |]{0,40}\])?(?: \| None)?(?= {0,3}=))?"
SET = rf"(?:\\?['\"])?\]?{TYPE} {{0,3}}(?:=>|:=|[=:]) {{0,3}}[rbuf]{{0,2}}"
QUOTE = r"\"\"\"|'''|\\?['\"]"
ASSIGNED = re.compile(rf"({NAME}{SET}({QUOTE}))(?!\2|\*\*\*)[^\n]{{1,400}}?(?=\2)")
# "token" alone is a word of this field: its value must look like a secret one
ALSO_A_WORD = re.compile(r"(\btoken\\?['\"]? {0,3}[=:] {0,3}\\?['\"])(?=[\w.~+/=-]{0,99}\d)[\w.~+/=-]{16,}(?=\\?['\"])")
# os.environ.setdefault("X_TOKEN", "..."); a line of YAML, INI or %env without quotes: words of code have no digits
CALLED = re.compile(
    rf"(\b\w{{1,40}}\( {{0,3}}\\?['\"]\w{{0,40}}{NAME}\\?['\"], {{0,3}}({QUOTE}))(?!\2|\*\*\*)[^\n]{{1,400}}?(?=\2)"
)
LINE = re.compile(
    rf"^([+-]?[ \t\"%-]{{0,20}}(?:(?i:env|setenv|export) +)?\w{{0,40}}(?:{NAME}|\btoken)(?: {{0,3}}[:=]| ) {{0,3}})"
    r"(?=\S*\d)[^\s'\"#(){}.,*]{6,}$",
    re.MULTILINE,
)
HEX_KEY = re.compile(r"(\bkey\\?['\"]? {0,3}[=:] {0,3}\\?['\"])[0-9a-f]{32,}\b")  # of Weights & Biases, Kaggle
PATTERNS = (
    *(TOKEN, PEM, HEADER, WORDS, VARIABLE, OPTION, LOGINS),
    *(ASSIGNED, ALSO_A_WORD, CALLED, LINE, HEX_KEY),
)
LONGEST_USER = 19  # characters: a longer name without a password is a token (https://TOKEN@host)


def without_password(text: str) -> str:
    """Replace passwords and tokens in a text by `***`: of URIs, headers, variables, and those that look like tokens."""
    text = PARAMETER.sub(_parameter, WORD.sub(_user, QUOTED.sub(r"\1***", text)))
    for pattern in PATTERNS:
        text = pattern.sub(_kept, text)
    return text


def passwords_of(uri: str) -> list[str]:
    """Return what `without_password` replaces as passwords of users: other texts may repeat them alone."""
    user, at = USER.search(uri), uri.rfind("@")
    return [uri[user.end() : at]] if user and at > user.end() else []


def page(uri: str) -> str:
    """Return the address of a server for a browser, which asks for name and password itself."""
    return without_password(LOGIN.sub(r"\1", uri))


def _user(word: re.Match[str]) -> str:
    """Replace all from `//user:` up to the last @: a password may hold one."""
    user, at = USER.search(word[0]), word[0].rfind("@")
    if not user and (alone := ALONE.search(word[0])) and len(alone[1]) > LONGEST_USER:
        return word[0].replace(alone[1], "***")
    return f"{word[0][: user.end()]}***{word[0][at:]}" if user and at >= user.end() else word[0]


def _kept(found: re.Match[str]) -> str:
    """Keep the text before a secret: the first group that was found."""
    return next(group for group in found.groups() if group) + "***"


def _parameter(found: re.Match[str]) -> str:
    name = found[1].lower()
    return f"{found[1]}***" if any(secret in name for secret in SECRETS) else found[0]
