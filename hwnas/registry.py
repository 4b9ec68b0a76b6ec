"""Names to implementations, imported on use; plugins join through entry points.

A plugin package declares, for example

    [project.entry-points."hwnas.generators"]
    my-method = "my_package.module:factory"

and `--generator my-method` works. A factory takes the search space and its own settings: as keywords, or as one
argument `settings`, a dataclass that has them all.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from hwnas.core.protocols import Foreseeing, Generator, SearchSpace
from hwnas.errors import HwnasError, InvalidSetting, UnknownName

_SPACES = {"nb201": "hwnas.spaces.nb201:NasBench201"}
_GENERATORS = {
    "agnet": "hwnas.generators.agnet:AgNet",
    "agnet-paper": "hwnas.generators.agnet_paper:AgNetPaper",
    "random": "hwnas.generators.random:RandomSearch",
    "evolution": "hwnas.generators.evolution:RegularizedEvolution",
    "eda": "hwnas.generators.eda:MarginalEDA",
    "nsga2": "hwnas.generators.pymoo_ea:nsga2",
}
_PYMOO = "pymoo:"


def spaces() -> list[str]:
    """Names of all search spaces, plugins included."""
    return sorted(_known("hwnas.spaces", _SPACES))


def generators() -> list[str]:
    """Names of all generators, plugins included; besides them `pymoo:NAME` is any of pymoo's algorithms."""
    return sorted(_known("hwnas.generators", _GENERATORS))


def foreseeing(search_space: SearchSpace) -> list[str]:
    """Names of the generators that can, with their defaults, tell what going on would bring."""
    found = []
    for name in generators():
        try:
            made = generator(name, search_space)
        except (HwnasError, ImportError):  # a plugin that does not suit the space, or lacks something
            continue
        if isinstance(made, Foreseeing) and made.foresees:
            found.append(name)
    return found


def is_pymoo(name: str) -> bool:
    """Whether a generator's name asks for one of pymoo's algorithms; whether there is such a one is checked later."""
    return name.startswith(_PYMOO)


def space(name: str) -> SearchSpace:
    """The search space called `name`.

    Raises:
        UnknownName: With the nearest known names.
    """
    built: SearchSpace = _resolve("space", name, "hwnas.spaces", _SPACES)()
    return built


def generator(name: str, search_space: SearchSpace, settings: Mapping[str, Any] | None = None) -> Generator:
    """The generator called `name`, for one space.

    Args:
        name: A name of `generators()` or `pymoo:NAME`.
        search_space: What it will propose from.
        settings: Keywords of its factory; a wrong one is refused with the list of the right ones.

    Raises:
        UnknownName: No such generator.
        InvalidSetting: No such setting, or a value that the generator refuses.
    """
    chosen = dict(settings or {})
    if is_pymoo(name):
        from hwnas.generators.pymoo_ea import PymooEA

        chosen["algorithm"] = name.removeprefix(_PYMOO)
        factory: Callable[..., Generator] = PymooEA
    else:
        factory = _resolve("generator", name, "hwnas.generators", _GENERATORS)
    hints = typing.get_type_hints(inspect.getattr_static(factory, "__init__") if inspect.isclass(factory) else factory)
    admitted = [p for p in inspect.signature(factory).parameters if p != "space"]
    settings_class = _dataclass(hints.get("settings"))
    if settings_class is not None:
        hints = typing.get_type_hints(settings_class)
        admitted = [field.name for field in dataclasses.fields(settings_class)]
    for key, value in chosen.items():
        if key not in admitted:
            raise InvalidSetting(f"generator {name!r} has no setting {key!r}. Known: {', '.join(admitted) or 'none'}")
        if key in hints and not _fits(value, hints[key]):
            raise InvalidSetting(f"generator {name!r}: {key} wants {_words(hints[key])}; got {value!r}")
    try:
        if settings_class is not None:
            return factory(search_space, settings_class(**chosen))
        return factory(search_space, **chosen)
    except (TypeError, ValueError) as error:
        if isinstance(error, UnknownName):
            raise
        raise InvalidSetting(f"generator {name!r} refuses its settings {chosen}: {error}") from error


def _dataclass(hint: Any) -> Any:
    """The dataclass in an annotation such as `Settings | None`, or None."""
    return next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)


_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "nothing"}


def _fits(value: object, wanted: Any) -> bool:
    """Whether a value that came as JSON or TOML is what a factory's annotation asks for."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if wanted in (int, float):  # a truth value is no number, but a whole number is one
        return isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) if wanted in _TYPES else True


def _words(wanted: Any) -> str:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is not None:
        return f"a list, each {_words(inner[0])}"
    return _TYPES.get(wanted, str(wanted))


def _known(group: str, own: Mapping[str, str]) -> dict[str, str]:
    plugins = {point.name: point.value for point in entry_points(group=group)}
    return {**plugins, **own}


def _resolve(kind: str, name: str, group: str, own: Mapping[str, str]) -> Callable[..., Any]:
    known = _known(group, own)
    if name not in known:
        raise UnknownName(kind, name, known)
    module, _, attribute = known[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found
