"""The states of a net at the vertices of a mesh, and the signs of a layer's units there.

V vertices, D columns of the state, words = ceil(units / 64).
"""

import numpy as np

from skipform.measure.kernel import kernel


@kernel
def gather(rows, h, units, edge_points, inner_points, out):
    """Write the states of the vertices `rows` to out (n, D), with the first `units` columns rectified.

    Vertex v < V is row v of h (V, D); the edge points are numbered from V on, and the inner points after them. The
    state at a new vertex is the mean of states at old ones, since every column is affine between them.
    """
    a, b, share = edge_points.a, edge_points.b, edge_points.share
    four, weight = inner_points.four, inner_points.weight
    vertices, columns = h.shape
    for r in range(len(rows)):
        v = rows[r]
        if v < vertices:
            for j in range(units):
                out[r, j] = max(h[v, j], 0.0)
            for j in range(units, columns):
                out[r, j] = h[v, j]
        elif v < vertices + len(a):
            i = v - vertices
            p, q, s = a[i], b[i], share[i]
            for j in range(units):
                out[r, j] = max(h[p, j] + s * (h[q, j] - h[p, j]), 0.0)
            for j in range(units, columns):
                out[r, j] = h[p, j] + s * (h[q, j] - h[p, j])
        else:
            i = v - vertices - len(a)
            p0, p1, p2, p3 = four[i, 0], four[i, 1], four[i, 2], four[i, 3]
            w0, w1, w2, w3 = weight[i, 0], weight[i, 1], weight[i, 2], weight[i, 3]
            for j in range(units):
                out[r, j] = max((w0 * h[p0, j] + w1 * h[p1, j]) + (w2 * h[p2, j] + w3 * h[p3, j]), 0.0)
            for j in range(units, columns):
                out[r, j] = (w0 * h[p0, j] + w1 * h[p1, j]) + (w2 * h[p2, j] + w3 * h[p3, j])


@kernel
def pack_signs(h, units, tau, kappa, positive, negative, largest, reach):
    """Write the strict signs of the first `units` columns of h (n, D) to positive and negative (n, words).

    Raises largest (D,) to the maximum over the rows of h in those columns and of |h| in the others, and reach (units,)
    to the maximum of |h|.
    """
    for v in range(len(h)):
        k = kappa[v]
        for word in range(positive.shape[1]):
            low = word * 64
            p, q = np.uint64(0), np.uint64(0)
            for j in range(low, min(low + 64, units)):
                bit = np.uint64(j - low)
                p |= np.uint64(h[v, j] > k * tau[j]) << bit
                q |= np.uint64(h[v, j] < -k * tau[j]) << bit
            positive[v, word], negative[v, word] = p, q
    n = len(h)
    for v in range(0, n, 4):
        # Taking four rows at a time (the last row again where there are fewer) saves loads and stores of the maxima.
        v1, v2, v3 = min(v + 1, n - 1), min(v + 2, n - 1), min(v + 3, n - 1)
        for j in range(units):
            high = max(max(h[v, j], h[v1, j]), max(h[v2, j], h[v3, j]))
            least = min(min(h[v, j], h[v1, j]), min(h[v2, j], h[v3, j]))
            largest[j] = max(largest[j], high)
            reach[j] = max(reach[j], max(high, -least))
        for j in range(units, h.shape[1]):
            high = max(max(abs(h[v, j]), abs(h[v1, j])), max(abs(h[v2, j]), abs(h[v3, j])))
            largest[j] = max(largest[j], high)
