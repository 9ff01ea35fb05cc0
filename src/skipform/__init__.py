"""skipform: pooling layers and skip connections as affine maps and concatenated activation functions.

The companion of J. Nagase, T. Ishiwata, "Construction of pooling layer by skip connection and analysis based on
expressive power of these models" (JSAI 2019). Everything stands on the canonical network

    z_0 = x,   z_{k+1} = (relu(A_k z_k); z_k),   y = R z_L,        A_k, R affine, ( ; ) concatenation.

    build(name, ...)            an architecture as a torch module, e.g. build("resnet", depth=20)
    from_onnx(path)             the network of an ONNX file as a torch module, with example inputs
    rewrite(module, example)    an equal torch module of affine maps, ReLU, concatenation and reshapes
    canonical(module, example)  the canonical network of a module
    measure                     its regions and ranks: line, plane, jacobian_rank, ...; see help(skipform.measure)
    task(name, net, ...)        a LightningModule that trains the net, e.g. task("classify", net)
    data(name, ...)             a LightningDataModule, e.g. data("digits"); see help(skipform.data)

`skipform list` prints the names that build, task and data accept.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipform import data as data
    from skipform import measure as measure
    from skipform.compiler.flatten import canonical as canonical
    from skipform.compiler.from_onnx import from_onnx as from_onnx
    from skipform.compiler.rewrite import UnsupportedOperation as UnsupportedOperation
    from skipform.compiler.rewrite import rewrite as rewrite
    from skipform.errors import SkipformError as SkipformError
    from skipform.nets import build as build
    from skipform.tasks import build as task
    from skipform.theory.network import CanonicalNetwork as CanonicalNetwork

__version__ = "0.1.0"
__all__ = ["build", "canonical", "data", "from_onnx", "measure", "rewrite", "task"]

# Public name -> the module that holds it; imported when first asked for, so that `import skipform` stays light. Those
# that are not in __all__ are for annotations and `except`.
_HOMES = {
    "build": "skipform.nets",
    "canonical": "skipform.compiler.flatten",
    "from_onnx": "skipform.compiler.from_onnx",
    "rewrite": "skipform.compiler.rewrite",
    "UnsupportedOperation": "skipform.compiler.rewrite",
    "CanonicalNetwork": "skipform.theory.network",
    "SkipformError": "skipform.errors",
    "task": "skipform.tasks",
}
_PACKAGES = ("data", "measure")  # `skipform.data` can be called


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"skipform.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), "build" if name == "task" else name)
    raise AttributeError(
        f"module 'skipform' has no attribute {name!r}; it has {', '.join(sorted([*_HOMES, *_PACKAGES]))}"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
