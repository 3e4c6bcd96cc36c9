"""Settle a tokenizer's chat template once, so that training, generation, scoring and a resumed run read one text.

All that decides it is written into the template itself: whoever uses the tokenizer (lm_eval too) writes the same chats,
and the key of the base's cache, which holds the template, knows of it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ModelError
from experiments.common.files import read_text
from experiments.common.section import nearest

Option = bool | int | float | str
TODAY = datetime.date(2024, 7, 26)  # what Llama's templates write if they are given no date
OWN_DAYS = "template_of_own_days"  # attribute of a tokenizer: its template as it is settled, but for TODAY
TEMPLATES = {  # for tokenizers without a template; a base model learns their marks
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] | capitalize }}: "
        "{{ message['content'] }}{{ eos_token or '' if message['role'] == 'assistant' else '' }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant: {% endif %}"
    ),
}
# Start of a template: the text of a system turn begins the user's first turn, or is that turn if another role is next.
MERGE_SYSTEM = (
    '{%- if messages[0]["role"] == "system" %}{%- if messages | length > 1 and messages[1]["role"] == "user" %}'
    '{%- set messages = [{"role": "user", "content": (messages[0]["content"] + "\n\n" if messages[0]["content"] | trim'
    ' else "") + messages[1]["content"]}]'
    " + messages[2:] %}{%- else %}"
    '{%- set messages = [{"role": "user", "content": messages[0]["content"]}] + messages[1:] %}{%- endif %}{%- endif %}'
)
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # a tag of transformers
DATE = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")


def set_template(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    options: Mapping[str, Option] | None = None,
    template: str | None = None,
    merge_system: bool = False,
) -> None:
    """Replace the chat template by one text with the system turn, the options and the date in it.

    Of several named templates it is the default one. A date of today becomes TODAY: chats are the same on all days.
    system: of every chat without a system turn; None leaves that to the template. options: values of the template's
    variables. template: another template, as a file, a name of the tokenizer's own, or one of TEMPLATES. merge_system:
    write a system turn before the first question. Raises ModelError if there is no template, or if it refuses the
    system turn or lacks an option.
    """
    chosen = _default(tokenizer) if template is None else _named(tokenizer, template)
    given = {
        "template": template,
        "system": system,
        "template_options": dict(options or {}) or None,
        "merge_system": merge_system or None,
    }
    set_fields = [f"data.{name}={value!r}" for name, value in given.items() if value is not None]
    if chosen is None:
        if set_fields:
            raise ModelError(
                f"{set_fields[0]} needs a chat template, and this tokenizer has none: give one with data.template"
            )
        return
    merge = MERGE_SYSTEM if merge_system else ""
    start = _system(system) + merge + _options(options or {}, chosen)
    tokenizer.chat_template = start + _dated(chosen)
    setattr(tokenizer, OWN_DAYS, start + chosen)
    if not set_fields:
        return
    try:
        text = str(tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False))
    except TemplateError as error:
        raise ModelError(f"{', '.join(set_fields)}: this model's chat template refuses it ({error})") from None
    if "".join((system or "").split()) not in "".join(text.split()):
        raise ModelError(
            f"data.system={system!r}: this model's chat template leaves it out: data.merge_system: true puts it before "
            "the first question"
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer for others, with the date of the day in its template again: TODAY would stay for ever."""
    settled = tokenizer.chat_template
    try:
        tokenizer.chat_template = getattr(tokenizer, OWN_DAYS, settled)
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = settled


def _named(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return the template of a name or a file. Raises ModelError if there is none."""
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    known, file = {**TEMPLATES, **own}, Path(name).expanduser()
    if name in known:
        return str(known[name])
    if not file.is_file():
        raise ModelError(
            f"data.template={name!r} is no file (looked in {Path.cwd()}) and no name of a template: "
            f"{nearest(name, known)}"
        )
    try:
        return read_text(file)
    except UnicodeDecodeError as error:
        raise ModelError(f"data.template={name!r} is not UTF-8 text: {error}") from error


def _default(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the template; the default one of several. None without any. Raises ModelError if none is the default."""
    template = tokenizer.chat_template
    if not template or isinstance(template, str):
        return template or None
    if "default" not in template:
        raise ModelError(
            f"the tokenizer has several chat templates ({', '.join(sorted(template))}) and none is named default: "
            "choose one with data.template, or save it with a single one (tokenizer.chat_template = ...)"
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
    known = variables(template) if options else set()
    for name in options:
        if name not in known:
            raise ModelError(f"data.template_options: this model's chat template reads no {name!r}: leave it out")
    return "".join(f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in options.items())


def variables(template: str) -> set[str]:
    """Return the variables that a template reads before it sets them itself: others would be given for nothing."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", template))
    except TemplateSyntaxError:  # of an extension that is not known here
        return set(re.findall(r"\w+", template))
    return meta.find_undeclared_variables(tree)


def _dated(template: str) -> str:
    """Return the template with TODAY for the date of the day. Raises ModelError for a format that it computes."""
    dated = DATE.sub(lambda found: json.dumps(TODAY.strftime(found[1] or found[2] or "")), template)
    if re.search(r"strftime_now\s*\(", dated):
        raise ModelError(
            "the chat template writes a date in a format that it computes, so each day would give other chats: write "
            "the date into it"
        )
    return dated
