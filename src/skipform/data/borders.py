"""Weights on the borders between cells: Ronneberger, Fischer, Brox, "U-Net" (MICCAI 2015), eq. (2).

Letters: h w height and width of a mask.
"""

import math

import numpy as np
from scipy import ndimage

NEGLIGIBLE = 6.0  # at (d_1 + d_2) = 6 sigma the term is w_0 e^-18, 2e-8 of its largest value


def border_weights(mask: np.ndarray, *, w_0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """w_0 exp(-(d_1 + d_2)^2 / (2 sigma^2)) for the pixels between cells, float32 (h, w).

    mask: integers (h, w); a cell is a 4-connected region of a class other than 0. d_1, d_2: the distances, in pixels,
    from a pixel to the nearest and to the second nearest cell, that is to their nearest pixels. The term is 0 within
    cells, where the paper leaves open what the distance to a border is, and from d_2 = 6 sigma on.
    """
    nearest, second = np.full((2, *mask.shape), np.inf)
    reach = math.ceil(NEGLIGIBLE * sigma)
    for cells in (ndimage.label(mask == c)[0] for c in np.unique(mask[mask > 0])):
        for number, box in enumerate(ndimage.find_objects(cells), 1):
            window = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
            distance = ndimage.distance_transform_edt(cells[window] != number)
            second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
            nearest[window] = np.minimum(nearest[window], distance)
    between = (mask == 0) & (second < reach)
    weights = np.zeros(mask.shape, np.float32)
    weights[between] = w_0 * np.exp(-((nearest + second)[between] ** 2) / (2 * sigma**2))
    return weights
