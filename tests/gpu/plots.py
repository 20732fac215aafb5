"""Plots of the benchmarks' tables, as SVG of equal bytes for equal figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Mapping[str, Sequence[tuple[float, float]]]


def plot(path: Path, lines: Lines, dotted: Lines, footnote: str, **labels: Any) -> None:
    """Lines over a logarithmic axis of sequences or rows; those of others are dotted. labels: of matplotlib's axes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    plt.rcParams["svg.hashsalt"] = path.stem
    figure, axes = plt.subplots(figsize=(7, 4))
    for group, style in ((lines, "-o"), (dotted, ":s")):
        for name, points in group.items():
            axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({x for group in (lines, dotted) for points in group.values() for x, _ in points
                            if float(x).is_integer() and not int(x) & int(x) - 1}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(ylim=(0, None), **labels)
    axes.legend(fontsize=7)
    figure.text(0.01, 0.01, footnote, fontsize=5)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
