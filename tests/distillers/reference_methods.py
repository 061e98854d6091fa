"""
The comparison methods' equations, written out in float64: slow, and meant to be read.

Each function takes the distiller under test, for its parameters and settings only, and the maps of
student and teacher at one level (N, C, H, W), and returns the weighted terms.
"""

import math

import numpy as np

from .structured.reference import _np, batch_norm, conv1x1, conv3x3, softmax


def adapt(layer, x):
    return conv1x1(layer, x) if hasattr(layer, "weight") else x


def no_bias_conv1x1(conv, x):
    return np.einsum("ij,njhw->nihw", _np(conv.weight)[:, :, 0, 0], x)


def fitnets(distiller, level, s, t, boxes):
    r = conv1x1(distiller.levels[level], s)
    total = sum(0.5 * (a - b) ** 2 for a, b in zip(r.reshape(-1), t.reshape(-1)))
    return {"loss_distill_fitnets": distiller.settings.weight * total / t.size}


def at(distiller, level, s, t, boxes):
    n, _, h, w = s.shape
    total = 0.0
    for i in range(n):
        q = [(x[i] ** 2).mean(0).reshape(-1) for x in (s, t)]
        q = [v / math.sqrt((v**2).sum()) for v in q]
        total += ((q[0] - q[1]) ** 2).sum()
    return {"loss_distill_at": distiller.settings.weight * total / (n * h * w)}


def sp(distiller, level, s, t, boxes):
    n = len(s)
    similarity = []
    for x in (s, t):
        g = np.array([[(x[i] * x[j]).sum() for j in range(n)] for i in range(n)])
        similarity.append(np.array([row / math.sqrt((row**2).sum()) for row in g]))
    total = ((similarity[1] - similarity[0]) ** 2).sum() / n**2
    return {"loss_distill_sp": distiller.settings.weight * total}


def ofd(distiller, level, s, t, boxes):
    """OFD at the first batch, so that the margin is the expectation over this batch."""
    conv, norm = distiller.levels[level]
    s = batch_norm(norm, no_bias_conv1x1(conv, s))
    total = 0.0
    for c in range(t.shape[1]):
        negative = t[:, c][t[:, c] < 0]
        margin = negative.mean() if len(negative) else 0.0
        for a, b in zip(s[:, c].reshape(-1), t[:, c].reshape(-1)):
            b = max(b, margin)
            if not (a <= b <= 0):
                total += (b - a) ** 2
    return {"loss_distill_ofd": distiller.settings.weight * total / t.size}


def _iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(v[2] - v[0]) * (v[3] - v[1]) for v in (a, b)]
    return width * height / (sum(areas) - width * height)


def fgfi(distiller, level, s, t, boxes, sizes):
    """sizes: height and width of all levels' maps."""

    def overlaps(box, name):
        stride, (h, w) = distiller.strides[name], sizes[name]
        out = np.zeros((h, w, len(distiller.settings.aspect_ratios)))
        for y in range(h):
            for x in range(w):
                for k, ratio in enumerate(distiller.settings.aspect_ratios):
                    area = (distiller.settings.anchor_scale * stride) ** 2
                    width = math.sqrt(area / ratio)
                    height = width * ratio
                    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                    anchor = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                    out[y, x, k] = _iou(box, anchor)
        return out

    mask = np.zeros((len(s), *s.shape[2:]), bool)
    for i, image in enumerate(boxes):
        for box in image.tolist():
            best = max(overlaps(box, name).max() for name in sizes)
            mask[i] |= (overlaps(box, level) > distiller.settings.threshold * best).any(-1)
    squares = (conv3x3(distiller.levels[level], s) - t) ** 2
    total = sum(squares[i, :, y, x].sum() for i, y, x in zip(*mask.nonzero()))
    return {"loss_distill_fgfi": distiller.settings.weight * total / (2 * max(mask.sum(), 1))}


def _inside(boxes, n, h, w, stride, border=0):
    """Boxes as slices (rows, columns), a list for each image."""
    out = []
    for image in boxes:
        out.append([])
        for x0, y0, x1, y1 in image.tolist():
            rows = slice(max(math.floor(y0 / stride), 0), math.ceil(y1 / stride) + border)
            columns = slice(max(math.floor(x0 / stride), 0), math.ceil(x1 / stride) + border)
            out[-1].append((rows, columns))
    return out


def defeat(distiller, level, s, t, boxes):
    stride, strides = distiller.strides[level], distiller.strides.values()
    own = []
    for image in boxes:
        keep = []
        for x0, y0, x1, y1 in image.tolist():
            size = math.sqrt((x1 - x0) * (y1 - y0)) / distiller.settings.canonical_box_size
            at = 2.0 ** min(
                max(math.floor(4 + math.log2(size + 1e-8)), math.log2(min(strides))),
                math.log2(max(strides)),
            )
            keep.append(at == stride)
        own.append(image[keep] if len(image) else image)
    n, c, h, w = t.shape
    mask = np.zeros((n, h, w), bool)
    for i, cells in enumerate(_inside(own, n, h, w, stride)):
        for rows, columns in cells:
            mask[i, rows, columns] = True
    squares = ((conv3x3(distiller.levels[level], s) - t) ** 2).sum(1)
    count = len(distiller.levels)
    return {
        "loss_distill_defeat_object": distiller.settings.weight_object
        / count
        * squares[mask].sum()
        / (2 * max(mask.sum() * c, 1)),
        "loss_distill_defeat_background": distiller.settings.weight_background
        / count
        * squares[~mask].sum()
        / (2 * max((~mask).sum() * c, 1)),
    }


def _context(block, x):
    n, c, h, w = x.shape
    logits = conv1x1(block.attention, x)
    out = np.zeros_like(x)
    first, norm, _, last = block.transform
    for i in range(n):
        share = softmax(list(logits[i].reshape(-1))).reshape(h, w)
        context = (x[i] * share).sum((1, 2))
        v = _np(first.weight)[:, :, 0, 0] @ context + _np(first.bias)
        v = (v - v.mean()) / math.sqrt(v.var() + 1e-5)
        v = v * _np(norm.weight)[:, 0, 0] + _np(norm.bias)[:, 0, 0]
        v = _np(last.weight)[:, :, 0, 0] @ np.maximum(v, 0) + _np(last.bias)
        out[i] = x[i] + v[:, None, None]
    return out


def fgd(distiller, level, s, t, boxes):
    layers, stride = distiller.levels[level], distiller.strides[level]
    s = adapt(layers["align"], s)
    n, c, h, w = t.shape
    tau = distiller.settings.temperature

    def attention(x):
        space = [h * w * softmax(list(np.abs(v).mean(0).reshape(-1) / tau)) for v in x]
        channels = [c * softmax(list(np.abs(v).mean((1, 2)) / tau)) for v in x]
        return np.array(space).reshape(n, h, w), np.array(channels)

    (space_s, channel_s), (space_t, channel_t) = attention(s), attention(t)
    objects, background = np.zeros((n, h, w)), np.zeros((n, h, w))
    for i, cells in enumerate(_inside(boxes, n, h, w, stride, border=1)):
        for (rows, columns), box in zip(cells, boxes[i].tolist()):
            height = math.ceil(box[3] / stride) + 1 - math.floor(box[1] / stride)
            width = math.ceil(box[2] / stride) + 1 - math.floor(box[0] / stride)
            objects[i, rows, columns] = np.maximum(objects[i, rows, columns], 1 / (height * width))
        background[i] = objects[i] == 0
        background[i] /= max(background[i].sum(), 1)
    focal = {"object": 0.0, "background": 0.0}
    for name, scale in (("object", objects), ("background", background)):
        for i in range(n):
            for k in range(c):
                weight = scale[i] * space_t[i] * channel_t[i, k]
                focal[name] += (weight * (t[i, k] - s[i, k]) ** 2).sum()
    terms = {
        **focal,
        "attention": np.abs(space_s - space_t).sum() + np.abs(channel_s - channel_t).sum(),
        "global": (
            (_context(layers["student_context"], s) - _context(layers["teacher_context"], t)) ** 2
        ).sum(),
    }
    return {
        f"loss_distill_fgd_{k}": getattr(distiller.settings, f"weight_{k}") * v / n
        for k, v in terms.items()
    }


def cwd(distiller, level, s, t, boxes):
    s, tau = adapt(distiller.levels[level], s), distiller.settings.temperature
    n, c = t.shape[:2]
    total = 0.0
    for i in range(n):
        for k in range(c):
            p, q = (softmax(list(x[i, k].reshape(-1) / tau)) for x in (t, s))
            total += sum(a * math.log(a / b) for a, b in zip(p, q))
    return {"loss_distill_cwd": distiller.settings.weight * tau**2 / c * total / n}


def mgd(distiller, level, s, t, boxes, keep):
    """keep: (N, 1, H, W), what is not blanked."""
    layers = distiller.levels[level]
    s = adapt(layers["align"], s) * keep
    first, _, last = layers["generate"]
    generated = conv3x3(last, np.maximum(conv3x3(first, s), 0))
    return {"loss_distill_mgd": distiller.settings.weight * ((generated - t) ** 2).sum() / len(t)}


def pkd(distiller, level, s, t, boxes):
    s = adapt(distiller.levels[level], s)
    total = 0.0
    for k in range(t.shape[1]):
        a, b = ((v - v.mean()) / (v.std(ddof=1) + 1e-6) for v in (s[:, k], t[:, k]))
        total += ((a - b) ** 2).sum() / 2
    return {"loss_distill_pkd": distiller.settings.weight * total / t.size}


def ssim(distiller, level, s, t, boxes):
    s = adapt(distiller.levels[level], s)
    n, c, h, w = t.shape
    reach = 5
    mode = "reflect" if min(h, w) > reach else "edge"
    gauss = np.array([math.exp(-((i - reach) ** 2) / (2 * 1.5**2)) for i in range(11)])
    window = np.outer(gauss, gauss) / gauss.sum() ** 2
    total = 0.0
    for i in range(n):
        for k in range(c):
            a, b = (np.pad(x[i, k], reach, mode=mode) for x in (s, t))
            for y in range(h):
                for x in range(w):
                    p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    value = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
                    value *= (2 * cov + 9e-4) / (vp + vq + 9e-4)
                    total += (1 - value) / 2
    return {"loss_distill_ssim": distiller.settings.weight * total / t.size}


def _pool(x, size):
    """Adaptive average pooling to size x size."""
    n, c, h, w = x.shape
    out = np.zeros((n, c, size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(h * i // size, -(-h * (i + 1) // size))
            columns = slice(w * j // size, -(-w * (j + 1) // size))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def reviewkd(distiller, student, teacher):
    """ReviewKD at all levels at once: {level: loss}."""
    above, losses = None, {}
    for name in sorted(student, key=lambda k: -distiller.strides[k]):
        layers = distiller.levels[name]
        x = batch_norm(layers.embed[1], no_bias_conv1x1(layers.embed[0], student[name]))
        n, c, h, w = x.shape
        if above is not None:
            rows = [y * above.shape[2] // h for y in range(h)]
            columns = [z * above.shape[3] // w for z in range(w)]
            above = above[:, :, rows][:, :, :, columns]
            share = 1 / (1 + np.exp(-conv1x1(layers.attention, np.concatenate([x, above], 1))))
            x = x * share[:, :1] + above * share[:, 1:]
        above = x
        out = batch_norm(layers.out[1], conv3x3(layers.out[0], x))
        pairs = [(1.0, out, teacher[name])]
        for size in (4, 2, 1):
            if size < h:
                weight = pairs[-1][0] / 2
                pairs.append((weight, _pool(out, size), _pool(teacher[name], size)))
        loss = sum(weight * ((a - b) ** 2).mean() for weight, a, b in pairs)
        losses[name] = distiller.settings.weight * loss / sum(weight for weight, _, _ in pairs)
    return losses
