"""The picture of how the pieces fit: every box is there, and nothing is written out of it."""

import numpy as np
from matplotlib import pyplot as plt

import skd
from skd.study import pieces


def test_words_fit_into_their_boxes_and_name_what_there_is(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(pieces, "save", lambda figure, path: figures.append(figure))
    pieces.draw_pieces("", str(tmp_path / "x.png"))
    (ax,) = figures[0].axes
    figures[0].canvas.draw()
    words = [t for t in ax.texts if t.get_text()]
    boxes = [p.get_window_extent() for p in ax.patches]
    assert len(words) == len(pieces.BOXES) == len(boxes)
    for word, box in zip(words, boxes):
        inside = word.get_window_extent()
        assert box.x0 < inside.x0 and inside.x1 < box.x1, word.get_text()
        assert box.y0 < inside.y0 and inside.y1 < box.y1, word.get_text()
        apart = [b for b in boxes if b is not box]
        assert not any(b.overlaps(box) for b in apart)
    plt.close(figures[0])
    for name in ("FrozenTeacher", "Distiller", "GradientBalance"):
        assert hasattr(skd, name) and any(name in word.get_text() for word in words)
    assert np.isfinite([pieces._border(a, pieces.BOXES[b][1]) for a, b in pieces.ARROWS]).all()
