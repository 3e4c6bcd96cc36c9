"""Note how the code of a run differs from its commit, without what may be secret."""

from __future__ import annotations

import functools
import re

from experiments.tracking.machine import git
from experiments.tracking.uri import NAME, without_password

MAX_DIFF = 1_000_000  # characters
SECRET_FILES = (
    *("**/.env*", "**/*.env", "**/.netrc", "**/.pgpass", "**/.npmrc", "**/.pypirc", "**/*.pem", "**/*.key"),
    *("**/*.p12", "**/*.pfx", "**/id_rsa*", "**/id_ed25519*", "**/*credential*", "**/*secret*", "**/*password*"),
)
FILE = re.compile(r"^(?=diff --git )", re.MULTILINE)
SETTINGS = re.compile(r"^diff --git .*\.(?:ya?ml|json|toml|ini|cfg|conf|properties|tfvars)\"?$", re.MULTILINE)
OF_TOKENIZERS = "".join(f"(?<!{name}_)" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
VALUE = re.compile(
    rf"((?:{NAME}|{OF_TOKENIZERS}(?i:token))['\"]?[ \t]*[:=][ \t]*)(?!['\"]?\*\*\*)[^\s#,}}{{\[|>][^\n,}}]*"
)


@functools.cache
def code_diff() -> str:
    """Return the changes since the commit, with the names of untracked files; empty without a repository.

    Of files that are called as those with secrets the names alone are noted.
    """
    hidden = [f":(icase,glob){name}" for name in SECRET_FILES]
    shown = [name.replace("(", "(exclude,", 1) for name in hidden]
    changed = git("diff", "--no-color", "--no-ext-diff", "HEAD", "--", ".", *shown)
    unknown, kept = git("ls-files", "--others", "--exclude-standard"), git("diff", "--name-only", "HEAD", "--", *hidden)
    listed = [f"# not in the repository: {name}\n" for name in unknown.splitlines()]
    listed += [f"# changed, and not shown, since it may hold secrets: {name}\n" for name in kept.splitlines()]
    text = "".join(listed) + changed
    if len(text) > MAX_DIFF:  # half of a secret would not be seen as one
        text = text[:MAX_DIFF].rpartition("\n")[0]
    return "".join(map(_without_secrets, FILE.split(text)))


def _without_secrets(part: str) -> str:
    """Return the diff of a file without secrets: of settings, whatever the value looks like."""
    text = without_password(part)
    return VALUE.sub(r"\1***", text) if SETTINGS.match(text) else text
