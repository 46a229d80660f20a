"""YAML files that people write. They hold plain data, and errors in them are reported on one line."""

from pathlib import Path
from typing import Any

import yaml

from longtail.utils.errors import InputError


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise InputError(f"{path}: is not a file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: {error}") from error


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Returns the mapping that a YAML text holds; an empty one for an empty text.

    Args:
        text: YAML.
        name: the file's name, for messages.

    Raises:
        InputError: it is not YAML, not plain data or not a mapping. The message names the line.
    """
    try:
        content = yaml.load(text, _Loader) or {}
    except RecursionError as error:
        raise InputError(f"{name}: not valid YAML: nested too deeply") from error
    except Exception as error:  # PyYAML's own, and ValueError for values such as a date in month 13
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise InputError(f"{name}{line}: not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: must hold settings, 'section: {{field: value}}', not a {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """Plain data only. A duplicate key is an error; PyYAML drops the first one without a message."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key.value}'", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", event.start_mark)
        return super().compose_node(parent, index)
