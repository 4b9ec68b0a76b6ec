"""Reports of a search: terminal, JSON, self-contained HTML, figures, notebook; all from one `RunView`."""

from __future__ import annotations

from pathlib import Path

from hwnas.report.cells import cell_svg
from hwnas.report.figures import front_figure, hypervolume_figure, write_figures
from hwnas.report.notebook import repr_html
from hwnas.report.page import html, write_html
from hwnas.report.terminal import ending, front_table, full, sentences, summary
from hwnas.report.tojson import to_json
from hwnas.report.view import Role, RunView

__all__ = [
    "Role",
    "RunView",
    "cell_svg",
    "ending",
    "front_figure",
    "front_table",
    "full",
    "html",
    "hypervolume_figure",
    "repr_html",
    "sentences",
    "summary",
    "to_json",
    "write_figures",
    "write_html",
    "write_report",
]


def write_report(view: RunView, folder: Path) -> list[Path]:
    """Write report.html, front.png, front.pdf, hypervolume.png and hypervolume.pdf; each file at once or not at all.

    Args:
        view: What to report.
        folder: Where to; created if needed, earlier reports in it are replaced.

    Returns:
        The paths, the HTML file first.

    Raises:
        OSError: As the file system says it.
    """
    return [write_html(view, folder / "report.html"), *write_figures(view, folder)]
