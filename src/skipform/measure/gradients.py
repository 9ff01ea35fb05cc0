"""How gradients flow through a net: their norm in every layer, and how alike they are at different inputs.

Batch norm has the mean and the variance of the given images, as while it trains, and not those that it has collected,
which say nothing before training. The net itself stays as it is. n images, d pixels of an image, m scores.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from skipform.errors import SkipformError


def gradient_norms(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Layer -> the Euclidean norm of the gradient of the mean cross-entropy with respect to its weights.

    Layers are convolutions and linear layers, in the order in which the net holds them; images (n, ...), labels (n,).
    """
    net = _training(net)
    functional.cross_entropy(net(images.double()), labels).backward()
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    return {
        name: 0.0 if layer.weight.grad is None else float(torch.linalg.vector_norm(layer.weight.grad))
        for name, layer in layers.items()
    }


def gradient_spread(norms: dict[str, float]) -> float:
    """log10 of the largest over the smallest norm: 0 where all layers learn at one rate, infinite where one of them
    learns nothing. Gradients that vanish with depth and gradients that explode make it large."""
    smallest, largest = min(norms.values()), max(norms.values())
    return math.log10(largest / smallest) if smallest > 0 else math.inf


def gradient_correlation(net: nn.Module, images: Tensor) -> float:
    """The mean cosine between the gradients at two different images, over all pairs of images and all scores:

    mean over k, i < j of <g_i, g_j> / (|g_i| |g_j|),   g_i = d/dx score k at x_i, the statistics of batch norm fixed

    A cosine with a gradient that is zero counts as 0. Gradients like white noise, which "shattered" means, have 0:
    Balduzzi et al., "The shattered gradients problem" (ICML 2017), find 1 / 2^L in plain nets of L layers and
    1 / sqrt(L) in residual nets with batch norm. Time m backward passes.

    Raises:
        SkipformError: fewer than two images.
    """
    if len(images) < 2:
        raise SkipformError(f"gradient_correlation: {len(images)} images; 2 or more are accepted")
    net, x = _training(net), images.double()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        net(x)  # the statistics that batch norm has collected are now those of these images
    x = x.requires_grad_()
    scores = net.eval()(x)  # n m
    total = 0.0
    for score in scores.sum(0):
        (gradient,) = torch.autograd.grad(score, x, retain_graph=True)
        directions = functional.normalize(gradient.flatten(1), eps=torch.finfo(torch.float64).tiny)  # n d, or zero
        # |sum g|^2 is the sum over all ordered pairs, of which those of one image with itself are 1, or 0 at zero
        total += float(directions.sum(0).square().sum() - directions.square().sum())
    n, m = scores.shape
    return total / (m * n * (n - 1))


def _training(net: nn.Module) -> nn.Module:
    """A copy of the net in float64 and in training mode, without gradients."""
    net = copy.deepcopy(net).double().train()
    net.zero_grad()
    return net
