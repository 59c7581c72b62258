"""Prediction of image files: the evaluation's own view, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cluster.errors import InputError
from cluster.store import open_store
from xdist_train.config import ModelConfig
from xdist_train.evidence.predict import Prediction, predict_images
from xdist_train.models.backbones import build_model
from xdist_train.models.export import ModelDescription, Preprocessing, Selection, save_model

_SIZE = 32


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a published model of three classes on gray images."""
    torch.manual_seed(0)
    config = ModelConfig(backbone="small_cnn", norm="group")
    description = ModelDescription(
        classes=("CNV", "DME", "NORMAL"),
        preprocessing=Preprocessing(
            image_size=_SIZE, fit="stretch", channels=1, mean=(0.2,), std=(0.1,), reduce_tolerance=0.9
        ),
        model=config,
        split="patient",
        fingerprint="",
        selection=Selection(epoch=0, step=1, metric="mcc", value=0.0),
    )
    save_model(open_store(str(tmp_path / "run")), build_model(config, 3).state_dict(), description)
    return tmp_path / "run"


def _image(path: Path, seed: int = 0, size: tuple[int, int] = (_SIZE, _SIZE)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def test_it_is_the_published_model_on_the_evaluations_view(tmp_path: Path, run: Path) -> None:
    """An image of the model's own size needs no warp: probabilities are those of its normalised pixels."""
    from xdist_train.models.export import load_model

    path = _image(tmp_path / "a.png")
    model, _ = load_model(str(run))
    pixels = torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).float() / 255
    with torch.no_grad():
        logits = model(((pixels - 0.2) / 0.1).expand(1, 3, -1, -1))
    (prediction,) = predict_images(str(run), [path])
    expected = torch.softmax(logits, dim=1)[0].tolist()
    assert pytest.approx(expected, abs=1e-5) == list(prediction.probabilities.values())


def test_every_file_has_its_answer_in_order(tmp_path: Path, run: Path) -> None:
    """More files than a batch, of different sizes and formats; each answer is the one it has alone."""
    paths = [_image(tmp_path / f"{n}.{'png' if n % 2 else 'jpg'}", n, (40 + n, 30)) for n in range(35)]
    answers = predict_images(str(run / "model"), paths)
    assert [str(path) for path in paths] == [answer.source for answer in answers]
    (alone,) = predict_images(str(run), paths[33:34])
    assert pytest.approx(alone.probabilities, abs=1e-6) == answers[33].probabilities
    assert all(
        max(answer.probabilities, key=answer.probabilities.__getitem__) == answer.predicted for answer in answers
    )


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "missing", "folder"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, run: Path, kind: str) -> None:
    """One bad file among good ones: nothing is predicted, the file is named."""
    good, bad = _image(tmp_path / "good.jpg", size=(200, 200)), tmp_path / "bad.jpg"
    content = {"text": b"not an image", "empty": b"", "truncated": good.read_bytes()[:-2000]}
    if kind in content:
        bad.write_bytes(content[kind])
    elif kind == "folder":
        bad.mkdir()
    with pytest.raises(InputError, match=r"bad\.jpg' is not a readable image .*Nothing was predicted"):
        predict_images(str(run), [good, bad])


def test_orientation_in_the_metadata_is_followed(tmp_path: Path, run: Path) -> None:
    """A picture stored on its side with EXIF orientation is the upright picture."""
    from PIL import Image

    pixels = np.kron(np.random.default_rng(1).integers(0, 255, (5, 8)), np.ones((16, 16))).astype(np.uint8)
    upright, turned = tmp_path / "upright.jpg", tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(upright, quality=100)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show
    Image.fromarray(np.rot90(pixels)).save(turned, quality=100, exif=exif)
    first, second = predict_images(str(run), [upright, turned])
    assert pytest.approx(first.probabilities, abs=1e-2) == second.probabilities


def test_the_answer_as_json_and_as_text() -> None:
    """JSON has every class; the line has the likeliest first, and no control characters."""
    prediction = Prediction("a\x1b.png", "b", {"a": 0.25, "b": 0.75})
    expected = {"source": "a\x1b.png", "predicted": "b", "probabilities": {"a": 0.25, "b": 0.75}}
    assert expected == json.loads(json.dumps(prediction.to_json()))
    assert prediction.text(1) == "a\\x1b.png  b 0.7500"
