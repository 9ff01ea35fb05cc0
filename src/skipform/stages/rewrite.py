"""`skipform rewrite`: a torch model as affine maps, ReLU and concatenation, written to a file."""

import io
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from skipform.arguments import Factor, Seed
from skipform.compiler import onnx_file, targets
from skipform.compiler.check import AGREEMENT
from skipform.compiler.flatten import canonical, structure
from skipform.compiler.rewrite import rewrite
from skipform.compiler.targets import Settings
from skipform.errors import InternalError, SkipformError
from skipform.files import whole
from skipform.outputs import check_file
from skipform.stages.models import from_factory, from_file, is_file, shape_of

SUFFIXES = (".onnx", ".pt2", ".safetensors")
SAMPLES = 4  # random inputs in the comparison; their batch size differs from that of the example
# The largest relative difference of a file that is written. A network does the same sums in float32 as in float64, each
# rounded 2^29 times as coarsely: 5.4e-4.
BOUNDS = {torch.float64: AGREEMENT, torch.float32: 2**29 * AGREEMENT}


def main(
    factory: str,
    *,
    input: str | None = None,
    out: Path,
    arguments: str = "{}",
    target: str = "grammar",
    box: list[float] | None = None,
    memory_gib: Factor = 4.0,
    seed: Seed = 0,
) -> None:
    """Rewrite a torch model into affine maps, ReLU and concatenation, compare it with the original, write it to a file.

    Exit status 2, and no file, where it differs by more than rounding: relatively 1e-12 in float64, 5.4e-4 in float32.

    Args:
        factory: MODULE:FACTORY, a callable that returns the model, e.g. torchvision.models:resnet18; or an ONNX file,
            e.g. model.onnx, whose shapes are the file's.
        input: For MODULE:FACTORY, the shape of the input, batch first, e.g. 1,3,64,64; shapes of several inputs
            separated by spaces.
        out: The file: .onnx, .pt2 (torch.export), or .safetensors (the canonical network as sparse matrices).
        arguments: Keyword arguments of the factory, as JSON, e.g. '{"num_classes": 10}'.
        target: The form: grammar; keep_add, which leaves additions as they are; fast (torch's own operations);
            verifier (Conv, Gemm, Relu, Add, Concat, Flatten, Reshape); perceptron (a chain Gemm, Relu, Gemm, ...).
        box: The lowest and the highest number of an input, e.g. [0, 1]: a perceptron that equals the model between them
            only is smaller.
        memory_gib: A target whose matrices need more memory than this is refused.
        seed: The seed of the model's random weights and of the random inputs.
    """
    check_file(out, suffixes=SUFFIXES)
    form = targets.find(target)
    if box is not None and (len(box) != 2 or not box[0] <= box[1]):
        raise SkipformError(f"--box {box}: the lowest and the highest number of an input are accepted, e.g. [0, 1]")
    limits = None if box is None else (box[0], box[1])
    memory = int(memory_gib * 2**30)
    sparse = target == "perceptron" and out.suffix == ".safetensors"
    generator = torch.Generator().manual_seed(seed)
    model, shapes = _model(factory, input, arguments, seed)
    model = model.double()
    with tqdm(
        total=4,
        desc="rewrite",
        leave=False,
        disable=None,
        bar_format="{desc:9} |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}]",
    ) as bar:
        example = tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        # The sparse perceptron is made of the canonical network below; its dense form may be too large.
        plain = rewrite(model, example, "keep_add" if sparse else target, box=limits, memory=memory)
        _advance(bar, "compare")
        inputs = [torch.randn(SAMPLES, *shape[1:], generator=generator, dtype=torch.float64) for shape in shapes]
        if limits:
            inputs = [x.clamp(*limits) for x in inputs]
        double = _within_bound(model, plain, inputs)
        shape = structure(plain)
        _advance(bar, "compare")
        model, plain = model.float(), plain.float()
        single = _within_bound(model, plain, [x.float() for x in inputs])
        _advance(bar, "write")
        example = tuple(x.float() for x in example)
        with whole(out) as temporary:
            if sparse:
                form.network(model, example, Settings(True, limits, memory)).save(temporary)
            elif out.suffix == ".safetensors":
                canonical(model, example, memory).save(temporary)
            elif out.suffix == ".onnx" and target in ("verifier", "perceptron"):
                onnx_file.save(plain, temporary)
            else:
                export(plain, example, temporary)
        _advance(bar, "done")
    before, after = plain.meta["original_operations"], shape.operations
    print(f"operations  {sum(before.values())} → {sum(after.values())}")
    print(f"  before    {_counts(before)}")
    print(f"  after     {_counts(after)}")
    if target != "fast":  # which has maxima that are no ReLUs
        carried = max(shape.carried)
        print(f"ReLUs       {shape.relu_count:,} in {shape.depth} layers; at most {carried:,} coordinates carried")
    print(f"difference  {double:.1e} in float64, {single:.1e} in float32, relative, {SAMPLES} random inputs")
    print(f"written     {out} ({out.stat().st_size:,} bytes)")


def _model(source: str, input: str | None, arguments: str, seed: Seed) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """The model in eval mode and the shapes of its inputs, batch first."""
    if is_file(source):
        return from_file(source, input, arguments)
    if input is None:
        raise SkipformError(f"{source}: --input is missing; MODULE:FACTORY takes a shape, batch first, e.g. 1,3,64,64")
    shapes = [shape_of(text) for text in input.split()]
    return from_factory(source, arguments, seed=seed), shapes


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
