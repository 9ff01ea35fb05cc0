"""Models named on the command line: MODULE:FACTORY and shapes, or an ONNX file."""

import math
from importlib import import_module
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from skipform.arguments import Seed
from skipform.compiler.from_onnx import from_onnx
from skipform.errors import SkipformError, one_line, shown
from skipform.files import json_value

LARGEST = 2**30  # numbers of an input, 8 GiB in float64


def from_factory(factory: str, arguments: str = "{}", *, seed: Seed = 0) -> nn.Module:
    """The model that MODULE:FACTORY returns for JSON arguments, in evaluation mode. Its random weights are those of
    torch's generator after torch.manual_seed(seed). Raises SkipformError if it is no torch module."""
    module, _, name = factory.partition(":")
    given = json_value(arguments, f"--arguments {shown(arguments)}")
    if not isinstance(given, dict):
        raise SkipformError(f'--arguments {shown(arguments)}; accepted: a JSON object, e.g. {{"num_classes": 10}}')
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            model = getattr(import_module(module), name)(**given)
        if isinstance(model, nn.Module):
            model.eval()  # which does not end for a module that contains itself
    except SkipformError as error:  # of `skipform.build`, say, which states what it accepts
        raise SkipformError(f"{shown(factory)}: {error}") from None
    except (Exception, SystemExit) as error:  # foreign code may raise anything, or try to exit
        raise SkipformError(
            f"{shown(factory)}: {type(error).__name__}: {one_line(error, 500)};"
            " MODULE:FACTORY that returns a model is accepted"
        ) from None
    if not isinstance(model, nn.Module):
        raise SkipformError(f"{factory} returns a {type(model).__name__}; a torch.nn.Module is accepted")
    return model


def is_file(source: str) -> bool:
    """Whether the model is an ONNX file, not MODULE:FACTORY."""
    return source.lower().endswith(".onnx")


def from_file(source: str, input: str | None, arguments: str) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """The network of an ONNX file, and the shapes of its inputs, batch first. Raises SkipformError if options are given
    that only MODULE:FACTORY takes."""
    for option, given in (("--input", input is not None), ("--arguments", arguments != "{}")):
        if given:
            raise SkipformError(f"{source}: {option} is for MODULE:FACTORY; the shapes and weights are the file's")
    module, examples = from_onnx(source)
    return module, [tuple(x.shape) for x in examples]


def with_shape(source: str, input: str | None, arguments: str, *, seed: Seed = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """The model of MODULE:FACTORY or of an ONNX file, and the shape of one input: the option, or the file's."""
    if is_file(source):
        model, shapes = from_file(source, input, arguments)
        if len(shapes) != 1:
            raise SkipformError(f"{source}: a network of {len(shapes)} inputs; one is accepted")
        return model, shapes[0][1:]
    if input is None:
        raise SkipformError(f"{source}: --input is missing; MODULE:FACTORY takes the shape of one input, e.g. 3,32,32")
    shape = shape_of(input)
    return from_factory(source, arguments, seed=seed), shape


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that a text such as "3,32,32" names. Raises SkipformError if it names none."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise SkipformError(
            f"--input {shown(text)}: whole numbers separated by commas are accepted, e.g. 1,3,64,64"
        ) from None
    if min(shape) < 1:
        raise SkipformError(f"--input {text}: sizes of at least 1 are accepted")
    if math.prod(shape) > LARGEST:
        raise SkipformError(f"--input {shown(text)}: at most {LARGEST:,} numbers are accepted")
    return shape


def read_inputs(path: Path, shape: tuple[int, ...], option: str) -> Tensor:
    """The numbers of a .npy file of this shape, in float64. Raises SkipformError for any other file."""
    try:
        given = torch.from_numpy(np.load(path, allow_pickle=False)).double()
    except (OSError, EOFError, ValueError, TypeError, MemoryError, BadZipFile) as error:
        raise SkipformError(f"{option} {path}: not a .npy file of numbers ({error})") from None
    if given.shape != shape:
        raise SkipformError(f"{option} {path}: shape {tuple(given.shape)}; {shape} is accepted")
    return given
