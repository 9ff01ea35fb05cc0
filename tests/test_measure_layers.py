"""Ranks layer by layer and of projected Jacobians, and what of the nets of every task is measured."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from skipform import nets
from skipform.errors import SkipformError
from skipform.measure import functional_dimension, jacobian_rank
from skipform.measure.layers import OUTPUT, layer_ranks
from skipform.measure.projection import Projection, gaussian
from skipform.measure.rank import MEMORY, Rank, _bytes_of_pass, _jacobian_bytes
from skipform.stages.measure import BATCH, DIRECTIONS, PROJECTED, bound, operations, projected, share_within
from skipform.stages.subjects import SIDE, TOKENS, Subject, on_embeddings, on_pixels, side_within
from skipform.training.experiment import read

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "survey"


def seeded(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for m, n in pairwise(sizes):
        parts += [nn.Linear(m, n), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).eval()


@given(rank=st.integers(0, 6), rows=st.integers(1, 8), d=st.integers(1, 400), seed=st.integers(0, 2**20))
def test_a_projection_is_linear_and_keeps_the_rank(rank: int, rows: int, d: int, seed: int) -> None:
    left, right = gaussian(rows, rank or 1, seed), gaussian(rank or 1, d, seed + 1)
    matrix = left @ right if rank else torch.zeros(rows, d, dtype=torch.float64)
    projection = Projection(d, 4 * rows, seed)
    assert Rank.of(projection(matrix)).rank == min(rank, rows, d)
    twice = projection(2 * matrix[:1] + matrix[-1:])
    # Sums of 4 d products of normal numbers, each of size at most 40: rounded within their number times their size.
    assert torch.allclose(twice, 2 * projection(matrix[:1]) + projection(matrix[-1:]), rtol=0, atol=4 * d * 40 * 2**-50)


def test_the_rank_of_every_layer_is_that_of_the_net_up_to_it() -> None:
    net, x = seeded(6, 5, 3, 4), torch.randn(6, dtype=torch.float64)
    found = layer_ranks(net, x, ["0", "2", "4"])
    for name, end in (("0", 1), ("2", 3), ("4", 5), (OUTPUT, 5)):
        alone = jacobian_rank(net[:end].eval(), x)
        assert (found[name].rank, found[name].shape) == (alone.rank, alone.shape)
    assert [found[name].rank for name in ("0", "2", "4")] == [5, 3, 3]


@given(directions=st.integers(1, 8))
def test_fewer_directions_give_the_smaller_of_their_number_and_the_rank(directions: int) -> None:
    net, x = seeded(8, 3, 7), torch.randn(8, dtype=torch.float64)
    found = layer_ranks(net, x, ["2"], directions=directions)[OUTPUT]
    assert (found.rank, found.shape) == (min(directions, 3), (7, directions))


def test_outputs_beyond_the_memory_are_projected_with_the_same_rank() -> None:
    net, x = seeded(6, 3, 200), torch.randn(6, dtype=torch.float64)
    room = 4 * 8 * 6 * 199  # for 199 numbers of a layer along six directions; there are 200
    assert layer_ranks(net, x, ["0"], memory=room)[OUTPUT].by == "projection"
    assert layer_ranks(net, x, ["0"], memory=room)[OUTPUT].rank == 3
    assert layer_ranks(net, x, ["0"], memory=room // 199 * 200)[OUTPUT].shape == (200, 6)


def test_a_layer_that_is_not_called_is_refused() -> None:
    net = seeded(3, 3)
    net.append(nn.Identity().eval())
    net.forward = net[0].forward  # type: ignore[method-assign]
    with pytest.raises(SkipformError, match="1: not called"):
        layer_ranks(net, torch.zeros(3), ["1"])


def test_a_functional_dimension_beyond_the_memory_is_that_of_the_projected_jacobian() -> None:
    net, x = seeded(4, 30, 2), torch.randn(3, 4, dtype=torch.float64)
    whole, size = functional_dimension(net, x), sum(p.numel() for p in net.parameters())
    exact = functional_dimension(net, x, memory=_jacobian_bytes(6, size))
    less = functional_dimension(net, x, memory=_jacobian_bytes(6, size) - 1)
    assert (exact.by, less.by, less.shape) == ("rows", "projection", (6, size))
    assert less.rank == exact.rank == whole.rank == 6
    with pytest.raises(SkipformError, match="Jacobian of 6 x 24 needs"):  # even the projected one is too large
        functional_dimension(net, x, memory=100)


def tiny(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return nets.build(name, **arguments).eval()


def subjects() -> dict[str, Subject]:
    """A small net of every kind that is not measured as it is."""
    texts = [[torch.arange(1, TOKENS + 1) + k] for k in range(4)]
    pairs = [[text, text.flip(0)] for (text,) in texts]
    small = {"width": 8, "heads": 2, "depth": 1}
    backbone = {"name": "resnet", "in_channels": 1, "depth": 18, "width": 4, "stages": 4}
    images = torch.rand(4, 1, 40, 40, dtype=torch.float64)
    fpn = tiny("fpn", backbone=backbone, head="retinanet", channels=8, levels=2, anchors=[8, 16], num_classes=3)
    ends = {"encoder_depth": 1, "decoder_depth": 1, "width": 8, "heads": 2, "hidden": 8, "num_classes": 3}
    detr = tiny("detr", backbone=backbone | {"depth": 8, "stages": 3}, queries=2, **ends)
    return {
        "gpt": on_embeddings(tiny("gpt", vocab_size=20, context=16, **small), texts),
        "bert": on_embeddings(tiny("bert", vocab_size=20, context=16, **small), texts),
        "one vocabulary": on_embeddings(tiny("transformer", vocab_size=20, hidden=8, **small), pairs),
        "two": on_embeddings(tiny("transformer", vocab_size=20, source_vocab_size=30, hidden=8, **small), pairs),
        "fpn": Subject(on_pixels(fpn), images),
        "detr": Subject(on_pixels(detr), images),
    }


def test_a_net_on_embeddings_is_the_net_on_their_tokens() -> None:
    for name, subject in subjects().items():
        if name in ("fpn", "detr"):
            continue
        pair = [torch.arange(1, TOKENS + 1)[None]] * len(subject.net.lengths)
        pair = [pair[0], pair[0].flip(1)][: len(pair)]
        with torch.no_grad():
            assert torch.equal(subject.net(subject.inputs[:1].float()), subject.net.net(*pair)), name


def test_a_detector_on_pixels_gives_what_its_parts_give() -> None:
    made = subjects()
    images = made["fpn"].inputs.float()
    detector, queries = made["fpn"].net, made["detr"].net
    more = -images.shape[-1] % detector.multiple
    with torch.no_grad():
        features = list(detector.backbone(nn.functional.pad(images, (0, more, 0, more))).values())
        assert torch.equal(detector(images)[..., :3], detector.head(features)["cls_logits"])
        assert torch.equal(queries(images)[..., -4:], queries.net(images)["boxes"])


@pytest.mark.parametrize("name", ["gpt", "bert", "one vocabulary", "two", "fpn", "detr"])
def test_ranks_of_every_kind_of_net_are_within_their_sizes(name: str) -> None:
    subject = subjects()[name]
    names = subject.layers()
    found = layer_ranks(subject.net, subject.inputs[0], names, directions=16)
    assert names
    assert subject.features() in names
    for layer in found.values():
        assert 0 < layer.rank <= min(layer.shape)
        assert layer.shape[1] == 16
    narrow = projected(subject.net, subject.inputs, PROJECTED)
    assert functional_dimension(narrow, subject.inputs[:2]).shape[0] == 2 * PROJECTED


def test_the_side_of_an_image_is_the_largest_that_the_net_takes() -> None:
    unpadded = tiny("unet", levels=2, width=2)
    sides = [side for side in range(1, 70) if unpadded.least <= side and (side - unpadded.least) % unpadded.step == 0]
    assert side_within(unpadded, 69) == sides[-1]
    assert side_within(nn.Identity(), 69) == 69
    with pytest.raises(SkipformError, match="takes none so small"):
        side_within(unpadded, unpadded.least - 1)


def test_the_share_of_a_segment_halves_until_its_cuts_fit() -> None:
    from skipform.measure.program import Program

    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    program = Program.of(net, torch.zeros(2))
    assert [share_within(passes, program) for passes in (8, 7.9, 4, 1)] == [1, 0.5, 0.5, 0.125]
    assert bound(program) == pytest.approx(torch.tensor(9.0).log10().item())  # 8 ReLUs cut a segment into 9 regions


SURVEYED = sorted(EXPERIMENTS.glob("*.yaml"))


@pytest.mark.parametrize("file", SURVEYED, ids=lambda file: file.stem)
def test_every_net_of_the_survey_at_scale_paper_is_measured_within_the_memory(file: Path) -> None:
    """On the meta device: what one row of a Jacobian takes, by inputs and by parameters, and one forward pass."""
    experiment = read(file, "paper")
    for label, block in experiment.variants.items():
        with torch.device("meta"):
            net = nets.build(**block).eval()
        x, net = paper_subject(experiment.task["name"], net)
        with torch.no_grad():
            pass_of_one = _bytes_of_pass(net, x)
        assert pass_of_one <= MEMORY, label
        parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
        assert 2 * 8 * parameters <= MEMORY, label
        assert _jacobian_bytes(4 * max(DIRECTIONS), max(DIRECTIONS)) <= MEMORY
        assert _jacobian_bytes(BATCH * PROJECTED, 4 * BATCH * PROJECTED) <= MEMORY


def paper_subject(task: str, net: nn.Module) -> tuple[Tensor, nn.Module]:
    """An input of a net of scale paper and the map that is measured, on the meta device."""
    if task in ("segment", "detect"):
        channels = next(part.in_channels for part in net.modules() if isinstance(part, nn.Conv2d))
        side = side_within(net, SIDE)
        return torch.empty(channels, side, side, device="meta"), on_pixels(net)
    if task == "classify":
        return torch.empty(3, 32, 32, device="meta"), net
    texts = 2 if task == "translate" else 1
    width = next(part.embedding_dim for part in net.modules() if isinstance(part, nn.Embedding))
    with torch.device("meta"):
        mapped = on_embeddings(net, [[torch.ones(TOKENS, dtype=torch.int64)] * texts]).net
    return torch.empty(TOKENS * texts, width, device="meta"), mapped


class Queries(nn.Module):
    """x (n, 3) -> x + W q (n, 3), whose part reads a parameter, as the decoder of DETR does."""

    def __init__(self):
        super().__init__()
        self.q, self.part = nn.Parameter(torch.ones(1, 5)), nn.Linear(5, 3)

    def forward(self, x):
        return x + self.part(self.q)


def test_operations_are_counted_where_a_part_reads_a_parameter():
    net = Queries()
    assert operations(net, torch.zeros(1, 3)) == 2 * 5 * 3
    assert net.q.requires_grad
