"""Every pooling and merge layer of Keras as affine maps, ReLU and concatenation; products by log, exp or squares."""

import os

import numpy as np
import pytest
import torch

from skipform.theory import pooling, rounding, skips
from skipform.theory.keras_layers import constructors


def close(network, x, wanted, unit=rounding.UNIT):
    """Equal up to the bound derived in theory.rounding, plus two roundings per cell of the oracle itself."""
    x, got, wanted = x.numpy(), network(x).numpy(), wanted.numpy()
    assert got.shape == wanted.shape
    bound = rounding.network_bound(network, x) + 2 * network.in_features * unit * np.abs(x).max()
    np.testing.assert_array_less(np.abs(got - wanted).reshape(len(x), -1), bound.reshape(len(x), -1) + 1e-300)


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    return keras


def channels_last(layer, x):
    """A Keras pooling layer, channels last, on x with channels first."""
    y = layer(torch.movedim(x, 1, -1)).detach().cpu()
    return torch.movedim(y, -1, 1) if y.ndim == x.ndim else y


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "window", "stride"), [(7, 2, 2), (6, 3, 2), (5, 3, 1), (8, 2, 3)])
def test_windowed_pooling_equals_keras(keras, rank, padding, size, window, stride):
    shape = (2, *[size] * rank)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"strides": stride, "padding": padding, "data_format": "channels_last", "dtype": "float64"}
    layers = keras.layers
    maxima = getattr(layers, f"MaxPooling{rank}D")(window, **options)
    means = getattr(layers, f"AveragePooling{rank}D")(window, **options)
    close(pooling.max_pool(shape, window, stride=stride, padding=padding), x, channels_last(maxima, x))
    close(pooling.average_pool(shape, window, stride=stride, padding=padding), x, channels_last(means, x))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_and_adaptive_pooling_equal_keras(keras, rank):
    shape = (3, *[5] * rank)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layers = keras.layers
    for name, build in (("Max", pooling.global_max_pool), ("Average", pooling.global_average_pool)):
        layer = getattr(layers, f"Global{name}Pooling{rank}D")(data_format="channels_last", dtype="float64")
        close(build(shape), x, channels_last(layer, x), unit=2.0**-24)  # Keras on torch averages float64 in float32
    for name, build in (("Max", pooling.adaptive_max_pool), ("Average", pooling.adaptive_average_pool)):
        layer = getattr(layers, f"Adaptive{name}Pooling{rank}D")(3, data_format="channels_last", dtype="float64")
        close(build(shape, 3), x, channels_last(layer, x))


def test_every_pooling_layer_of_keras_is_in_the_table(keras):
    ours = {row["name"] for row in constructors() if row["kind"] in ("pooling", "adaptive")}
    theirs = {name for name in dir(keras.layers) if "Pooling" in name}
    assert theirs <= ours


MERGES = {
    "Add": skips.add,
    "Average": skips.average,
    "Maximum": skips.maximum,
    "Minimum": skips.minimum,
    "Subtract": skips.subtract,
    "Concatenate": skips.concatenate,
}


def inputs(keras, *shapes, positive=False):
    """One batch of 4 for each shape, and the same numbers flattened and concatenated as a merge takes them."""
    generator = torch.Generator().manual_seed(0)
    # Eighths: Keras on torch takes maxima and dot products of float64 in float32, which is exact on these.
    tensors = [torch.randint(-30, 31, (4, *shape), generator=generator).double() / 8 for shape in shapes]
    tensors = [t.abs() + 0.125 for t in tensors] if positive else tensors
    return tensors, torch.cat([t.flatten(1) for t in tensors], dim=1)


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_every_piecewise_linear_merge_equals_keras(keras, name, count):
    count = 2 if name == "Subtract" else count
    shapes = [(3, 2)] * count
    tensors, x = inputs(keras, *shapes)
    network = MERGES[name](*shapes)
    wanted = getattr(keras.layers, name)(dtype="float64")(tensors).detach().cpu()
    close(network, x.reshape(4, *network.input_shape), wanted)


@pytest.mark.parametrize("name", ["Add", "Average", "Maximum", "Minimum", "Subtract"])
@pytest.mark.parametrize("shapes", [((3, 2), (1, 2)), ((2, 1, 3), (2, 4, 1)), ((4, 2), (2,))])
def test_merges_broadcast_as_keras_does(keras, name, shapes):
    tensors, x = inputs(keras, *shapes)
    close(MERGES[name](*shapes), x, getattr(keras.layers, name)(dtype="float64")(tensors).detach().cpu())


@pytest.mark.parametrize(("axis", "shapes"), [(1, ((3, 2), (1, 2), (4, 2))), (2, ((3, 1), (3, 5))), (-1, ((2,), (7,)))])
def test_concatenation_along_any_axis_equals_keras(keras, axis, shapes):
    tensors, x = inputs(keras, *shapes)
    network = skips.concatenate(*shapes, axis=axis - 1 if axis > 0 else axis)  # Keras counts the batch
    close(network, x, keras.layers.Concatenate(axis=axis, dtype="float64")(tensors).detach().cpu())


@pytest.mark.parametrize("form", ["log", "squares"])
@pytest.mark.parametrize("shapes", [((3, 2), (3, 2)), ((3,),) * 3, ((2,),) * 9, ((3, 1), (1, 4))])
def test_multiply_equals_keras(keras, form, shapes):
    tensors, x = inputs(keras, *shapes, positive=form == "log")
    wanted = keras.layers.Multiply(dtype="float64")(tensors).detach().cpu().numpy()
    got = skips.multiply(*shapes, form=form)(x.numpy())
    # Keras rounds each of its products once; half a bound more for that.
    assert (np.abs(got - wanted) <= 1.5 * rounding.product_bound(skips.multiply(*shapes, form=form), x.numpy())).all()


@pytest.mark.parametrize("form", ["log", "squares"])
@pytest.mark.parametrize(
    ("axes", "shapes"),
    [
        (1, ((5,), (5,))),
        (-1, ((3, 4), (2, 4))),
        ((2, 1), ((3, 4), (4, 2))),
        ((1, 3), ((4, 2), (2, 3, 4))),
        (2, ((3, 4), (3, 4))),
    ],
)
def test_dot_equals_keras(keras, form, axes, shapes):
    tensors, x = inputs(keras, *shapes, positive=form == "log")
    wanted = keras.layers.Dot(axes=axes, dtype="float64")(tensors).detach().cpu().numpy()
    network = skips.dot(*shapes, axes=axes, form=form)
    got = network(x.numpy())
    assert got.shape == wanted.shape
    assert (np.abs(got - wanted) <= rounding.product_bound(network, x.numpy())).all()  # Keras is exact on eighths


def test_every_merge_layer_of_keras_is_in_the_table(keras):
    ours = {row["name"].split(",")[0] for row in constructors() if row["kind"] == "merge"}
    theirs = {
        name
        for name, layer in vars(keras.layers).items()
        if isinstance(layer, type) and layer.__module__.startswith("keras.src.layers.merging")
    }
    assert theirs == ours
