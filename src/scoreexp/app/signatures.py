"""Constructors' signatures, read from source text.

A yaml file's ``_target_`` names a class or function; its parameters are the schema of that file. Importing it
would import torch, which takes seconds, so the source is found on disk and parsed instead. Only the
top-level package is asked of the import system, which does not execute it; re-exports ``from x import Y`` are
followed. What cannot be read (compiled modules, generated classes) is reported as unknown and never
guessed.
"""

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from scoreexp.core.types import FromRun

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class TargetError(ValueError):
    """A dotted name that clearly does not exist."""


@dataclass(frozen=True, eq=False)
class Module:
    """The top-level names of one source file: definitions, assigned expressions and imports."""

    name: str
    is_package: bool
    bindings: dict[str, ast.AST] = field(default_factory=dict)
    star_imports: list[str] = field(default_factory=list)

    def may_create(self, name: str) -> bool:
        """Whether the module's ``__getattr__`` may answer to a name that the source does not bind."""
        dynamic = self.bindings.get("__getattr__")
        if not isinstance(dynamic, ast.FunctionDef):
            return dynamic is not None
        lazy_tables = [node for node in self.bindings.values() if isinstance(node, ast.expr)]
        constants = (part for node in [dynamic, *lazy_tables] for part in ast.walk(node))
        return any(isinstance(part, ast.Constant) and part.value == name for part in constants)


class Definition(NamedTuple):
    """A class, a function, or the right-hand side of an assignment, and the module whose names it uses."""

    node: ast.AST
    module: Module

    @property
    def qualified_name(self) -> str:
        return f"{self.module.name}.{getattr(self.node, 'name', '')}"


class Imported(NamedTuple):
    """A name that ``from module import name`` (or, with an empty name, ``import module``) brings in."""

    module: str
    name: str


class Parameter(NamedTuple):
    """A parameter as it is written: its annotation, the module whose names that uses, its default."""

    annotation: ast.expr | None
    module: Module
    default: ast.expr | None

    @property
    def required(self) -> bool:
        return self.default is None


class Signature(NamedTuple):
    """Parameters by name; ``is_open`` when further keyword arguments are accepted that are not named."""

    parameters: dict[str, Parameter]
    is_open: bool


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a misspelt word most likely means."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)), None)


def suggest(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest choice, or an empty string."""
    choice = closest(word, choices)
    return f"; did you mean '{choice}'?" if choice is not None else ""


# ---------------------------------------------------------------------------------------------- modules


@cache
def _package_folders(package: str) -> tuple[Path, ...] | None:
    """Folders of a top-level package, empty for a single-file or compiled module, None if not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return tuple(Path(folder) for folder in spec.submodule_search_locations or ())


@cache
def _module_file(name: str) -> Path | None:
    """The source file of a module, its folder if that is a namespace package; None if it has no source."""
    package, *rest = name.split(".")
    folders = _package_folders(package)
    if folders is None:
        return None
    if not folders:
        spec = importlib.util.find_spec(package)
        has_source = spec is not None and spec.origin is not None and spec.origin.endswith(".py")
        return Path(spec.origin) if not rest and has_source else None  # type: ignore[union-attr, arg-type]
    for folder in folders:
        stem = folder.joinpath(*rest)
        for candidate in (stem / "__init__.py", stem.with_name(stem.name + ".py"), stem):
            if candidate.is_file() or (candidate is stem and candidate.is_dir()):
                return candidate
    return None


@cache
def _load(name: str) -> Module | None:
    file = _module_file(name)
    if file is None:
        return None
    if file.is_dir():
        return Module(name, is_package=True)
    module = Module(name, is_package=file.name == "__init__.py")
    _bind(module, ast.parse(file.read_bytes(), str(file)).body, override=True)
    return module


def _bind(module: Module, body: Iterable[ast.stmt], override: bool) -> None:
    """Record the names a block binds; the main branch of ``if`` and ``try`` wins over the alternatives."""

    def put(name: str, node: ast.AST) -> None:
        if override:
            module.bindings[name] = node
        else:
            module.bindings.setdefault(name, node)

    for statement in body:
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                put(statement.name, statement)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(name, ast.Name):
                            put(name.id, value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                put(name, value)
            case ast.Import(names=names):
                for alias in names:
                    put(alias.asname or alias.name.split(".")[0], statement)
            case ast.ImportFrom(names=names):
                for alias in names:
                    if alias.name == "*":
                        module.star_imports.append(_absolute(module, statement))
                    else:
                        put(alias.asname or alias.name, statement)
            case ast.If(body=main, orelse=other):
                _bind(module, main, override)
                _bind(module, other, override=False)
            case ast.Try(body=main, handlers=handlers, orelse=other):
                _bind(module, [*main, *other], override)
                for handler in handlers:
                    _bind(module, handler.body, override=False)


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if statement.level == 0:
        return statement.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - statement.level + (1 if module.is_package else 0)]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def _imported(module: Module, name: str, statement: ast.Import | ast.ImportFrom) -> Imported:
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom) and name == (alias.asname or alias.name):
            return Imported(_absolute(module, statement), alias.name)
        if isinstance(statement, ast.Import) and name == (alias.asname or alias.name.split(".")[0]):
            return Imported(alias.name if alias.asname else name, "")
    raise LookupError(name)


def look_up(module: Module, name: str, depth: int = 0) -> Definition | Module | None:
    """What a top-level name of a module stands for, imports followed; None if that cannot be told."""
    node = module.bindings.get(name)
    if node is None:
        for star in module.star_imports:
            source = _load(star)
            if source is not None and depth < 10:
                found = look_up(source, name, depth + 1)
                if found is not None:
                    return found
        return _load(f"{module.name}.{name}") if module.is_package else None
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return Definition(node, module)
    imported = _imported(module, name, node)
    if not imported.name:
        return _load(imported.module)
    source = _load(imported.module)
    if source is module:  # ``from package import module`` in the package itself
        return _load(f"{module.name}.{imported.name}")
    if source is None or depth > 10:
        return None
    return look_up(source, imported.name, depth + 1)


# ---------------------------------------------------------------------------------------------- targets


def resolve(target: str) -> Definition | None:
    """The class or function that a dotted name stands for; None if its source cannot be read.

    Raises:
        TargetError: if a module or a name in it does not exist.
    """
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        raise TargetError(f"{target} is not a dotted name such as package.module.Class")
    folders = _package_folders(parts[0])
    if folders is None:
        raise TargetError(f"no package '{parts[0]}' is installed")
    count = 1
    while count < len(parts) - 1 and _module_file(".".join(parts[: count + 1])) is not None:
        count += 1
    module = _load(".".join(parts[:count]))
    if module is None:
        return None
    found: Definition | Module = module
    for position in range(count, len(parts)):
        member = _member(found, parts[position], ".".join(parts[:position]))
        if member is None:
            return None
        found = member
    if isinstance(found, Module):
        raise TargetError(
            f"{target} is a module, not a class or function{suggest(parts[-1], public_names(found))}"
        )
    return found


def _member(owner: Definition | Module, name: str, owner_name: str) -> Definition | Module | None:
    if isinstance(owner, Module):
        found = look_up(owner, name)
        if found is not None or name in owner.bindings or owner.may_create(name):
            return found
        if _compiled_submodule(owner.name, name) or any(_load(star) is None for star in owner.star_imports):
            return None
        public = [*public_names(owner), *_submodules(owner.name)]
        raise TargetError(f"{owner_name} has no '{name}'{suggest(name, public)}")
    if not isinstance(owner.node, ast.ClassDef):
        return None
    for ancestor in method_resolution_order(owner):
        method = None if ancestor is None else _method(ancestor.node, name)
        if ancestor is None or method is not None:
            return None if ancestor is None or method is None else Definition(method, ancestor.module)
    raise TargetError(f"{owner_name} has no '{name}'")


def _submodules(package: str) -> Iterator[str]:
    top, *rest = package.split(".")
    for folder in _package_folders(top) or ():
        for entry in folder.joinpath(*rest).glob("*"):
            if entry.suffix == ".py" or entry.is_dir():
                yield entry.stem


def _compiled_submodule(package: str, name: str) -> bool:
    top, *rest = package.split(".")
    return any(any(folder.joinpath(*rest).glob(f"{name}.*")) for folder in _package_folders(top) or ())


def public_names(module: Module) -> list[str]:
    """Top-level names without a leading underscore, star imports included."""
    names = [name for name in module.bindings if not name.startswith("_")]
    for star in module.star_imports:
        source = _load(star)
        if source is not None:
            names.extend(public_names(source))
    return names


# ------------------------------------------------------------------------------------------- signatures

NO_PARAMETERS = {"object", "ABC", "Generic", "Protocol"}


def method_resolution_order(definition: Definition) -> list[Definition | None]:
    """A class and its ancestors, each once and after its descendants; None for an unreadable one."""
    order: list[Definition | None] = [definition]
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        found = _base_class(base, definition.module)
        if found is not None:
            order.extend(method_resolution_order(found))
        elif base_name(base) not in NO_PARAMETERS | {"NamedTuple"}:
            order.append(None)
    seen: set[int] = set()
    result: list[Definition | None] = []
    for ancestor in reversed(order):
        if ancestor is None or id(ancestor.node) not in seen:
            result.append(ancestor)
            seen.add(id(ancestor.node) if ancestor else 0)
    return result[::-1]


def base_name(expression: ast.expr) -> str:
    """The last component of ``x``, ``module.x`` or ``x[T]``."""
    match expression:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return base_name(value)
    return ""


def look_up_expression(expression: ast.expr, module: Module) -> Definition | None:
    """What ``name`` or ``module.name`` stands for in a module; None if that cannot be told."""
    match expression:
        case ast.Name(id=name):
            found = look_up(module, name)
        case ast.Attribute(value=ast.expr() as value, attr=attribute):
            owner = look_up(module, value.id) if isinstance(value, ast.Name) else None
            found = look_up(owner, attribute) if isinstance(owner, Module) else None
        case ast.Subscript(value=value):
            return look_up_expression(value, module)
        case _:
            found = None
    return found if isinstance(found, Definition) else None


def _base_class(expression: ast.expr, module: Module) -> Definition | None:
    if base_name(expression) in NO_PARAMETERS:
        return None
    found = look_up_expression(expression, module)
    return found if found is not None and isinstance(found.node, ast.ClassDef) else None


def _method(node: ast.AST, name: str) -> FunctionNode | None:
    methods = [
        statement
        for statement in getattr(node, "body", [])
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name
    ]
    return methods[-1] if methods else None


def signature(definition: Definition) -> Signature | None:
    """The keyword parameters of a function or of a class's constructor; None if they cannot be told."""
    node, module = definition
    if isinstance(node, ast.ClassDef):
        return _constructor(method_resolution_order(definition))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {base_name(decorator) for decorator in node.decorator_list}
        is_method = module.bindings.get(node.name) is not node and "staticmethod" not in decorators
        return _parameters(node, module, skip_first=is_method)
    return None


def _parameters(function: FunctionNode, module: Module, skip_first: bool) -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    no_defaults = [None] * (len(positional) - len(arguments.defaults))
    defaulted = [*zip(positional, [*no_defaults, *arguments.defaults])][1 if skip_first else 0 :]
    defaulted.extend(zip(arguments.kwonlyargs, arguments.kw_defaults))
    parameters = {
        argument.arg: Parameter(argument.annotation, module, default) for argument, default in defaulted
    }
    return Signature(parameters, is_open=arguments.kwarg is not None)


def from_run(found: Signature | None) -> dict[str, str]:
    """Parameters that a run passes itself and which part of it they get: those annotated ``Annotated[T, FromRun(PART)]``."""
    parts = {}
    for name, parameter in ({} if found is None else found.parameters).items():
        match parameter.annotation:
            case ast.Subscript(value=generic, slice=ast.Tuple(elts=[_, *marks])):
                calls = [
                    mark for mark in marks if isinstance(mark, ast.Call) and base_name(mark.func) == "FromRun"
                ]
                if base_name(generic) == "Annotated" and calls:
                    parts[name] = FromRun(*map(ast.literal_eval, calls[0].args)).part
    return parts


def _constructor(order: list[Definition | None]) -> Signature | None:
    for position, ancestor in enumerate(order):
        if ancestor is None:
            return None
        node, module = ancestor
        assert isinstance(node, ast.ClassDef)
        init = _method(node, "__init__")
        if init is not None:
            own = _parameters(init, module, skip_first=True)
            return _merge_forwarded(init, own, order[position + 1 :]) if own.is_open else own
        if "dataclass" in {base_name(_called(decorator)) for decorator in node.decorator_list}:
            inherited = _constructor(order[position + 1 :])
            if inherited is None:
                return None
            return Signature({**inherited.parameters, **_fields(node, module)}, inherited.is_open)
        if any(base_name(base) == "NamedTuple" for base in node.bases):
            return Signature(_fields(node, module), is_open=False)
        new = _method(node, "__new__")
        if new is not None:
            return _parameters(new, module, skip_first=True)
    return Signature({}, is_open=False)


def _called(expression: ast.expr) -> ast.expr:
    return expression.func if isinstance(expression, ast.Call) else expression


def _fields(node: ast.ClassDef, module: Module) -> dict[str, Parameter]:
    fields = {}
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        default, in_init = statement.value, True
        if isinstance(default, ast.Call) and base_name(default.func) == "field":
            options = {keyword.arg: keyword.value for keyword in default.keywords}
            default = options.get("default", options.get("default_factory"))
            in_init = ast.unparse(options["init"]) != "False" if "init" in options else True
        if in_init and base_name(statement.annotation) != "ClassVar":
            fields[statement.target.id] = Parameter(statement.annotation, module, default)
    return fields


def _merge_forwarded(init: FunctionNode, own: Signature, ancestors: list[Definition | None]) -> Signature:
    """Parameters that ``super().__init__(..., **kwargs)`` lets through, besides the constructor's own."""
    calls = (node for node in ast.walk(init) if isinstance(node, ast.Call))
    call = next((call for call in calls if _forwards_kwargs(call, init)), None)
    inherited = _constructor(ancestors) if call is not None else None
    if call is None or inherited is None or any(isinstance(given, ast.Starred) for given in call.args):
        return own
    taken = {*list(inherited.parameters)[: len(call.args)], *(keyword.arg for keyword in call.keywords)}
    passed = {name: value for name, value in inherited.parameters.items() if name not in taken}
    return Signature({**passed, **own.parameters}, inherited.is_open)


def _forwards_kwargs(call: ast.Call, init: FunctionNode) -> bool:
    match call.func:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__"):
            unpacked = [keyword.value for keyword in call.keywords if keyword.arg is None]
            names = {value.id for value in unpacked if isinstance(value, ast.Name)}
            return init.args.kwarg is not None and init.args.kwarg.arg in names
    return False
