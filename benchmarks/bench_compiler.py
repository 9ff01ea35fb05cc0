"""The cost of rewriting: the time to rewrite, and the time of the rewritten network against the original, per layer.

    python benchmarks/bench_compiler.py            the tables (`make bench`), about 10 minutes on 2 cores
    python benchmarks/bench_compiler.py "relu6"    rows of the table of layers, by name
    python benchmarks/bench_compiler.py sweep      every torchvision and timm model made of piecewise linear operations

A ratio is that of the medians over ROUNDS rounds, in which original and rewritten network alternate, in float32.

Why a row of `grammar` is above 3. On a CPU torch.compile writes every concatenation to memory, like eager torch. A
maximum x, y -> relu(x - y) + y needs one, and another one unless x and y make up a tensor, which moves eight or
thirteen times the bytes of the result; torch.maximum, or the sums of keep_add (Proposition 1), which fuse into one
pass, move three times as many. Of pooling by small windows most of the time is the operating system's, which hands out
fresh memory each time: where the C library keeps what is freed (MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ of
2^35), 2x2 takes 4.6 instead of 12, global pooling 11 instead of 13, and rows of one pass rise, relu6 to 11, since
torch's own pays for fresh memory as well.

max pooling, maximum of halves    that, once per layer of the tree; torch's own pooling reads the image once
global max pooling                twelve layers
average pooling                   a matrix for each band of rows, of whose entries most are zeros
relu6                             two ReLUs with a convolution each, and memory alone decides: 2.1 with additions kept

Where convolutions dominate, as in resnet18, none of this matters.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from skipform.compiler.rewrite import UnsupportedOperation, rewrite
from skipform.errors import SkipformError

ROUNDS = 9
TARGETS = ("grammar", "keep_add", "fast")
IMAGES = (64, 64, 64, 64)


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "max pooling 2x2": (nn.MaxPool2d(2), IMAGES),
    "max pooling 3x3 / 2": (nn.MaxPool2d(3, 2, 1), IMAGES),
    "max pooling 3x3 / 1": (nn.MaxPool2d(3, 1, 1), IMAGES),
    "global max pooling": (nn.AdaptiveMaxPool2d(1), IMAGES),
    "average pooling 2x2": (nn.AvgPool2d(2), IMAGES),
    "global average pooling": (nn.AdaptiveAvgPool2d(1), IMAGES),
    "upsampling, nearest": (nn.Upsample(scale_factor=2), (16, 64, 32, 32)),
    "upsampling, bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (16, 64, 32, 32)),
    "batch norm": (nn.BatchNorm2d(64), IMAGES),
    "relu6": (nn.ReLU6(), IMAGES),
    "leaky relu": (nn.LeakyReLU(0.1), IMAGES),
    "x + relu(x)": (Layer(lambda x: x + torch.relu(x)), IMAGES),
    "maximum of halves": (Layer(lambda x: torch.maximum(*x.chunk(2, 1))), IMAGES),
    "pad, replicate": (Layer(lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")), IMAGES),
    "resnet18": (torchvision.models.resnet18(), (8, 3, 64, 64)),
    "resnet50": (torchvision.models.resnet50(), (8, 3, 64, 64)),
    "densenet121": (torchvision.models.densenet121(), (8, 3, 64, 64)),
}
SIZES = {"inception_v3": 75, "alexnet": 63}  # the smallest legal inputs; SIZE for the others
SIZE = 33
# fmt: off
TIMM = [
    "resnet18d", "resnet26t", "wide_resnet50_2", "densenet121", "dla34", "dla60x", "hrnet_w18_small", "regnetx_002",
    "mobilenetv2_050", "mnasnet_small", "selecsls42b", "vovnet39a", "res2net50_14w_8s", "resnetv2_50", "tresnet_m",
    "cspresnet50", "darknet53", "repvgg_a0", "inception_v3", "inception_v4", "inception_resnet_v2", "xception41",
    "legacy_xception", "nasnetalarge", "pnasnet5large", "vgg11_bn", "hardcorenas_a", "dpn48b", "mobileone_s0",
    "fbnetc_100", "spnasnet_100", "gernet_s", "ghostnet_050", "resnet10t", "seresnet18",
]
# fmt: on


def turns(*functions: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The median seconds of each function; every round runs all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
        function()
    for _ in range(rounds):
        for function, into in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            into.append(time.perf_counter() - start)
    return [statistics.median(s) for s in seconds]


def layers(only: Sequence[str] = ()) -> None:
    """The time of the rewritten layer divided by that of torch's layer, for three targets of rewrite."""
    columns = " ".join(f"{target:>8}" for target in TARGETS)
    print(f"{'layer':24} {'eager ms':>9} {columns} {'compiled ms':>12} {columns}")
    for name, (module, shape) in LAYERS.items():
        if only and name not in only:
            continue
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        module = module.eval()
        forms = [module, *(rewrite(module, x, target) for target in TARGETS)]
        line = f"{name:24}"
        with torch.no_grad():
            for compiled in (False, True):
                torch.compiler.reset()
                runs = [torch.compile(form) if compiled else form for form in forms]
                native, *others = turns(*(lambda run=run, x=x: run(x) for run in runs))
                ratios = " ".join(f"{other / native:8.2f}" for other in others)
                line += f" {native * 1e3:{12 if compiled else 9}.2f} {ratios}"
        print(line, flush=True)


def rewriting() -> None:
    """Seconds to rewrite without the comparison with the original, and the share that the comparison adds."""
    for name, size in (("resnet18", 64), ("resnet50", 64), ("densenet121", 64), ("resnet18", 224)):
        model = torchvision.models.get_model(name, weights=None).eval()
        x = torch.randn(1, 3, size, size)
        plain, checked = turns(lambda: rewrite(model, x, check=False), lambda: rewrite(model, x), rounds=3)  # noqa: B023
        print(f"rewriting {name:12} at {size:3} {plain:5.1f} s, the comparison {checked / plain - 1:+5.0%}", flush=True)


def randomise(model: nn.Module) -> nn.Module:
    """The model with random statistics and scales in its batch norms, so that leaving one out would be noticed."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def compare(model: nn.Module, size: int) -> str:
    """Seconds to rewrite and the largest difference relative to the largest output, in float64 and float32."""
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = model.double()
    start = time.perf_counter()
    plain = rewrite(model, x[:1])
    seconds = time.perf_counter() - start
    differences = []
    for dtype in (torch.float64, torch.float32):
        model, plain, x = model.to(dtype), plain.to(dtype), x.to(dtype)
        with torch.no_grad():
            a, b = (y["out"] if isinstance(y, dict) else y for y in (model(x), plain(x)))
        differences.append(((a - b).abs().max() / a.abs().max()).item())
    return f"{seconds:6.1f} s  {differences[0]:8.1e}  {differences[1]:8.1e}"


def sweep() -> None:
    """Print one line per model: the accuracy of its rewriting, or why it was refused."""
    import timm

    find, names = torchvision.models.get_model_builder, torchvision.models.list_models(module=torchvision.models)
    builders = [(f"torchvision {name}", find(name), {"weights": None}) for name in names]
    plain = {"weights": None, "weights_backbone": None}
    builders.append(("torchvision fcn_resnet50", find("fcn_resnet50"), plain))
    builders += [(f"timm {name}", lambda name=name: timm.create_model(name), {}) for name in TIMM]
    for name, build, arguments in tqdm(builders, disable=not sys.stderr.isatty()):
        size = SIZES.get(name.split()[1], 75 if "inception" in name else SIZE)
        try:
            line = compare(randomise(build(**arguments)), size)
        except UnsupportedOperation as error:
            line = f"refused: {error}"
        except SkipformError as error:
            line = f"not captured: {error}"
        print(f"{name:36} {line}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:] == ["sweep"]:
        sweep()
    elif sys.argv[1:]:
        layers(sys.argv[1:])
    else:
        rewriting()
        layers()
