"""Read YAML whose size, depth, aliases and numbers are bounded, into plain values.

All YAML is read here. A text is first gone through event by event, which builds nothing, so that
neither aliases that multiply nor deep nesting is ever built.
"""

from __future__ import annotations

from typing import Any, ClassVar

import yaml

from conescope.errors import ConescopeError
from conescope.runs.foreign import printable

LARGEST = 2**18
"""The most bytes of a YAML file."""

_DEEPEST = 32
_MOST_ALIASES = 8
_LONGEST_NUMBER = 40
_TIME = "tag:yaml.org,2002:timestamp"


def read_yaml(text: str | bytes, source: str, error: type[ConescopeError]) -> Any:
    """Read the values of a YAML text: mappings, lists, text, numbers, true, false and null.

    Dates stay text. An alias may be used a few times, but not inside of what it names.

    Args:
        text: at most `LARGEST` bytes.
        source: where it comes from, for messages.
        error: the kind of error to raise.

    Raises:
        ConescopeError: of the kind `error`, if the text is no YAML, is too large or too deep, has
            too many aliases, a tag, a field that is written twice, a number of too many digits, or
            control characters; the message names the line.
    """
    if len(text) > LARGEST:
        raise error(f"{source} is larger than {LARGEST:,} bytes; leave out what is no field")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        _check_events(text)
        return yaml.load(text, _Loader)
    except UnicodeDecodeError:
        raise error(f"{source} is not text in UTF-8; save it in UTF-8") from None
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        raise error(
            f"{source} cannot be read as YAML: {_explained(problem)}; mend it there"
        ) from None


class _Loader(yaml.SafeLoader):
    """Refuses long numbers, and a field written twice, of which YAML would keep the last."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIME]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong("the name of a field has to be text", key.start_mark)
            if (key.tag, key.value) in seen:
                problem = f"{key.value} is written twice in a group of fields; keep one"
                raise _wrong(problem, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > _LONGEST_NUMBER:
            raise _wrong(f"a number has more than {_LONGEST_NUMBER} characters", node.start_mark)
        is_whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _check_events(text: str) -> None:
    """Raise `YAMLError` if the text is deeper, or multiplies more, than any recipe needs."""
    opened: list[str | None] = []
    aliases = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if tag := getattr(event, "tag", None):
            raise _wrong(f"it has the tag {tag}; write plain values", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(event.anchor)
            if len(opened) > _DEEPEST:
                raise _wrong(f"it is nested more than {_DEEPEST} deep", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > _MOST_ALIASES:
                problem = f"it has more than {_MOST_ALIASES} aliases; write the values out"
                raise _wrong(problem, event.start_mark)
            if event.anchor in opened:
                problem = f"*{event.anchor} stands inside of what it names; write the values out"
                raise _wrong(problem, event.start_mark)
        elif isinstance(event, yaml.ScalarEvent) and not _is_plain(event.value):
            raise _wrong("a text holds control characters; leave them out", event.start_mark)


def _is_plain(text: str) -> bool:
    return text.isprintable() or printable(text) == text


def _wrong(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _explained(problem: Exception) -> str:
    mark = getattr(problem, "problem_mark", None)
    what = " ".join(str(getattr(problem, "problem", None) or problem).split())
    return f"{what} (line {mark.line + 1})" if mark else what
