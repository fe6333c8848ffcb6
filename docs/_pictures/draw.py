"""Draws the pictures of the documentation: python docs/_pictures/draw.py.

Lines and words of drawings take the page's colours, so that they are right in the dark,
too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from daskgmm import GaussianMixture
from daskgmm.plotting import plot_mixture

HERE = Path(__file__).parent
TEXT = "var(--pst-color-text-base, #222)"
MUTED = "var(--pst-color-text-muted, #667)"
FILLS = ("#4477aa", "#cc7733", "#228866", "#aa4477")


def svg(name, width, height, title, parts):
    """Write a picture."""
    body = "\n".join(parts)
    (HERE / f"{name}.svg").write_text(
        f'<figure class="drawing"><svg viewBox="0 0 {width} {height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" font-size="13" '
        f'font-family="system-ui, sans-serif" width="{width}">\n'
        f"<title>{title}</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{TEXT}"/>'
        f"</marker></defs>\n{body}\n</svg></figure>\n",
        encoding="utf-8",
    )


def box(x, y, w, h, colour=None, opacity=0.25, rx=4):
    """A rectangle, filled with a colour or only drawn."""
    fill = f'fill="{colour}" fill-opacity="{opacity}"' if colour else 'fill="none"'
    return (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{rx}" {fill} '
        f'stroke="{colour or TEXT}"/>'
    )


def say(x, y, words, anchor="middle", muted=False, bold=False):
    """Words."""
    weight = ' font-weight="600"' if bold else ""
    colour = MUTED if muted else TEXT
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{words}</text>"
    )


def line(x1, y1, x2, y2, arrow=False):
    """A line."""
    tip = ' marker-end="url(#tip)"' if arrow else ""
    return f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{TEXT}" fill="none"{tip}/>'


def shards():
    """Blocks, leaves and shards."""
    parts, w, left = [], 38, 110
    for y, words in ((38, "blocks"), (100, "leaves"), (162, "shards")):
        parts.append(say(left - 14, y + 5, words, "end", bold=True))
    for i in range(16):
        shard = 0 if i < 8 else 1
        parts.append(box(left + i * w + 2, 20, w - 4, 36, FILLS[shard]))
        parts.append(say(left + i * w + w / 2, 43, i, muted=True))
    for leaf in range(8):
        x = left + 2 * leaf * w + 4
        parts.append(box(x, 84, 2 * w - 8, 32, FILLS[leaf // 4]))
        parts.append(say(x + w - 4, 105, f"leaf {leaf}"))
        parts.append(line(x + w / 2 - 2, 57, x + w - 8, 83))
        parts.append(line(x + 3 * w / 2 - 6, 57, x + w, 83))
    for shard, worker in enumerate(("worker A", "worker B")):
        x = left + 8 * shard * w + 4
        parts.append(box(x, 144, 8 * w - 8, 36, FILLS[shard]))
        parts.append(say(x + 4 * w - 4, 167, f"shard {shard}: one task, on {worker}"))
        for leaf in range(4):
            mid = left + (8 * shard + 2 * leaf + 1) * w
            parts.append(line(mid, 117, mid, 143))
    svg("shards", 730, 194, "Blocks make leaves, leaves make shards", parts)


def one_pass():
    """What travels in a pass."""
    parts = [
        box(20, 60, 190, 120),
        say(115, 84, "your process", bold=True),
        say(115, 110, "the runs' parameters"),
        say(115, 134, "M-step, next parameters"),
        say(115, 158, "converged?", muted=True),
    ]
    for i, y in enumerate((20, 140)):
        parts += [
            box(440, y, 270, 88, FILLS[i]),
            say(575, y + 22, f"worker {'AB'[i]}", bold=True),
            say(575, y + 45, "reads block after block, the next"),
            say(575, y + 62, "one while it works on this one"),
            say(575, y + 79, "adds up sums, forgets the rows", muted=True),
        ]
    parts += [
        line(212, 95, 436, 55, arrow=True),
        line(212, 105, 436, 172, arrow=True),
        line(438, 80, 214, 135, arrow=True),
        line(438, 200, 214, 150, arrow=True),
        say(310, 44, "one message: K·d² numbers"),
        say(318, 216, "sums: K·d² numbers"),
    ]
    svg("pass", 730, 244, "A message goes out, sums come back", parts)


def tree():
    """In which order sums are added."""
    parts, left, step = [], 40, 84
    middles = [left + step * i + 36 for i in range(8)]
    for i, x in enumerate(middles):
        shard = 0 if i < 3 else 1
        parts.append(box(x - 34, 180, 68, 30, FILLS[shard]))
        parts.append(say(x, 200, f"leaf {i}"))
    level, y = middles, 180
    for depth in range(3):
        above = [(a + b) / 2 for a, b in zip(level[::2], level[1::2], strict=True)]
        for i, x in enumerate(above):
            for child in level[2 * i : 2 * i + 2]:
                parts.append(line(child, y, x, y - 40))
            inside = (depth, i) in {(0, 0), (0, 2), (0, 3), (1, 1)}
            colour = FILLS[0 if i == 0 and depth == 0 else 1] if inside else None
            parts.append(
                f'<circle cx="{x}" cy="{y - 46}" r="11" stroke="{colour or TEXT}" '
                f'fill="{colour or "none"}" fill-opacity="0.25"/>'
            )
            parts.append(say(x, y - 41, "+"))
        level, y = above, y - 52
    parts += [
        say(370, 236, "coloured sums are added where the rows are,", muted=True),
        say(370, 254, "the others in your process: always in this order", muted=True),
    ]
    svg("tree", 730, 266, "Sums are added in a fixed binary tree", parts)


def mixture():
    """Rows of five groups, and the mixture that is found."""
    rng = np.random.default_rng(3)
    groups = [
        ([0, 0], [[1.4, 0.9], [0.9, 1.0]], 130_000),
        ([5, 1], [[0.5, -0.3], [-0.3, 1.2]], 80_000),
        ([2.2, 4.2], [[1.6, -0.5], [-0.5, 0.5]], 100_000),
        ([7, 5], [[0.8, 0.4], [0.4, 0.6]], 60_000),
        ([4.2, 2.6], [[4.0, 0.0], [0.0, 3.0]], 40_000),
    ]
    rows = np.concatenate([rng.multivariate_normal(*group) for group in groups])
    gm = GaussianMixture(5, n_init=5, random_state=0, tol=1e-5, max_iter=500).fit(rows)
    figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    plot_mixture(gm, rows, ax=ax)
    figure.savefig(HERE.parent / "_static" / "mixture.png", dpi=110)


if __name__ == "__main__":
    mixture()
    shards()
    one_pass()
    tree()
