"""`skipform rewrite`: a torch model as affine maps, ReLU and concatenation, written to a file."""

import io
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from skipform.arguments import Seed
from skipform.compiler import targets
from skipform.compiler.check import AGREEMENT
from skipform.compiler.flatten import canonical, structure
from skipform.compiler.rewrite import rewrite
from skipform.errors import InternalError, SkipformError
from skipform.files import whole
from skipform.outputs import check_file
from skipform.stages.models import from_factory, shape_of

SUFFIXES = (".onnx", ".pt2", ".safetensors")
SAMPLES = 4  # random inputs in the comparison; their batch size differs from that of the example
# The largest relative difference of a file that is written. A network does the same sums in float32 as in float64, each
# rounded 2^29 times as coarsely: 5.4e-4.
BOUNDS = {torch.float64: AGREEMENT, torch.float32: 2**29 * AGREEMENT}


def main(
    factory: str, *, input: str, out: Path, arguments: str = "{}", target: str = "grammar", seed: Seed = 0
) -> None:
    """Rewrite a torch model into affine maps, ReLU and concatenation, compare it with the original, write it to a file.

    Exit status 2, and no file, where it differs by more than rounding: relatively 1e-12 in float64, 5.4e-4 in float32.

    Args:
        factory: MODULE:FACTORY, a callable that returns the model, e.g. torchvision.models:resnet18.
        input: The shape of the input, batch first, e.g. 1,3,64,64; shapes of several inputs separated by spaces.
        out: The file: .onnx, .pt2 (torch.export), or .safetensors (the canonical network as sparse matrices).
        arguments: Keyword arguments of the factory, as JSON, e.g. '{"num_classes": 10}'.
        target: The form: grammar, or keep_add, which leaves additions as they are (Proposition 1).
        seed: The seed of the model's random weights and of the random inputs.
    """
    check_file(out, suffixes=SUFFIXES)
    targets.find(target)
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape_of(text) for text in input.split()]
    model = from_factory(factory, arguments, seed=seed).double()
    with tqdm(
        total=4,
        desc="rewrite",
        leave=False,
        disable=None,
        bar_format="{desc:9} |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}]",
    ) as bar:
        example = tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        plain = rewrite(model, example, target)
        _advance(bar, "compare")
        inputs = [torch.randn(SAMPLES, *shape[1:], generator=generator, dtype=torch.float64) for shape in shapes]
        double = _within_bound(model, plain, inputs)
        shape = structure(plain)
        _advance(bar, "compare")
        model, plain = model.float(), plain.float()
        single = _within_bound(model, plain, [x.float() for x in inputs])
        _advance(bar, "write")
        example = tuple(x.float() for x in example)
        with whole(out) as temporary:
            if out.suffix == ".safetensors":
                canonical(model, example).save(temporary)
            else:
                export(plain, example, temporary)
        _advance(bar, "done")
    before, after = plain.meta["original_operations"], shape.operations
    print(f"operations  {sum(before.values())} → {sum(after.values())}")
    print(f"  before    {_counts(before)}")
    print(f"  after     {_counts(after)}")
    print(
        f"ReLUs       {shape.relu_count:,} in {shape.depth} layers; at most {max(shape.carried):,} coordinates carried"
    )
    print(f"difference  {double:.1e} in float64, {single:.1e} in float32, relative, {SAMPLES} random inputs")
    print(f"written     {out} ({out.stat().st_size:,} bytes)")


def export(plain: fx.GraphModule, example: tuple[Tensor, ...], path: Path) -> None:
    """Write a rewritten module as ONNX or as a torch.export program, for any batch size. Equal modules give equal
    bytes."""
    twice = tuple(torch.cat((x, x)) for x in example)  # with an example of batch size 1 the size would be fixed
    free = tuple({0: torch.export.Dim("batch")} for _ in example)
    if path.suffix == ".onnx":
        program = torch.onnx.export(plain, twice, dynamo=True, dynamic_shapes=free, verbose=False)
        assert program is not None  # without a file name, the exporter returns the program
        program.save(str(path), external_data=False)
    else:
        exported = torch.export.export(plain, twice, dynamic_shapes=free)
        for node in exported.graph.nodes:
            node.meta.pop("from_node", None)  # it holds addresses in memory
        buffer = io.BytesIO()  # torch writes the name of a file into its archive
        torch.export.save(exported, buffer)
        path.write_bytes(buffer.getvalue())


def _within_bound(model: nn.Module, plain: nn.Module, inputs: list[Tensor]) -> float:
    """The difference of the two modules. Raises InternalError if it is above the bound of the inputs' dtype, or NaN."""
    difference, dtype = _difference(model, plain, inputs), inputs[0].dtype
    if not difference <= BOUNDS[dtype]:
        raise InternalError(
            f"{type(model).__name__}: rewritten, it differs by {difference:.1e} in {str(dtype).removeprefix('torch.')},"
            f" relative to its largest output; {BOUNDS[dtype]:.1e} is accepted. Nothing is written"
        )
    return difference


def _difference(model: nn.Module, plain: nn.Module, inputs: list[Tensor]) -> float:
    """The largest difference of any output entry, relative to the largest entry of that output."""
    with torch.no_grad():
        pairs = zip(_tensors(model(*inputs)), _tensors(plain(*inputs)), strict=True)
        ratios = [
            (a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny) for a, b in pairs if a.numel()
        ]
        if not ratios:
            raise SkipformError(f"{type(model).__name__}: forward returns no number; at least one is accepted")
        return torch.stack(ratios).max().item()


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _counts(operations: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(operations).most_common())


def _advance(bar: tqdm, description: str) -> None:
    bar.set_description_str(description)
    bar.update()
