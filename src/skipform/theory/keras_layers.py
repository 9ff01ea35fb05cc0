"""Every pooling and merge layer of Keras as the network that Theorems 1 and 2 build for it, on small inputs."""

from typing import Any

from skipform.theory import pooling, skips
from skipform.theory.network import CanonicalNetwork
from skipform.theory.skips import ProductNetwork


def constructors() -> list[dict[str, Any]]:
    """Every pooling and merge under its Keras name, on a small input: depth, widths, ReLUs."""
    one, two, three = (4, 8), (4, 8, 8), (4, 8, 8, 8)
    built: list[tuple[str, str, str, CanonicalNetwork | ProductNetwork]] = []
    for rank, shape in enumerate((one, two, three), start=1):
        built += [
            ("pooling", f"MaxPooling{rank}D", f"window 2, {shape}", pooling.max_pool(shape, 2)),
            ("pooling", f"AveragePooling{rank}D", f"window 2, {shape}", pooling.average_pool(shape, 2)),
            ("pooling", f"GlobalMaxPooling{rank}D", f"{shape}", pooling.global_max_pool(shape)),
            ("pooling", f"GlobalAveragePooling{rank}D", f"{shape}", pooling.global_average_pool(shape)),
        ]
    for rank, shape in enumerate((one, two, three), start=1):
        built += [
            ("adaptive", f"AdaptiveMaxPooling{rank}D", f"to 5, {shape}", pooling.adaptive_max_pool(shape, 5)),
            ("adaptive", f"AdaptiveAveragePooling{rank}D", f"to 5, {shape}", pooling.adaptive_average_pool(shape, 5)),
        ]
    for name, shallow in (("MaxPooling2D", False), ("MaxPooling2D, shallow", True)):
        network = pooling.max_pool(two, 3, stride=2, padding=1, shallow=shallow)
        built.append(("pooling", name, f"window 3, stride 2, padding 1, {two}", network))
    for merge in (skips.add, skips.average, skips.maximum, skips.minimum, skips.concatenate):
        name = merge.__name__.title()  # Add, Average, ...
        built += [("merge", name, f"{n} inputs (4,)", merge(*[(4,)] * n)) for n in (2, 3, 9)]
    built.append(("merge", "Subtract", "2 inputs (4,)", skips.subtract((4,), (4,))))
    for form in ("log", "squares"):
        built += [
            ("merge", f"Multiply, {form}", f"{n} inputs (4,)", skips.multiply(*[(4,)] * n, form=form))
            for n in (2, 3, 9)
        ]
        built.append(("merge", f"Dot, {form}", "2 inputs (4,)", skips.dot((4,), (4,), axes=1, form=form)))
    return [
        {
            "kind": kind,
            "name": name,
            "instance": instance,
            "depth": network.depth,
            "widths": list(network.widths),
            "relu_count": network.relu_count if isinstance(network, CanonicalNetwork) else None,
            "activations": sorted(set(network.activations))
            if isinstance(network, ProductNetwork)
            else ["relu"] * (network.depth > 0),
        }
        for kind, name, instance, network in built
    ]
