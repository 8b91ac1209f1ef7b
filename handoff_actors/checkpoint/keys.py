"""The key of each function of a DAG: what it is and what it gets, as one digest.

Two functions have the same key if, and only if, they have the same id, code, arguments of their own
and the same functions before them, up to the inputs. So a change is seen in the key of everything
that depends on it, and of nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from handoff_actors.checkpoint.content import UnidentifiableError, digest
from handoff_actors.graph.callables import resolve_code
from handoff_actors.graph.checks import with_extras
from handoff_actors.graph.dag import DAG
from handoff_actors.graph.function import Argument, Function
from handoff_actors.graph.order import in_order

_FORMAT = b"1"


@dataclass(frozen=True)
class Keys:
    """See the module.

    Attributes:
        of: key by function id; a function that cannot be identified, or depends on one, has none.
        unknown: why a function has none, for those where it begins.
    """

    of: Mapping[Hashable, bytes]
    unknown: Mapping[Hashable, str]


def keys(dag: DAG, inputs: Mapping[Hashable, Any]) -> Keys:
    """The keys of a validated DAG whose inputs have these values."""
    found: dict[Hashable, bytes] = {}
    unknown: dict[Hashable, str] = {}
    codes: dict[int, bytes] = {}
    for function in in_order(dag.functions):
        needed = [arg.id if isinstance(arg, Argument) else arg for arg in function.args]
        if any(id_ not in found for id_ in needed):
            continue
        try:
            parts = [_FORMAT, function.type.encode(), digest(function.id)]
            if function.type == "input":
                parts.append(digest(inputs[function.id]))
            else:
                parts += _own(function, codes)
                parts += [found[id_] for id_ in needed]
        except UnidentifiableError as error:
            unknown[function.id] = str(error)
            continue
        hasher = hashlib.blake2b(digest_size=20)
        for part in parts:
            hasher.update(len(part).to_bytes(4, "little"))
            hasher.update(part)
        found[function.id] = hasher.digest()
    return Keys(found, unknown)


def _own(function: Function, codes: dict[int, bytes]) -> list[bytes]:
    """What the function itself consists of."""
    form = (function.argument_inclusion, function.batch_size is not None)
    if function.version is not None:
        parts = [b"version", digest(function.version)]
    else:
        known = codes.get(id(function.code))
        if known is None:
            code = resolve_code(function.code or "", function.id)
            known = codes[id(function.code)] = digest(code)
        converters = [
            (arg.serialization_fn, arg.deserialization_fn) if isinstance(arg, Argument) else None
            for arg in function.args
        ]
        parts = [known, digest((with_extras(function.init), converters))]
    try:
        own = digest((function.extra_args, function.extra_kwargs, form))
    except UnidentifiableError:
        if function.version is None:
            raise
        own = digest(form)  # the version speaks for what cannot speak for itself
    return [*parts, own]
