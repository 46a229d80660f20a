"""YAML files that people write: plain data, and one line about whatever is wrong in them."""

from pathlib import Path
from typing import Any

import yaml

from longtail.utils.errors import InputError


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """What a text says; nothing for an empty one.

    Args:
        text: YAML.
        name: of the file, for messages.

    Raises:
        InputError: it is not YAML, not plain data, or holds no ``key: value``; the message names the line.
    """
    try:
        content = yaml.load(text, _Loader) or {}
    except RecursionError as error:
        raise InputError(f"{name}: not valid YAML: too deep") from error
    except Exception as error:  # PyYAML's own, and what its constructors raise about tags such as !!set
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise InputError(f"{name}{where}: not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: must hold settings, 'section: {{field: value}}', not a {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that stands twice is an error, where PyYAML would drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name must be a single word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # a date in month 13, a number of 5000 digits
            kind, value = node.tag.rpartition(":")[2], str(node.value)[:40]
            problem = f"'{value}' cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not taken", event.start_mark)
        return super().compose_node(parent, index)
