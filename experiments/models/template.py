"""Settle a tokenizer's chat template once, so that training, generation, scoring and a resumed run read one text.

All that decides it is written into the template itself: whoever uses the tokenizer (lm_eval too) writes the same chats,
and the key of the base's cache, which holds the template, knows of it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ModelError

Option = bool | int | float | str
TODAY = datetime.date(2024, 7, 26)  # what Llama's templates write if they are given no date
DATE = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")


def set_template(
    tokenizer: PreTrainedTokenizerBase, system: str | None = None, options: Mapping[str, Option] | None = None
) -> None:
    """Replace the chat template by one text with the system turn, the options and the date in it.

    Of several named templates it is the default one. A date of today becomes TODAY: chats are the same on all days.
    system: of every chat without a system turn; None leaves that to the template. options: values of the template's
    variables. Raises ModelError if there is no template, or if it refuses the system turn or lacks an option.
    """
    template = _default(tokenizer)
    if template is None:
        for name, value in (("system", system), ("template_options", options or None)):
            if value is not None:
                raise ModelError(f"data.{name}={value!r} needs a chat template, and this tokenizer has none")
        return
    tokenizer.chat_template = _system(system) + _options(options or {}, template) + _dated(template)
    if system is None and not options:
        return
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateError as error:
        given = f"data.system={system!r}" if system is not None else f"data.template_options={dict(options or {})}"
        raise ModelError(f"{given}: this model's chat template refuses it ({error})") from None


def _default(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the template; the default one of several. None without any. Raises ModelError if none is the default."""
    template = tokenizer.chat_template
    if not template or isinstance(template, str):
        return template or None
    if "default" not in template:
        raise ModelError(
            f"the tokenizer has several chat templates ({', '.join(sorted(template))}) and none is named default: save "
            "it with a single one (tokenizer.chat_template = ...)"
        )
    return str(template["default"])


def _system(system: str | None) -> str:
    """Return the start of a template that gives a system turn to each chat without one."""
    if system is None:
        return ""
    turn = f'[{{"role": "system", "content": {json.dumps(system, ensure_ascii=False)}}}]'
    return f'{{%- if messages[0]["role"] != "system" %}}{{%- set messages = {turn} + messages %}}{{%- endif %}}'


def _options(options: Mapping[str, Option], template: str) -> str:
    """Return the start of a template that sets its variables. Raises ModelError for one that it does not read."""
    for name in options:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ModelError(f"data.template_options: this model's chat template reads no {name!r}: leave it out")
    return "".join(f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in options.items())


def _dated(template: str) -> str:
    """Return the template with TODAY for the date of the day. Raises ModelError for a format that it computes."""
    dated = DATE.sub(lambda found: json.dumps(TODAY.strftime(found[1] or found[2] or "")), template)
    if re.search(r"strftime_now\s*\(", dated):
        raise ModelError(
            "the chat template writes a date in a format that it computes, so each day would give other chats: write "
            "the date into it"
        )
    return dated
