"""Pictures with their maps: a click, a key or a finger lays the map over the picture and takes it away.

Pictures are in the page, made small; each comes from the CAM job's folder. Knows no figures.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from cluster.errors import InputError, MissingObjectError
from dataloading.picture_size import PIXEL_LIMIT, read_size
from xdist_train.evidence.page import text
from xdist_train.evidence.report.reading import CamSummary

__all__ = ["GALLERY_SCRIPT", "GALLERY_STYLE", "gallery"]

_MOST_SHOWN = 72
_LONGEST_PX = 280
_QUALITY = 80
_GROUPS = {
    "TP": "found: it is {0}, and the model says so",
    "FN": "missed: it is {0}, and the model says another class",
    "FP": "mistaken: the model says {0}, and it is another class",
    "TN": "ruled out: it is not {0}, and the model does not say so",
}

GALLERY_STYLE = """
.shots { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 0.5rem 0 1.5rem; }
.shots figure { margin: 0; width: 15rem; max-width: calc(50% - 0.4rem); }
.shots button { position: relative; display: block; width: 100%; padding: 0; border: 0; background: none;
  cursor: pointer; border-radius: 6px; overflow: hidden; }
.shots button::after { content: "map"; position: absolute; right: 4px; bottom: 4px; padding: 0 6px; border-radius: 4px;
  font: 0.75rem/1.4 system-ui, sans-serif; color: #fff; background: rgb(0 0 0 / 65%); }
.shots button[aria-pressed=true]::after { background: #b04d00; }
.shots button:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
.shots img { display: block; width: 100%; height: auto; }
.shots .over { position: absolute; inset: 0; opacity: 0; transition: opacity 0.15s; }
.shots button[aria-pressed=true] .over { opacity: 1; }
@media (hover: hover) { .shots button:hover .over { opacity: 1; } }
.shots figcaption { font-size: 0.8rem; font-weight: normal; overflow-wrap: anywhere; }
@media print { .shots figure { break-inside: avoid; width: 9rem; } .shots .over { opacity: 1; } }
"""

GALLERY_SCRIPT = """
for (const shot of document.querySelectorAll(".shots button")) {
  shot.addEventListener("click", () =>
    shot.setAttribute("aria-pressed", shot.getAttribute("aria-pressed") === "true" ? "false" : "true"));
}
"""


def gallery(cam: CamSummary, names: Mapping[int, str]) -> Iterator[str]:
    """The job's pictures by class and kind of answer, surest first, then some at random.

    Args:
        names: what images are called, by id.
    """
    entries = [entry for entry in cam.values["gallery"] if entry["image"] and entry["overlay"]]
    classes = [name for name in cam.values["classes"] if any(entry["class"] == name for entry in entries)]
    each = max(1, _MOST_SHOWN // max(1, 4 * len(classes)))
    left = _MOST_SHOWN
    for name in classes:
        for group, words in _GROUPS.items():
            chosen = _chosen(entries, name, group, min(each, left))
            shots = [shot for entry in chosen if (shot := _shot(cam, entry, names))]
            left -= len(shots)
            if shots:
                yield f"<h4>{text(name)}, {text(words.format(name))}</h4>"
                yield f'<div class="shots">{"".join(shots)}</div>'


def _chosen(entries: Sequence[Mapping[str, Any]], name: str, group: str, count: int) -> list[Mapping[str, Any]]:
    """In turn the surest and one at random, none twice."""
    orders = [
        [entry for entry in entries if (entry["class"], entry["group"], entry["order"]) == (name, group, order)]
        for order in ("confident", "random")
    ]
    mixed = [entry for pair in zip(*_padded(orders), strict=True) for entry in pair if entry]
    return list({entry["id"]: entry for entry in reversed(mixed)}.values())[::-1][:count]


def _padded(lists: Sequence[list[Any]]) -> list[list[Any]]:
    longest = max(map(len, lists))
    return [[*items, *([None] * (longest - len(items)))] for items in lists]


def _shot(cam: CamSummary, entry: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """One picture; empty where it is not there any more."""
    try:
        plain, over = (_small(cam.store.read(entry[key]), cam.store.locate(entry[key])) for key in ("image", "overlay"))
    except MissingObjectError:
        return ""
    name = names.get(entry["id"], f"image {entry['id']}")
    right = entry["label"] == entry["predicted"]
    answer = f"{entry['predicted']} {entry['probability']:.0%}" + ("" if right else f", truly {entry['label']}")
    return (
        f'<figure><button type="button" aria-pressed="false" aria-label="{text(f"map over {name}")}">'
        f'<img alt="{text(name)}" src="{plain}"><img class="over" alt="" src="{over}"></button>'
        f"<figcaption>{text(answer)}<br>{text(name)}</figcaption></figure>"
    )


def _small(data: bytes, where: str) -> str:
    """A picture as a data address, its longest side made small; what it is was said by a document, so look first."""
    size = read_size(data)
    is_sound = size is not None and size[0] * size[1] <= PIXEL_LIMIT
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_BGR) if is_sound else None
    if picture is None:
        raise InputError(f"{where} is not a picture that `xdist-train cam` drew. Run that again for this run.")
    scale = min(1.0, _LONGEST_PX / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
