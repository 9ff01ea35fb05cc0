"""What of a trained net is measured: a map of one real tensor to another, and the inputs at which it is measured.

A classifier is measured as it is, on whole test images. The other nets are cut down, so that a measurement stays
affordable on a CPU, and what is cut is stated in the record:

    task             input                                         output
    segment          the central SIDE x SIDE pixels of an image    the scores of all pixels
    detect           the same                                      scores and boxes, before the choice among them
    translate        embeddings of TOKENS tokens of the source     scores of the target's tokens
                     and of as many of the target
    language_model   embeddings of the first TOKENS tokens         scores of all tokens

A text is not a real tensor: such a net is measured as a function of the embeddings of its tokens.

n batch, c channels, h w image, t tokens, d width.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from skipform.errors import SkipformError
from skipform.nets.blocks import Gated, Skip
from skipform.runs import Run

SIDE, TOKENS = 256, 8
# The names of parts whose outputs are a net's representations, besides the blocks with a skip.
LAYERS = re.compile(r"(.*\.)?(layers|encoder|decoder|stages|down|up|steps|pyramid\.outs)\.\d+")


@dataclass(frozen=True)
class Subject:
    """A net to be measured: `net` maps a batch of `inputs` (N, *shape), in float64, to one tensor."""

    net: nn.Module
    inputs: Tensor
    classifier: bool = False

    def layers(self) -> list[str]:
        """The names of the parts whose outputs are the representations of the net, in the order of their definition:
        its blocks with a skip, its layers, and its stages that contain none of them."""
        names = [
            name
            for name, part in self.net.named_modules()
            if re.fullmatch(LAYERS, name) or isinstance(part, Skip | Gated)
        ]
        return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]

    def features(self) -> str:
        """The representation that the last map reads: the last one, of a pyramid the finest map."""
        names = self.layers()
        return next((name for name in names if name.endswith("pyramid.outs.0")), names[-1])


def subject(run: Run, moment: Literal["initial", "final"], count: int) -> Subject:
    """The net of a run before or after training, with its first `count` test inputs; of a classifier with all."""
    net, task = run.net(moment), run.config["task"]["name"]
    if task == "classify":
        return Subject(net, run.test_images(), classifier=True)
    examples = _examples(run.data().val_dataloader()[-1])
    if task in ("segment", "detect"):
        images = [_unpadded(*example) for example in islice(examples, count)]
        side = side_within(net, min(SIDE, *(size for image in images for size in image.shape[-2:])))
        return Subject(on_pixels(net), torch.stack([_centre(image, side) for image in images]).double())
    sides = 2 if task == "translate" else 1
    pairs = ([side[:TOKENS] for side in example[:sides]] for example in examples)
    texts = list(islice((pair for pair in pairs if all(_is_whole(net, side) for side in pair)), count))
    return on_embeddings(net, texts)


def on_pixels(net: nn.Module) -> nn.Module:
    """The net as a map from images (n, c, h, w) to one tensor."""
    if isinstance(getattr(net, "head", None), nn.Module) and hasattr(net, "anchor_generator"):
        return DenseDetector(net).eval()
    return SetDetector(net).eval() if hasattr(net, "queries") else net


class DenseDetector(nn.Module):
    """A detector of torchvision's kind: images (n, c, h, w) -> (n, anchors, classes + 4), the scores of all classes and
    the corrections of the box at every anchor; before the choice of boxes, which is no function of one region."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = net.get_submodule("backbone"), net.get_submodule("head")
        self.multiple = int(net.transform.size_divisible)  # type: ignore[union-attr, arg-type]

    def forward(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        padded = functional.pad(images, (0, -w % self.multiple, 0, -h % self.multiple))
        return torch.cat(list(self.head(list(self.backbone(padded).values())).values()), -1)


class SetDetector(nn.Module):
    """A net like DETR: images (n, c, h, w) -> (n, queries, classes + 1 + 4), the logits and the box of every query."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        found = self.net(images)
        return torch.cat([found["logits"], found["boxes"]], -1)


class OnEmbeddings(nn.Module):
    """A net on tokens as a function of their embeddings: (n, t, d), those of all its texts one after another, -> the
    scores of tokens. The embeddings replace what the net's embeddings of tokens return."""

    def __init__(self, net: nn.Module, lengths: list[int]) -> None:
        super().__init__()
        self.net, self.lengths = net, lengths
        for part in embeddings(net):
            # torch.func gives a net its parameters as plain tensors, which get_parameter would refuse.
            part.get_parameter = part.__getattr__  # type: ignore[method-assign, assignment]

    def forward(self, x: Tensor) -> Tensor:
        texts = x.split(self.lengths, 1)
        given = iter(texts)
        # A token that is not padding stands for all; only their number is read.
        tokens = [torch.ones(text.shape[:2], dtype=torch.int64, device=x.device) for text in texts]
        handles = [part.register_forward_hook(lambda *_: next(given)) for part in embeddings(self.net)]
        try:
            return self.net(*tokens)
        finally:
            for handle in handles:
                handle.remove()


def embeddings(net: nn.Module) -> list[nn.Embedding]:
    """The embeddings of tokens, in the order in which the net reads its texts; BERT's of segments is none of them."""
    found = [(name, part) for name, part in net.named_modules() if isinstance(part, nn.Embedding)]
    return [part for name, part in found if not name.endswith("segments")]


@torch.no_grad()
def on_embeddings(net: nn.Module, texts: list[list[Tensor]]) -> Subject:
    """The subject of a net on tokens. texts: for every input the tokens of its texts, of equal length each."""
    tables = embeddings(net)
    tables = tables if len(tables) > 1 else tables * len(texts[0])
    vectors = [torch.cat([table(side) for table, side in zip(tables, sides, strict=True)]) for sides in texts]
    lengths = [len(side) for side in texts[0]]
    return Subject(OnEmbeddings(net, lengths).eval(), torch.stack(vectors).double())


def side_within(net: nn.Module, most: int) -> int:
    """The largest side of an image, at most `most`, that the net takes; a net with `check` (U-Net) does not take all.

    Raises SkipformError if it takes none of them."""
    check = getattr(net, "check", None)
    if check is None:
        return most
    for side in range(most, 0, -1):
        try:
            check(side, side)
        except SkipformError:
            continue
        return side
    raise SkipformError(f"measure: images of {most}x{most} pixels; {type(net).__name__} takes none so small")


def _examples(loader: Any) -> Iterator[tuple[Any, ...]]:
    for batch in loader:
        yield from zip(*batch, strict=True)


def _unpadded(image: Tensor, target: Any, *_: Any) -> Tensor:
    h, w = target["size"] if isinstance(target, dict) else image.shape[-2:]
    return image[:, :h, :w]


def _centre(image: Tensor, side: int) -> Tensor:
    top, left = ((size - side) // 2 for size in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


def _is_whole(net: nn.Module, text: Tensor) -> bool:
    """Whether the text has TOKENS tokens that are not padding."""
    return len(text) == TOKENS and not bool((text == getattr(net, "pad", -1)).any())
