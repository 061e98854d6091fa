"""
The method's equations, written out position by position in float64: slow, and meant to be read.

Only the parameters are taken from the layers under test; nothing of their code is used.
"""

import math

import numpy as np


def _np(t):
    return t.detach().cpu().numpy().astype(np.float64)


def conv1x1(conv, x):
    """x (N, C, H, W) -> (N, C', H, W)."""
    n, _, h, w = x.shape
    weight, bias = _np(conv.weight)[:, :, 0, 0], _np(conv.bias)
    out = np.zeros((n, weight.shape[0], h, w))
    for i in range(n):
        for y in range(h):
            for z in range(w):
                out[i, :, y, z] = weight @ x[i, :, y, z] + bias
    return out


def conv3x3(conv, x):
    """x (N, C, H, W) -> (N, C', H, W), zero padding."""
    weight = _np(conv.weight)
    n, _, h, w = x.shape
    out = np.zeros((n, len(weight), h, w))
    if conv.bias is not None:
        out += _np(conv.bias)[:, None, None]
    for i in range(n):
        for y in range(h):
            for z in range(w):
                for dy in (-1, 0, 1):
                    for dz in (-1, 0, 1):
                        if 0 <= y + dy < h and 0 <= z + dz < w:
                            out[i, :, y, z] += (
                                weight[:, :, dy + 1, dz + 1] @ x[i, :, y + dy, z + dz]
                            )
    return out


def softmax(v):
    e = [math.exp(a - max(v)) for a in v]
    return np.array([a / sum(e) for a in e])


def mask(student, teacher, tau, fusion):
    """Attention (N, K) of both -> mask (N, K)."""
    out = np.zeros_like(teacher)
    k = teacher.shape[1]
    for i in range(len(teacher)):
        if fusion == "softmax_of_sum":
            out[i] = k * softmax([(s + t) / tau for s, t in zip(student[i], teacher[i])])
        else:
            s, t = (softmax([a / tau for a in v]) for v in (student[i], teacher[i]))
            out[i] = (k * s + k * t) / 2
    return out


def norm(difference, reduction, stride):
    """stride is None for what has no positions."""
    if reduction == "sum":
        return math.sqrt(sum(float(d) ** 2 for d in difference.reshape(-1)))
    total = 0.0
    for image in difference:
        squares = sum(float(d) ** 2 for d in image.reshape(-1))
        scale = 2.0
        if stride is not None:
            positions = image.shape[-1] * image.shape[-2]
            scale = 2.0 * (800 * 1344 / stride**2) / positions
        total += math.sqrt(squares * scale)
    return total / len(difference)


def masked_feature_loss(level, a_s, a_t, settings):
    adapted = conv1x1(level.feature_adapter, a_s)
    n, c, h, w = a_t.shape
    m_s = mask(
        np.abs(a_s).mean(1).reshape(n, -1),
        np.abs(a_t).mean(1).reshape(n, -1),
        settings["temperature"],
        settings["mask_fusion"],
    ).reshape(n, h, w)
    m_c = np.ones((n, c))
    if settings["channel_mask"]:
        source = a_s if a_s.shape[1] == c else adapted
        m_c = mask(
            np.abs(source).mean((2, 3)),
            np.abs(a_t).mean((2, 3)),
            settings["temperature"],
            settings["mask_fusion"],
        )
    weighted = np.zeros_like(a_t)
    for i in range(n):
        for j in range(c):
            for y in range(h):
                for z in range(w):
                    d2 = (a_t[i, j, y, z] - adapted[i, j, y, z]) ** 2
                    weighted[i, j, y, z] = math.sqrt(d2 * m_s[i, y, z] * m_c[i, j])
    return norm(weighted, settings["reduction"], level.stride)


def attention_loss(level, a_s, a_t, settings):
    g = np.abs if settings["pool"] == "abs" else (lambda x: x)
    c_s, c_t = g(a_s).mean((2, 3)), g(a_t).mean((2, 3))
    s_s, s_t = g(a_s).mean(1), g(a_t).mean(1)
    if settings["adapter"]:
        linear = level.channel_adapter
        c_s = np.stack([_np(linear.weight) @ v + _np(linear.bias) for v in c_s])
        s_s = conv3x3(level.spatial_adapter, s_s[:, None])[:, 0]
    return norm(c_t - c_s, settings["reduction"], None) + norm(
        s_t - s_s, settings["reduction"], level.stride
    )


def max_pool(x, window):
    n, c, h, w = x.shape
    wy, wz = min(window, h), min(window, w)
    out = np.zeros((n, c, h // wy, w // wz))
    for y in range(h // wy):
        for z in range(w // wz):
            out[:, :, y, z] = x[:, :, y * wy : (y + 1) * wy, z * wz : (z + 1) * wz].max((2, 3))
    return out


def batch_norm(norm_layer, x, eps=1e-5):
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    weight, bias = _np(norm_layer.weight), _np(norm_layer.bias)
    scaled = (x - mean[:, None, None]) / np.sqrt(var + eps)[:, None, None]
    return scaled * weight[:, None, None] + bias[:, None, None]


def non_local_block(block, x):
    """The block, by the affinity of every position to every key; batch norm, if any, trains."""
    n, _, h, w = x.shape
    theta = conv1x1(block.theta, x)
    phi = max_pool(conv1x1(block.phi, x), block.key_stride)
    g = max_pool(conv1x1(block.g, x), block.key_stride)
    k = theta.shape[1]
    y = np.zeros((n, k, h, w))
    for i in range(n):
        q, keys, values = (t[i].reshape(k, -1) for t in (theta, phi, g))
        f = q.T @ keys  # (HW, n): the matrix the fast form avoids
        if block.affinity == "dot_product":
            f = f / keys.shape[1]
        else:
            f = np.stack([softmax(list(row)) for row in f])
        y[i] = (f @ values.T).T.reshape(k, h, w)
    y = conv1x1(block.out, y)
    return x + (y if block.norm is None else batch_norm(block.norm, y))


def non_local_loss(level, a_s, a_t, settings):
    r_s = conv1x1(level.non_local_adapter, non_local_block(level.student_non_local, a_s))
    r_t = non_local_block(level.teacher_non_local, a_t)
    return norm(r_s - r_t, settings["reduction"], level.stride)
