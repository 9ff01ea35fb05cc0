"""Chains of torch's own layers are read as torch.export would capture them, and all other modules are left to it."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn.utils import parametrizations

from skipform.compiler import rewrite as compiler
from skipform.compiler.sequential import read

SHAPES = ((6,), (2, 7), (2, 8, 6), (1, 4, 4, 5))


def drawn_layer(draw, sizes: tuple[int, ...]) -> nn.Module:
    """A layer that takes inputs of the sizes (channels, ...)."""
    rank, channels, few = len(sizes) - 1, sizes[0], st.integers(1, 3)
    kernel = draw(st.integers(1, min([3, *sizes[1:]])))
    makers = {
        "linear": lambda: nn.Linear(sizes[-1], draw(few), bias=draw(st.booleans())),
        "relu": lambda: nn.ReLU(inplace=draw(st.booleans())),
        "identity": nn.Identity,
        "dropout": lambda: nn.Dropout(0.3),
        "flatten": lambda: nn.Flatten(draw(st.integers(1, len(sizes)))),
        "nested": lambda: nn.Sequential(nn.ReLU(), nn.Sequential(), nn.Linear(sizes[-1], 2)),
    }
    if rank <= 3:
        norm = getattr(nn, f"BatchNorm{max(rank, 1)}d")
        makers["norm"] = lambda: norm(channels, affine=draw(st.booleans()), momentum=draw(st.sampled_from([None, 0.1])))
    if rank:
        groups = draw(st.sampled_from([1, channels]))
        padding = draw(st.sampled_from([0, 1, (1,) * rank, "same"]))
        window = {"stride": draw(few), "ceil_mode": draw(st.booleans()), "padding": draw(st.integers(0, kernel // 2))}
        makers |= {
            "conv": lambda: getattr(nn, f"Conv{rank}d")(
                channels, groups * draw(few), kernel, 1 if padding == "same" else draw(few), padding, groups=groups
            ),
            "max": lambda: getattr(nn, f"MaxPool{rank}d")(kernel, **window),
            "average": lambda: getattr(nn, f"AvgPool{rank}d")(kernel, count_include_pad=draw(st.booleans()), **window),
        }
    return makers[draw(st.sampled_from(sorted(makers)))]()


@st.composite
def sequentials(draw) -> tuple[nn.Module, torch.Tensor]:
    """A chain of up to five layers in eval mode with random statistics, and an input."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    sizes, layers = draw(st.sampled_from(SHAPES)), []
    x = torch.randn(draw(st.integers(1, 3)), *sizes, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(draw(st.integers(0, 2**20)))
        for _ in range(draw(st.integers(1, 5))):
            layer = drawn_layer(draw, sizes).to(dtype).eval()
            layers.append(layer)
            sizes = tuple(layer(torch.zeros(2, *sizes, dtype=dtype)).shape[1:])
        for norm in layers:
            if hasattr(norm, "running_var"):
                norm.running_var.uniform_(0.5, 2)
                norm.running_mean.normal_()
    if layers and draw(st.booleans()):
        layers.append(layers[0] if isinstance(layers[0], nn.ReLU) else nn.ReLU())  # a module that stands twice
    return nn.Sequential(*layers).eval(), x


def both_ways(module: nn.Module, x: torch.Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The module rewritten from what `read` reads, and from what torch.export captures."""
    ours = compiler.rewrite(module, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "read", lambda module, inputs: None)
        return ours, compiler.rewrite(module, x)


@given(drawn=sequentials())
@settings(max_examples=15)
def test_a_sequential_is_rewritten_as_from_torch_export(drawn):
    module, x = drawn
    assume(any(type(part) not in (nn.Sequential, nn.Identity) for part in module.modules()))
    assume(read(module, (x,)) is not None)  # None: a ReLU in place on the input or a view of it
    ours, slow = both_ways(module, x)
    assert ours.code == slow.code
    assert ours.meta["original_operations"] == slow.meta["original_operations"]
    for (name, one), (other_name, other) in zip(ours.named_buffers(), slow.named_buffers(), strict=True):
        assert name == other_name
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    for one, other in zip(ours.graph.nodes, slow.graph.nodes, strict=True):
        assert one.meta.get("batch_dim") == other.meta.get("batch_dim")
        assert one.name == other.name


def hooked(name: str) -> nn.Module:
    net = chain()
    getattr(net[0], name)(lambda *given: None)
    return net


def replaced(method: str) -> nn.Module:
    net = chain()
    setattr(net[0], method, getattr(net[0], method))
    return net


def without_parameter() -> nn.Module:
    net = chain()
    weight = net[0].weight.data
    del net[0].weight
    net[0].weight = weight
    return net


def chain(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), *more).eval()


class Doubling(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Named(nn.Sequential):
    pass


IMAGE = (1, 2, 5, 5)
OTHERS = {
    "a hook": (hooked("register_forward_hook"), (1, 3)),
    "a hook before": (hooked("register_forward_pre_hook"), (1, 3)),
    "a backward hook": (hooked("register_full_backward_hook"), (1, 3)),
    "a forward of its own": (replaced("forward"), (1, 3)),
    "a method of its own": (replaced("extra_repr"), (1, 3)),
    "a weight that is no parameter": (without_parameter(), (1, 3)),
    "a parametrization": (chain(parametrizations.weight_norm(nn.Linear(3, 3))), (1, 3)),
    "a subclass": (chain(Doubling(3, 3)), (1, 3)),
    "a subclass of Sequential": (Named(nn.Linear(3, 3)).eval(), (1, 3)),
    "another layer": (chain(nn.LeakyReLU()), (1, 3)),
    "training mode": (chain().train(), (1, 3)),
    "weights of another dtype": (chain().double(), (1, 3)),
    "an input that does not fit": (chain(), (1, 4)),
    "an image without channels": (nn.Conv2d(1, 2, 3).eval(), (1, 5, 5)),
    "more channels than a norm has": (nn.BatchNorm2d(3).eval(), IMAGE),
    "padding with other values": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect").eval(), IMAGE),
    "statistics of the batch": (nn.BatchNorm2d(2, track_running_stats=False).eval(), IMAGE),
    "indices of maxima": (nn.MaxPool2d(2, return_indices=True).eval(), IMAGE),
    "an input written in place": (nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)).eval(), (1, 3)),
    "no operation": (nn.Sequential(nn.Identity()).eval(), (1, 3)),
    "a batch that is flattened": (nn.Sequential(nn.Flatten(0)).eval(), IMAGE),
    "a window larger than its input": (nn.MaxPool2d(6).eval(), IMAGE),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_chain_of_known_layers_is_left_to_torch_export(case):
    module, shape = OTHERS[case]
    assert read(module, (torch.zeros(shape),)) is None


def test_a_hook_on_all_modules_and_two_inputs_are_left_to_torch_export():
    x = torch.zeros(1, 3)
    assert read(chain(), (x,)) is not None
    assert read(chain(), (x, x)) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        assert read(chain(), (x,)) is None
    finally:
        handle.remove()
