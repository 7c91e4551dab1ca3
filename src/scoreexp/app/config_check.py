"""Check a composed configuration against the signatures of what it constructs, before anything is imported.

The schema of a node with ``_target_`` is the signature of that class or function: an unknown parameter, a
missing one and a value of the wrong type or outside its range are reported by key, with what is allowed.
The other top-level keys are declared by the entry point, in the same notation as annotations.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from scoreexp.app.signatures import (
    Definition,
    Module,
    Parameter,
    Signature,
    TargetError,
    base_name,
    from_run,
    look_up_expression,
    method_resolution_order,
    resolve,
    signature,
    suggest,
)
from scoreexp.core.types import COMPARISONS

INSTANTIATE_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
MISSING = "???"  # how a configuration writes a mandatory value that was not given

Bound = tuple[str, float]

# Ranges that other packages check late or not at all, by the beginning of the target's qualified name.
THIRD_PARTY_RANGES: dict[str, dict[str, Bound]] = {
    "torch.optim.": {"lr": (">", 0), "weight_decay": (">=", 0), "eps": (">", 0), "momentum": (">=", 0)},
    "pytorch_lightning.trainer.": {
        "max_steps": (">=", -1),
        "max_epochs": (">=", -1),
        "min_steps": (">=", 0),
        "min_epochs": (">=", 0),
        "num_nodes": (">=", 1),
        "accumulate_grad_batches": (">=", 1),
        "check_val_every_n_epoch": (">=", 1),
        "gradient_clip_val": (">=", 0),
        "limit_train_batches": (">=", 0),
        "limit_val_batches": (">=", 0),
        "limit_test_batches": (">=", 0),
        "log_every_n_steps": (">=", 0),
        "num_sanity_val_steps": (">=", -1),
        "overfit_batches": (">=", 0),
        "val_check_interval": (">", 0),
    },
}

SCALARS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "Path": (str,),
    "PathLike": (str,),
    "Number": (int, float),
}
SCALAR_NAMES = {
    "int": "an int",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "Path": "a path",
    "PathLike": "a path",
    "Number": "a number",
}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "set", "Set", "frozenset", "MutableSequence"}
TUPLES = {"tuple", "Tuple"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
VALUE_BASES = {"str", "int", "float", "Enum", "StrEnum", "IntEnum", "TypedDict", "dict", "list", "tuple"}


def check_config(
    config: Mapping[str, Any],
    *,
    schema: Mapping[str, str] | None = None,
    provided: Mapping[str, Collection[str]] | None = None,
) -> list[str]:
    """Everything wrong with a resolved configuration, one line each; an empty list if it is sound.

    Args:
        config: plain dictionaries, lists and scalars, interpolations resolved, ``"???"`` for a missing value.
        schema: annotation of every allowed top-level key: ``{"seed": "NonNegativeInt", "network": "Node"}``.
            Besides types, ``Node`` is a mapping with ``_target_``, ``Nodes`` a mapping or list of them.
            Dotted keys describe plain nested mappings. None leaves the top level unchecked.
        provided: parameters that the program passes itself, by configuration path (shell patterns allowed), besides
            those that are annotated so (``FromRun``).
    """
    provided = provided or {}
    problems: list[str] = []
    if schema is not None:
        problems.extend(_check_declared(config, schema))
    problems.extend(_check_nodes(config, "", provided, lenient=False))
    return problems


def single_values(config: Mapping[str, Any], schema: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of scalars that are given where only a list of such is accepted."""
    scope = _declaration_scope()
    for key, annotation in schema.items():
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if _is_one_of_a_list(node, Parameter(ast.parse(annotation, mode="eval").body, scope, default=None)):
            yield key, node
    yield from _single_values_of_nodes(config, "")


def _single_values_of_nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        return
    found = _signature_of(node)
    for key, value in node.items():
        if found is not None and key in found.parameters and _is_one_of_a_list(value, found.parameters[key]):
            yield _join(path, key), value
        yield from _single_values_of_nodes(value, _join(path, key))


def _is_one_of_a_list(value: Any, parameter: Parameter) -> bool:
    if value is None or value == MISSING or isinstance(value, list | Mapping) or "${" in str(value):
        return False
    return not _accepts_here(parameter, value) and _accepts_here(parameter, [value])


def known_keys(config: Mapping[str, Any]) -> list[str]:
    """Dotted keys that may be given: those of the configuration, and every parameter of its targets."""
    return list(dict.fromkeys(_known_keys(config, "")))


def _known_keys(node: Any, path: str) -> Iterator[str]:
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key not in INSTANTIATE_KEYS:
            yield _join(path, key)
            yield from _known_keys(value, _join(path, key))
    found = _signature_of(node)
    if found is not None:
        yield from (_join(path, name) for name in found.parameters)


def _signature_of(node: Mapping[str, Any]) -> Signature | None:
    try:
        definition = resolve(str(node["_target_"])) if "_target_" in node else None
    except TargetError:
        return None
    return signature(definition) if definition is not None else None


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


# -------------------------------------------------------------------------------------- declared keys


def _check_declared(config: Mapping[str, Any], schema: Mapping[str, str]) -> Iterator[str]:
    scope = _declaration_scope()
    parents = {key.rpartition(".")[0] for key in schema}
    yield from _check_declared_mapping(config, "", schema, parents, scope)


def _check_declared_mapping(
    node: Mapping[str, Any], path: str, schema: Mapping[str, str], parents: set[str], scope: Module
) -> Iterator[str]:
    for key, value in node.items():
        here = _join(path, key)
        if here in parents and isinstance(value, Mapping):
            yield from _check_declared_mapping(value, here, schema, parents, scope)
        elif here not in schema:
            known = [name.rpartition(".")[2] for name in schema if name.rpartition(".")[0] == path]
            shown = here if isinstance(value, Mapping | list) else f"{here}={show(value)}"
            yield f"{shown} is not a configuration key{suggest(str(key), known)}{_choices(known)}"
        else:
            annotation = ast.parse(schema[here], mode="eval").body
            yield from _check_value(here, value, Parameter(annotation, scope, default=None), "")


def _declaration_scope() -> Module:
    definition = resolve("scoreexp.core.types.PositiveInt")
    if definition is None:
        raise FileNotFoundError("the source of scoreexp.core.types cannot be read")
    return definition.module


# ---------------------------------------------------------------------------------------------- nodes


def _check_nodes(
    node: Any, path: str, provided: Mapping[str, Collection[str]], lenient: bool
) -> Iterator[str]:
    """Problems of every node with ``_target_`` below; ``lenient`` where a parent fills in parameters."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from _check_nodes(value, f"{path}[{index}]", provided, lenient)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        yield from _check_node(node, path, provided, lenient)
    lenient = lenient or node.get("_recursive_") is False
    for key, value in node.items():
        yield from _check_nodes(value, _join(path, key), provided, lenient)


def _check_node(
    node: Mapping[str, Any], path: str, provided: Mapping[str, Collection[str]], lenient: bool
) -> Iterator[str]:
    target = node["_target_"]
    if target == MISSING:
        yield f"{_join(path, '_target_')} is required: name a class or function"
        return
    try:
        definition = resolve(str(target))
    except TargetError as error:
        yield f"{_join(path, '_target_')}={target}: {error}"
        return
    found = signature(definition) if definition is not None else None
    if definition is None or found is None:
        return
    by_program = {name for pattern, names in provided.items() if fnmatchcase(path, pattern) for name in names}
    by_program.update(from_run(found))
    unknown = []
    for key, value in node.items():
        here = _join(path, key)
        if key in INSTANTIATE_KEYS:
            continue
        if key in by_program:
            yield f"{here}={show(value)} cannot be set: the program passes it to {target} itself; remove it"
        elif key in found.parameters:
            yield from _check_value(here, value, found.parameters[key], target)
            yield from _check_third_party_range(here, value, definition, key)
        elif not found.is_open:
            unknown.append(key)
    yield from _unknown_parameters(node, path, unknown, {*found.parameters, *INSTANTIATE_KEYS} - by_program)
    if lenient or node.get("_partial_") or "_args_" in node:
        return
    for name, parameter in found.parameters.items():
        if parameter.required and name not in node and name not in by_program:
            yield f"{_join(path, name)} is required by {target}{_wanted(parameter)}"


def _unknown_parameters(
    node: Mapping[str, Any], path: str, unknown: list[str], allowed: Collection[str]
) -> Iterator[str]:
    """A line for each that looks like a misspelt one, and one for all others."""
    allowed = sorted(allowed)
    known = _choices([name for name in allowed if name not in INSTANTIATE_KEYS])
    likely = {key: suggest(key, allowed) for key in unknown}
    others = [key for key in unknown if not likely[key]]
    for keys in [*([key] for key in unknown if likely[key]), *([others] if others else [])]:
        given = ", ".join(f"{_join(path, key)}={show(node[key])}" for key in keys)
        names = f"parameter{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"
        yield f"{given}: {node['_target_']} has no {names}{likely[keys[0]]}{known}"


def _choices(names: Collection[str]) -> str:
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 15 else ""


def _check_third_party_range(path: str, value: Any, definition: Definition, name: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    for prefix, ranges in THIRD_PARTY_RANGES.items():
        if definition.qualified_name.startswith(prefix) and name in ranges:
            symbol, bound = ranges[name]
            if not COMPARISONS[symbol](value, bound):
                yield f"{path}={show(value)} must be {symbol} {bound}"


def _check_value(path: str, value: Any, parameter: Parameter, target: str) -> Iterator[str]:
    if value == MISSING:
        owner = f" by {target}" if target else ""
        yield f"{path} is required{owner}: add {path}=VALUE{_wanted(parameter)}"
    elif isinstance(value, str) and "${" in value:
        return  # an interpolation that waits for a missing value
    elif parameter.annotation is not None and not _accepts_here(parameter, value):
        wanted = _describe(parameter.annotation, parameter.module)
        yield f"{path}={show(value)} must be {wanted}{_remedy(value, parameter)}"


def _wanted(parameter: Parameter) -> str:
    if parameter.annotation is None:
        return ""
    return f" ({_describe(parameter.annotation, parameter.module)})"


def _remedy(value: Any, parameter: Parameter) -> str:
    if parameter.annotation is None:
        return ""
    if isinstance(value, float) and value.is_integer() and _accepts_here(parameter, int(value)):
        return f"; write {int(value)}"
    if not isinstance(value, str | list | Mapping) and _accepts_here(parameter, str(value)):
        return f"; quote it to make it a string: \"'{value}'\""
    choices = _literals(parameter.annotation, parameter.module)
    return suggest(value, (str(choice) for choice in choices)) if isinstance(value, str) else ""


def _accepts_here(parameter: Parameter, value: Any) -> bool:
    """Whether a value suits the annotation or is the default, which some annotations do not cover."""
    if parameter.annotation is None or _accepts(parameter.annotation, parameter.module, value):
        return True
    return parameter.default is not None and _constant(parameter.default) == value


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if value == "" else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------------------------------- annotations


def _accepts(annotation: ast.expr, module: Module, value: Any) -> bool:
    """Whether a plain value may be given for an annotation; true where that cannot be told."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as text):
            return _accepts(ast.parse(text, mode="eval").body, module, value)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _accepts(left, module, value) or _accepts(right, module, value)
        case ast.Subscript(value=generic, slice=arguments):
            items = arguments.elts if isinstance(arguments, ast.Tuple) else [arguments]
            return _accepts_generic(base_name(generic), items, module, value)
        case ast.Name() | ast.Attribute():
            return _accepts_name(annotation, module, value)
    return True


def _accepts_generic(name: str, items: list[ast.expr], module: Module, value: Any) -> bool:
    if name == "Optional":
        return value is None or _accepts(items[0], module, value)
    if name == "Union":
        return any(_accepts(item, module, value) for item in items)
    if name == "Literal":
        return any(type(value) is type(choice) and value == choice for choice in map(_constant, items))
    if name == "Annotated":
        return _accepts(items[0], module, value) and all(
            COMPARISONS[symbol](value, bound) for symbol, bound in _bounds(items)
        )
    if name in LISTS:
        return isinstance(value, list) and all(_accepts(items[0], module, item) for item in value)
    if name in TUPLES:
        if not isinstance(value, list):
            return False
        if _is_ellipsis(items[-1]):
            return all(_accepts(items[0], module, item) for item in value)
        return len(value) == len(items) and all(_accepts(i, module, v) for i, v in zip(items, value))
    if name in MAPPINGS:
        return isinstance(value, Mapping) and all(_accepts(items[-1], module, v) for v in value.values())
    return name != "Callable"


def _accepts_name(annotation: ast.expr, module: Module, value: Any) -> bool:
    name = base_name(annotation)
    if name in SCALARS:
        return isinstance(value, SCALARS[name]) and (name == "bool" or not isinstance(value, bool))
    if name in LISTS | TUPLES:
        return isinstance(value, list)
    if name in MAPPINGS:
        return isinstance(value, Mapping)
    if name == "Node":
        return False
    if name == "Nodes":
        nodes = (
            value if isinstance(value, list) else list(value.values()) if isinstance(value, Mapping) else [0]
        )
        return all(node is None or (isinstance(node, Mapping) and "_target_" in node) for node in nodes)
    found = look_up_expression(annotation, module)
    if found is None:
        return True
    if isinstance(found.node, ast.ClassDef):
        return not isinstance(value, bool | int | float | str | list | None) or _is_value_class(found)
    return not isinstance(found.node, ast.expr) or _accepts(found.node, found.module, value)


def _is_value_class(definition: Definition) -> bool:
    """Whether objects of a class may be given as plain values: enumerations, subclasses of str and so on."""
    ancestors = [ancestor for ancestor in method_resolution_order(definition) if ancestor is not None]
    names = {base_name(base) for ancestor in ancestors for base in getattr(ancestor.node, "bases", [])}
    return any(name in VALUE_BASES or name.endswith("Enum") for name in names)


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return object()


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _bounds(items: list[ast.expr]) -> list[Bound]:
    pairs = [_constant(item) for item in items[1:]]
    return [pair for pair in pairs if isinstance(pair, tuple) and len(pair) == 2 and pair[0] in COMPARISONS]


def _members(annotation: ast.expr, module: Module) -> Iterator[tuple[ast.expr, Module]]:
    """The alternatives of a union, aliases followed."""
    match annotation:
        case ast.Constant(value=str() as text):
            yield from _members(ast.parse(text, mode="eval").body, module)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from _members(left, module)
            yield from _members(right, module)
        case ast.Subscript(value=ast.Name(id="Optional") | ast.Attribute(attr="Optional"), slice=item):
            yield from _members(item, module)
            yield ast.Constant(None), module
        case ast.Subscript(
            value=ast.Name(id="Union") | ast.Attribute(attr="Union"), slice=ast.Tuple(elts=items)
        ):
            for item in items:
                yield from _members(item, module)
        case ast.Name(id=name) if name in SCALARS or name in LISTS | TUPLES | MAPPINGS:
            yield annotation, module
        case ast.Name() | ast.Attribute():
            found = look_up_expression(annotation, module)
            if (
                found is not None
                and isinstance(found.node, ast.expr)
                and not isinstance(found.node, ast.Call)
            ):
                yield from _members(found.node, found.module)
            else:
                yield annotation, module
        case _:
            yield annotation, module


def _literals(annotation: ast.expr, module: Module) -> list[Any]:
    return [
        _constant(item)
        for member, _ in _members(annotation, module)
        if isinstance(member, ast.Subscript) and base_name(member) == "Literal"
        for item in (member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice])
    ]


def _describe(annotation: ast.expr, module: Module) -> str:
    """What an annotation allows, in words: ``an int >= 1 or null``."""
    choices = _literals(annotation, module)
    words = [", ".join(dict.fromkeys(map(show, choices)))] if choices else []
    if len(choices) > 1:
        words[0] = f"one of {words[0]}"
    members = [(m, s) for m, s in _members(annotation, module) if base_name(m) != "Literal"]
    members.sort(key=lambda member: isinstance(member[0], ast.Constant))
    words.extend(_describe_member(member, scope) for member, scope in members)
    return " or ".join(dict.fromkeys(words))


def _describe_member(annotation: ast.expr, module: Module) -> str:
    match annotation:
        case ast.Constant(value=None):
            return "null"
        case ast.Subscript(value=generic, slice=arguments):
            items = arguments.elts if isinstance(arguments, ast.Tuple) else [arguments]
            name = base_name(generic)
            if name == "Annotated":
                ranges = [" and ".join(f"{symbol} {bound}" for symbol, bound in _bounds(items))]
                advice = [f"({text})" for text in map(_constant, items[1:]) if isinstance(text, str)]
                return " ".join(filter(None, [_describe(items[0], module), *ranges, *advice]))
            if name in TUPLES and not _is_ellipsis(items[-1]):
                return f"a list of {len(items)}: {', '.join(_describe(item, module) for item in items)}"
            if name in LISTS | TUPLES:
                return f"a list, each {_describe(items[0], module)}"
            if name in MAPPINGS:
                return "a mapping"
    name = base_name(annotation)
    if name in LISTS | TUPLES:
        return "a list"
    if name in MAPPINGS:
        return "a mapping"
    if name == "Nodes":
        return "a mapping of nodes with _target_"
    if name in SCALAR_NAMES:
        return SCALAR_NAMES[name]
    return "a node with _target_" if name == "Node" else f"a {name}"
