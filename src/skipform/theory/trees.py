"""Theorem 1 as trees: which maxima are made from which, layer by layer, for one window or for many that overlap.

A window is a tuple of input indices. A tree is a list of layers, the one that reads the input first. A layer maps each
window whose maximum it provides to the windows of the layer before from which that maximum is made:

    (0, 1): ((0,), (1,))     a pair (left, right) whose union is the window: relu(max(left) - max(right)) + max(right)
    (2,): ((2,),)            a single window: its maximum is carried along unchanged

A maximum that several windows need is computed once. `pooling.tree_maxima` turns any such tree into a canonical
network, and `skipform verify` proves the networks of both kinds: `pair_tree`, which the constructions of Theorem 1 and
nets/pooled.py follow, and `half_tree`, which the compiler follows.
"""

from collections.abc import Iterable

from skipform.errors import SkipformError

Window = tuple[int, ...]
Layer = dict[Window, tuple[Window, ...]]


def tree_depth(n: int) -> int:
    """ceil(log2 n): the activation layers of a tree for the maximum of n numbers (Theorem 1)."""
    return (n - 1).bit_length()


def pair_tree(windows: Iterable[Window], depth: int | None = None) -> list[Layer]:
    """Disjoint pairs, and so the fewest ReLUs: n - 1 for a window of n indices.

    depth: ceil(log2 n) for the largest window unless more layers are asked for. In layer k, counted from 1, the left
    part of a pair has 2^(k-1) indices, or all but one of a window that has no more. So no layer is empty unless there
    are more than n - 1 of them; then the first ones are.
    Raises SkipformError if `depth` is less than ceil(log2 n).
    """
    windows = list(windows)
    largest = max(map(len, windows))
    least = tree_depth(largest)
    depth = least if depth is None else depth
    if depth < least:
        raise SkipformError(f"maximum of {largest} numbers: depth {depth}; at least {least} is accepted")
    layers: list[Layer] = []
    for k in range(depth, 0, -1):
        layers.append({window: disjoint_parts(window, largest_left=2 ** (k - 1)) for window in windows})
        windows = parts_of(layers[-1])
    return layers[::-1]


def half_tree(windows: Iterable[Window]) -> list[Layer]:
    """Halves of equal size, depth ceil(log2 n): all windows must have n indices, which may repeat.

    A window is the union of its first and its last ceil(n / 2) indices, which share one if n is odd. So all windows of
    a layer are of one size, and a tensor program computes a layer by one difference, one ReLU and one sum. Windows of
    three indices are the exception where they have few halves in common, more than 3/2 different halves per window:
    they become their first two indices and the third alone, which is carried past the layer of the pairs.
    """
    windows = list(dict.fromkeys(windows))
    layers: list[Layer] = []
    carried: list[Window] = []
    while (n := len(windows[0])) > 1:
        size = (n + 1) // 2
        layer: Layer = {window: (window[:size], window[n - size :]) for window in windows}
        parts, third_indices = sorted(set(parts_of(layer))), []
        if n == 3 and len(parts) > 1.5 * len(windows):
            layer = {window: (window[:2], window[2:]) for window in windows}
            parts = list(dict.fromkeys(window[:2] for window in windows))
            third_indices = list(dict.fromkeys(window[2:] for window in windows))
        layers.append(layer | {index: (index,) for index in carried})
        windows, carried = parts, third_indices
    return layers[::-1]


def parts_of(layer: Layer) -> list[Window]:
    """The windows that a layer reads, without repetition: the parts of its pairs first, then what it only carries."""
    paired = [part for parts in layer.values() if len(parts) == 2 for part in parts]
    return list(dict.fromkeys([*paired, *(parts[-1] for parts in layer.values())]))


def disjoint_parts(window: Window, largest_left: int) -> tuple[Window, ...]:
    """The first `largest_left` indices (all but the last of a smaller window) and the rest; one index stays alone."""
    if len(window) == 1:
        return (window,)
    left = min(len(window) - 1, largest_left)
    return window[:left], window[left:]
