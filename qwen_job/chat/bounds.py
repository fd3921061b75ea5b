"""Bounds on what the expressions of a chat template make, so that a few characters of it cannot fill the memory.

What makes a text or list much larger than its inputs is measured before it runs: products, format widths, padding,
replacing, joining. All else adds up its inputs, and is measured where it could grow again: kept, passed on, rendered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import wraps
from typing import Any

from jinja2.exceptions import SecurityError, TemplateError

# Characters: ten times what the longest context of any model holds. Items: of lists and objects, those inside them too.
MAX_TEXT = 1 << 26
MAX_ITEMS = 1 << 22
_MAX_BITS = 1 << 12
_MAX_INDENT = 32  # of JSON, where it is multiplied by the depth
_NUMBER = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
_BRACES = re.compile(r"\{[^{}]*:((?:[^{}]|\{[^{}]*\})*)\}")
_NO: dict[str, str] = {}
# No abstract classes: these are looked up for every value.
_CONTAINERS: tuple[type[Any], ...] = (
    list,
    tuple,
    dict,
    *(type(each) for each in (_NO.keys(), _NO.values(), _NO.items())),
)
_Size = Callable[..., int]


def refuse_large(size: float, what: str) -> None:
    """Refuse to make something of ``size`` characters.

    Raises:
        SecurityError: it is more than MAX_TEXT.
    """
    if size > MAX_TEXT:
        raise SecurityError(f"{what} is too large")


def bounded(value: Any) -> Any:
    """Return a value; refuse a text or container that grew too large.

    Raises:
        SecurityError: it did.
    """
    if isinstance(value, (str, bytes)):
        return _text(value)
    if isinstance(value, _CONTAINERS):
        _weight(value)
    return value


def _text(value: Any) -> Any:
    if isinstance(value, (str, bytes)) and len(value) > MAX_TEXT:
        raise SecurityError(f"a text of {len(value):,} characters is too large")
    return value


def _weight(value: Any) -> int:
    """Count the items of a container and of those in it, each time that it is in it.

    A short list of lists that are in it many times (``set x = [x, x]``, again and again) is endless to print.

    Raises:
        SecurityError: they are too many, or their texts too long.
    """
    inside, items, characters = [value], 1, 0
    while inside:
        one = inside.pop()
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, _CONTAINERS):
            items += len(one)
            if items > MAX_ITEMS:
                raise SecurityError(f"a list of more than {MAX_ITEMS:,} items is too large")
            inside.extend(one.values() if isinstance(one, dict) else one)
    refuse_large(characters, "what a list holds")
    return items


def joined(parts: Iterable[str]) -> str:
    """Return what ``"".join`` does, up to a length.

    Raises:
        TemplateError: it is longer.
    """
    kept, size = list[str](), 0
    for part in parts:
        kept.append(part)
        size += len(part)
        if size > MAX_TEXT:
            raise TemplateError(f"makes more than {MAX_TEXT:,} characters")
    return "".join(kept)


def refuse_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse a repetition, a product, a power or a formatting that would fill the memory.

    Raises:
        SecurityError: it would.
    """
    what = f"{_short(left)} {operator} {_short(right)}"
    if operator == "%":
        if isinstance(left, (str, bytes)):
            refuse_large(_percents(left), what)
        return
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_BITS:
            raise SecurityError(f"{what} is too large")
        return
    many, times = (left, right) if isinstance(left, Sized) else (right, left)
    if isinstance(many, Sized) and isinstance(times, int):
        container = isinstance(many, _CONTAINERS)
        most = MAX_TEXT // MAX_ITEMS if container else 1
        refuse_large((_weight(many) if container else len(many)) * times * most, what)


def _short(value: Any) -> str:
    if isinstance(value, (str, bytes)):
        return f"{value[:20]!r:.20}"
    return f"{value:.20}" if isinstance(value, float) else repr(value)[:20] if isinstance(value, int) else "a list"


def refuse_call(function: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Refuse a call of one of METHODS that would make too much; return its arguments.

    Raises:
        SecurityError: it would.
    """
    name = function.__name__
    size = METHODS[name]
    if name == "join" and arguments:
        arguments = (_listed(arguments[0]), *arguments[1:])
    owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    refuse_large(_measured(size, owner, *arguments, *named.values()), f"what {name}() makes")
    return arguments


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses to make too much."""
    size = _FILTERS.get(name)
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def filtered(*arguments: Any, **named: Any) -> Any:
        if size is not None:
            if name in ("join", "sum"):
                arguments = (*arguments[:first], _listed(arguments[first]), *arguments[first + 1 :])
            made = _measured(size, *arguments[first:], *named.values())
            refuse_large(made, f"what the filter {name} makes")
        return _text(function(*arguments, **named))

    return filtered


def _measured(size: _Size, *arguments: Any) -> int:
    try:
        return size(*arguments)
    except (TypeError, ValueError):
        return 0  # wrong arguments: the function itself refuses them


def _listed(value: Any) -> Any:
    """Return a list for what can be walked only once."""
    return value if isinstance(value, Sized) or not isinstance(value, Iterable) else list(value)


def _percents(form: str | bytes) -> int:
    """Return the characters that widths and precisions of a ``%`` format add at most."""
    text = form if isinstance(form, str) else form.decode("latin-1")
    return sum(_width(each) for found in _PERCENT.finditer(text) for each in found.groups() if each)


def _braces(form: Any, *_: Any) -> int:
    """Return the characters that widths and precisions of a ``str.format`` format add at most."""
    return sum(_width(found[1]) for found in _BRACES.finditer(str(form)))


def _width(spec: str) -> int:
    # A width from an argument ('%*d', '{:{}}') can be any: no template needs one.
    return MAX_TEXT + 1 if "*" in spec or "{" in spec else sum(int(each[:20]) for each in _NUMBER.findall(spec))


def _total(items: Any, between: Any = "", *_: Any) -> int:
    return sum(len(item) for item in items if isinstance(item, (str, bytes))) + len(items) * len(str(between))


def _numbers(*arguments: Any) -> int:
    return max((value for value in arguments if isinstance(value, int)), default=0)


def _product(*arguments: Any) -> int:
    product = 1
    for value in arguments:
        product *= value if isinstance(value, int) and value > 1 else 1
    return product * 100  # a word of lorem ipsum, and the default of what is not given


def _replaced(text: Any, old: Any, new: Any, *_: Any) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if len(new) > len(old) else 0) * len(new)


def _translated(text: Any, table: Any) -> int:
    return len(text) * max((len(new) for new in table.values() if isinstance(new, str)), default=1)


def _indented(text: Any, width: Any = 4, *_: Any) -> int:
    return (len(width) if isinstance(width, str) else int(width)) * (str(text).count("\n") + 1)


def _json_indent(_: Any, *arguments: Any) -> int:
    widths = (len(value) if isinstance(value, str) else value for value in arguments if isinstance(value, (str, int)))
    return MAX_TEXT + 1 if any(width > _MAX_INDENT for width in widths) else 0


def _wrapped(text: Any, *arguments: Any) -> int:
    return len(text) * max((len(value) for value in arguments if isinstance(value, str)), default=1)


def _summed(items: Any, *_: Any) -> int:
    return sum(len(item) for item in items if isinstance(item, (list, tuple)))


METHODS: dict[str, _Size] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill", "to_bytes"), lambda _, *arguments: _numbers(*arguments)),
    "expandtabs": lambda text, *sizes: text.count("\t" if isinstance(text, str) else b"\t") * _numbers(*sizes),
    "replace": _replaced,
    "translate": _translated,
    "join": lambda between, items, *_: _total(items, between),
    "format": _braces,
    "format_map": _braces,
    "generate_lorem_ipsum": _product,
}
_FILTERS: dict[str, _Size] = {
    **dict.fromkeys(("center", "batch", "slice"), lambda _, *arguments: _numbers(*arguments)),
    "indent": _indented,
    "format": lambda form, *_: _percents(str(form)),
    "replace": _replaced,
    "join": _total,
    "wordwrap": _wrapped,
    "tojson": _json_indent,
    "sum": _summed,
}
