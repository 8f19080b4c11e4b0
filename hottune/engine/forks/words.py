"""Templates of an engine file: `{field}` stands for a value of the placement; `{{` and `}}` for braces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter

#: What a template may name.
FIELDS = frozenset(
    {
        *("model", "host", "port", "gpu", "n_gpu_layers", "n_cpu_moe"),
        *("hot_k", "rebalance_interval", "prefill_bypass"),
        *("ubatch", "batch", "threads", "context", "parallel", "load_mode"),
        *("kv_type_k", "kv_type_v", "spec_type", "spec_ngram"),
    }
)
_IN_PATTERN = re.compile(r"\{([a-z_]+)\}")


class BadTemplate(ValueError):
    """A template that cannot be expanded."""


def fields_of(template: str) -> set[str]:
    """Return the fields that a template names.

    Raises:
        BadTemplate: its braces do not match, or it names something else than one of `FIELDS`.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise BadTemplate(f"'{template}': {error}; a brace by itself is written twice") from error
    found: set[str] = set()
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in FIELDS or form or conversion:
            said = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise BadTemplate(f"'{template}' names {{{said}}}; there are {', '.join(sorted(FIELDS))}")
        found.add(name)
    return found


def expand(template: str, values: Mapping[str, str]) -> str:
    """Return the template with every field replaced by its value.

    Raises:
        BadTemplate: as `fields_of`.
    """
    fields_of(template)
    return template.format_map(values)


def expand_pattern(pattern: str, values: Mapping[str, str]) -> str:
    """Return the regular expression in which each field stands for exactly its value.

    Other braces, as in `\\d{3}`, are its own.
    """
    return _IN_PATTERN.sub(
        lambda match: re.escape(values[match[1]]) if match[1] in FIELDS else match[0], pattern
    )
