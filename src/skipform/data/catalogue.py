"""The data sets that are fetched: how much that is, under which licence, and where they come from.

A set that is not listed here comes with an installed package. This file imports nothing, so that a command can tell at
once whether an experiment needs any file.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    size: int  # bytes that are fetched
    licence: str
    home: str  # the page of the set
    by_name: bool = False  # fetched only if it is asked for by its name


CATALOGUE = {
    "bccd": Entry(9_000_000, "MIT", "https://github.com/Shenggan/BCCD_Dataset"),
    "cifar10": Entry(170_498_071, "none stated, citation asked", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "coco2017": Entry(
        20_405_354_669, "annotations CC BY 4.0, photographs Flickr's terms", "https://cocodataset.org", by_name=True
    ),
    "fashion_mnist": Entry(30_878_645, "MIT", "https://github.com/zalandoresearch/fashion-mnist"),
    "isbi2012": Entry(6_493_197, "that of the ISBI 2012 challenge, research", "https://github.com/zhixuhao/unet"),
    "multi30k": Entry(1_296_271, "research, citation asked", "https://github.com/multi30k/dataset"),
    "tiny_shakespeare": Entry(1_115_394, "public domain", "https://github.com/karpathy/char-rnn"),
    "voc2012": Entry(1_999_639_040, "Flickr's terms", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"),
}
