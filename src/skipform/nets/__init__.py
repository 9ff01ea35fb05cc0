"""The architectures: one file each, and the name of the file is the name of the net.

A net's file holds `build` (keyword-only, annotated) and facts about the net as plain data, which `survey` reads and a
test checks:

    SURVEY    paper, year, skip (how branch and shortcut are merged), levels (nested skips; 0: none)
    VARIANTS  label -> (arguments of build, depth as the paper counts it, exact number of parameters)

Arguments mean the same in all nets: `depth` counts layers as the paper does, `width` is a number of channels (features
of a fully connected layer), `width_factor` multiplies the paper's channels, and `skip` is the kind of skip, "none"
where the net can do without one. Published errors are quoted in the docstrings; as data they are kept outside the
package, in analysis/published.yaml, so that correcting one retrains nothing.
"""

import copy
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import nn

from skipform.arguments import complete
from skipform.errors import SkipformError

SHARED = {"blocks", "attention"}  # files that are not nets


def names() -> list[str]:
    """The nets that `build` accepts, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in SHARED)


def build(name: str, **arguments: Any) -> nn.Module:
    """The net of file `name`; an argument that is itself a {"name": ..., ...} block is built first.

    Raises:
        SkipformError: unknown net, unknown or missing argument, an argument of the wrong type, or (from the net) a
            value outside what its paper defines; one line that names what is accepted.
    """
    if name not in names():
        raise SkipformError(f"unknown net {name!r}; accepted: {', '.join(names())}")
    function = import_module(f"{__name__}.{name}").build
    given = {key: description(value) if isinstance(value, nn.Module) else value for key, value in arguments.items()}
    built = {key: build(**value) if is_block(value) else value for key, value in arguments.items()}
    net = function(**complete(function, built, f"net {name!r}"))
    if all(given[key] is not None or value is None for key, value in arguments.items()):
        net.__dict__["built_from"] = {"name": name, **given}
    return net


def description(net: nn.Module) -> dict[str, Any] | None:
    """The {"name": NAME, argument: value, ...} block from which `build` made the net; None for any other net."""
    return net.__dict__.get("built_from")


def is_block(value: Any) -> bool:
    """Whether the value describes a net: {"name": NAME, argument: value, ...}."""
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def features(net: nn.Module) -> nn.Module:
    """A copy of the net, in eval mode, that returns its features: the input of its last linear layer.

    This is what "features" means everywhere: `feature_rank` is the rank of their Jacobian. In a convolutional net they
    come after the global average.
    """
    net = copy.deepcopy(net)
    name = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())
    return net.eval()


def survey() -> list[dict[str, Any]]:
    """The rows of the survey table, one for every variant of every net: what the files state, without building."""
    keys = ("arguments", "depth", "parameters")
    modules = {name: import_module(f"{__name__}.{name}") for name in names()}
    return [
        {"net": name, "variant": label} | module.SURVEY | dict(zip(keys, claim, strict=True))
        for name, module in modules.items()
        for label, claim in module.VARIANTS.items()
    ]
