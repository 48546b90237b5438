"""Every message of our own errors is one line that says what is wrong, and the cure."""

import ast
import re
from pathlib import Path

import pytest

from conescope import errors

SOURCE = Path(errors.__file__).parent
OURS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ConescopeError)
} | {"error"}
"""Names under which the source raises our errors; `error` is an argument of readers of files."""

CURE = re.compile(
    r"; \S|, not |, such as |: (build|write|give)|\b(must|at least|expected|say|takes?)\b"
)
"""What follows a semicolon, or says what is expected in place of what was given."""


def messages(tree):
    """The line and the literal text of each message of its own, with {} for what is filled in.

    One that hands on another of our messages, which has its cure, is not one of its own.
    """
    handed_on = set()
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler) and handler.type is not None:
            kinds = getattr(handler.type, "elts", [handler.type])
            if all(getattr(kind, "id", "") in OURS for kind in kinds):
                handed_on |= {id(n) for n in ast.walk(handler) if is_name(n, handler.name)}
    for node in ast.walk(tree):
        name = getattr(getattr(node, "func", None), "id", "")
        if name not in OURS or not node.args or any(id(n) in handed_on for n in ast.walk(node)):
            continue
        text = node.args[0]
        if isinstance(text, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in text.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(text, ast.Constant):
            yield node.lineno, str(text.value)


def is_name(node, name):
    return isinstance(node, ast.Name) and node.id == name


def wrong(text):
    """What is wrong with a message; "" if nothing is."""
    if "\n" in text or text != text.strip():
        return "is not one line"
    if text[-1] in ".,;:":
        return "ends with a sign"
    return "" if CURE.search(text) else "names no cure"


def test_each_message_is_one_line_with_a_cure():
    found = {
        f"{file.relative_to(SOURCE)}:{line}: {text}": fault
        for file in sorted(SOURCE.rglob("*.py"))
        for line, text in messages(ast.parse(file.read_text(encoding="utf-8")))
        if (fault := wrong(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ('StoreError("the folder is empty")', "names no cure"),
        ('StoreError(f"{path} is empty.")', "ends with a sign"),
        ('RecipeError("wrong;\\ngive another")', "is not one line"),
        ('error(f"cannot read {path}: {reason}")', "names no cure"),
        ('StoreError(f"{path} is empty; give another")', ""),
        ('KernelError(f"dt must be positive, not {dt}")', ""),
        ('KernelError(f"{path}: {error}")', "names no cure"),
    ],
)
def test_the_rule_itself(call, fault):
    [(_, text)] = messages(ast.parse(call))
    assert wrong(text) == fault


def test_a_message_that_hands_on_another_is_none_of_its_own():
    code = "try: f()\nexcept {} as error: raise StoreError(f'{{path}}: {{error}}')"
    assert [*messages(ast.parse(code.format("KernelError")))] == []
    assert [*messages(ast.parse(code.format("OSError")))] == [(2, "{}: {}")]
