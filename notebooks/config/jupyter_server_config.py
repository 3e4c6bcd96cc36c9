"""Jupyter's settings for `make lab`: opening and saving a notebook leaves its file as it is."""

from typing import Any


def without_language_info(model: dict[str, Any], **rest: Any) -> None:
    """Take out what the kernel writes into each notebook: the version of this machine's Python."""
    if model["type"] == "notebook":
        model["content"]["metadata"].pop("language_info", None)


c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.FileContentsManager.pre_save_hook = without_language_info
