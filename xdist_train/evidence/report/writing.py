"""`report.html`: a run's folder becomes one page, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from cluster.runs import REPORT, add_object, require_ended
from cluster.store import open_store
from xdist_train.evidence.page import page, text
from xdist_train.evidence.report.gallery import GALLERY_SCRIPT, GALLERY_STYLE
from xdist_train.evidence.report.reading import RunEvidence, read_evidence
from xdist_train.evidence.report.sections import sections
from xdist_train.evidence.report.threshold import THRESHOLD_SCRIPT

__all__ = ["run_report", "write_report"]

_STYLE = """
figure > img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figure > figcaption { font-weight: 600; padding-bottom: 0.4rem; }
.warnings { border-left: 4px solid #d55e00; padding: 0.2rem 1rem; background: var(--soft); border-radius: 0 6px 6px 0; }
.scroll { margin-bottom: 1.4rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.charts figure { margin: 0.5rem 0; flex: 0 1 22rem; }
details > summary { cursor: pointer; font-weight: 600; margin: 1.2rem 0; }
h4 { margin: 1rem 0 0.2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
details pre { max-height: 30rem; overflow-y: auto; }
input[type=range] { width: 16rem; max-width: 100%; vertical-align: middle; }
@media (max-width: 40rem) { tbody th { white-space: normal; } td.long { min-width: 8rem; } }
@media print { body { max-width: none; } .scroll { max-height: none; } section { break-inside: auto; } }
"""


def write_report(uri: str, *, out: Path | None = None, real_names: bool = False) -> str:
    """Make the page of a run; where it lies.

    Args:
        uri: of the run folder.
        out: a file to write instead of the run folder's `report.html`.
        real_names: show file names and patients as they are, for those who may see them.

    Raises:
        InputError: no run, one that is still going on, no figures yet, or something that cannot be read.
    """
    run = read_evidence(uri, real_names=real_names)
    if out is None:
        require_ended(run.record, uri)
    data = run_report(run).encode()
    if out is not None:
        open_store(str(out.parent)).write(out.name, data)
        return str(out)
    add_object(run.store, REPORT, data)
    return run.store.locate(REPORT)


def run_report(run: RunEvidence) -> str:
    """The page."""
    title = f"Run {run.store.name}"
    parts = [f"<h1>{text(title)}</h1>", *sections(run)]
    return page(title, parts, style=_STYLE + GALLERY_STYLE, script=GALLERY_SCRIPT + THRESHOLD_SCRIPT, closed=True)
