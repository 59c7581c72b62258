"""Rules of packing as a whole: what is written, what is refused, and that nothing half is ever left."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.store import open_store
from dataloading.config import PackConfig
from dataloading.dataset import SHARD_SCHEMA, SPLITS, Dataset, open_dataset, shard_key
from dataloading.packing.pack import PackResult, run_pack
from dataloading.splits import split_of
from tests.dataloading.packing.pictures import (
    decode,
    draw,
    draw_colour,
    encode,
    jpeg_segment,
    turned,
    with_segments,
    write,
    write_set,
)

NAME = b"Jane Doe"


def pack(source: Path, out: Path, **options: object) -> PackResult:
    """Pack on one worker unless told otherwise."""
    outside = {name: options.pop(name) for name in ("csv", "masks", "progress") if name in options}
    return run_pack(source, open_store(str(out)), PackConfig(**{"workers": 1, **options}), **outside)


def shard_rows(dataset: Dataset, number: int) -> pa.RecordBatch:
    """The one record batch of a shard."""
    reader = pa.ipc.open_file(pa.memory_map(str(dataset.store.path(shard_key(number)))))
    assert 1 == reader.num_record_batches
    return reader.get_batch(0)


def packed_images(dataset: Dataset) -> dict[str, tuple[bytes, bytes | None]]:
    """(image, mask) by source, looked up as the manifest says."""
    batches = [shard_rows(dataset, number) for number in range(len(dataset.info.shards))]
    found = {}
    for row in dataset.read_manifest().to_pylist():
        batch = batches[row["shard"]]
        values = {name: batch.column(name)[row["row"]].as_py() for name in SHARD_SCHEMA.names}
        assert (row["id"], row["label"]) == (values["id"], values["label"])
        found[row["source"]] = (values["image"], values["mask"])
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes by split, with one of each thing that can be wrong with a file, and masks."""
    root = tmp_path_factory.mktemp("source")
    write_set(root, count=10, prefix="train/")
    write_set(root, count=4, prefix="test/")
    a, good = root / "train" / "A", encode(".jpg", draw(500))
    write(a / "A-900-1.jpeg", good[: len(good) // 2])
    write(a / "A-900-2.jpeg", b"")
    write(a / "A-900-3.png", b"no picture")
    write(a / "A-900-4.png", encode(".png", draw(501).astype(np.uint16) * 200))
    write(a / "A-900-5.png", encode(".png", draw(502, 200, 200)))
    write(a / "README.txt", b"read me")
    write(a / "A-901-1.jpeg", with_segments(encode(".jpg", draw(503)), jpeg_segment(0xFE, NAME)))
    write(a / "A-902-1.jpeg", turned(encode(".jpg", draw(504)), 6))
    write(a / "A-903-1.bmp", encode(".bmp", draw(505)))
    write(root / "train" / "B" / "B-904-1.jpeg", encode(".jpg", cv2.flip(draw(504), 1)))
    write(root / "train" / "B" / "B-905-1.png", encode(".png", cv2.flip(draw(503), 1)))
    write(root / "test" / "B" / "B-906-1.jpeg", (a / "A-1-2.jpeg").read_bytes())
    mask = encode(".png", (draw(1) > 99).astype(np.uint8) * 255)
    write(root / "masks" / "train" / "A" / "A-0-0.png", mask)
    write(root / "masks" / "A" / "A-901-1.png", mask)
    write(root / "masks" / "train" / "A" / "A-1-2.png", encode(".png", draw(1, 9, 9)))
    write(root / "masks" / "train" / "A" / "nobody.png", mask)
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that source is packed to."""
    return tmp_path_factory.mktemp("packed") / "set"


@pytest.fixture(scope="module")
def result(source: Path, out: Path) -> PackResult:
    """That source packed."""
    return pack(source, out, max_pixels=10_000)


@pytest.fixture(scope="module")
def dataset(result: PackResult, out: Path) -> Dataset:
    """That dataset opened."""
    return open_dataset(str(out))


def test_what_is_written_is_what_is_returned(result: PackResult, dataset: Dataset) -> None:
    """`dataset.json` reads back as the result, manifest and shards are those it names, nothing else is there."""
    assert result.info == dataset.info
    assert dataset.info.manifest_sha256 == hashlib.sha256(dataset.store.read("manifest.parquet")).hexdigest()
    data = dataset.store.read(shard_key(0))
    (shard,) = dataset.info.shards
    assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert ["dataset.json", "manifest.parquet", "quarantine.parquet", "shards"] == dataset.store.list()
    assert ["set"] == os.listdir(dataset.store.path().parent)


def test_manifest_is_ordered_and_counts_are_right(dataset: Dataset) -> None:
    """Ids are row numbers in order of (label, source); counts are those of the files that can be read."""
    rows = dataset.read_manifest().to_pylist()
    assert list(range(len(rows))) == [row["id"] for row in rows]
    assert rows == sorted(rows, key=lambda row: (row["label"], row["source"]))
    assert {"A": 17, "B": 17} == dataset.info.counts
    assert {"train": {"A": 13, "B": 12}, "test": {"A": 4, "B": 5}} == dataset.info.audit["given_split_counts"]


def test_each_unreadable_file_is_quarantined_with_its_reason(dataset: Dataset) -> None:
    """Nothing is dropped without a row that says why."""
    reasons = {Path(row["source"]).name: row["reason"] for row in dataset.read_quarantine().to_pylist()}
    expected = {
        "A-900-1.jpeg": "truncated", "A-900-2.jpeg": "empty file", "A-900-3.png": "not an image",
        "A-900-4.png": "16 bits", "A-900-5.png": "too many pixels (200 x 200", "README.txt": "not an image",
    }  # fmt: skip
    assert sorted(expected) == sorted(reasons)
    assert [True] * 6 == [reasons[name].startswith(reason) for name, reason in expected.items()]
    assert 6 == dataset.info.num_quarantined


def test_packed_images_show_what_the_files_show(source: Path, dataset: Dataset) -> None:
    """Each row finds its image; it decodes to the file's pixels, as large as the manifest says, without metadata."""
    images = packed_images(dataset)
    for row in dataset.read_manifest().to_pylist():
        original = (source / row["source"]).read_bytes()
        packed, _ = images[row["source"]]
        pixels = decode(packed, cv2.IMREAD_GRAYSCALE)
        assert decode(original, cv2.IMREAD_GRAYSCALE).tolist() == pixels.tolist()
        assert (row["height"], row["width"]) == pixels.shape
        assert (len(original), hashlib.sha256(original).hexdigest()) == (row["bytes"], row["sha256"])
        assert NAME not in packed
    assert {"comment": 1, "exif": 1} == dataset.info.audit["metadata"]


def test_masks_travel_with_their_images(dataset: Dataset) -> None:
    """A mask is found by split and class or by class; one that does not fit is a warning and null."""
    images = packed_images(dataset)
    masked = [row["source"] for row in dataset.read_manifest().to_pylist() if row["has_mask"]]
    assert (
        ["train/A/A-0-0.jpeg", "train/A/A-901-1.jpeg"] == masked == [name for name, (_, mask) in images.items() if mask]
    )
    mask = images["train/A/A-0-0.jpeg"][1]
    assert mask is not None
    assert ((draw(1) > 99) * 255).tolist() == decode(mask).tolist()
    assert (2, 1, 1) == tuple(
        figure if isinstance(figure, int) else figure["count"] for figure in dataset.info.audit["masks"].values()
    )


def test_mean_and_deviation_are_those_of_all_pixels(dataset: Dataset) -> None:
    """The set's own figures, over every pixel of every packed image."""
    pixels = np.concatenate([decode(image, 0).ravel() for image, _ in packed_images(dataset).values()]) / 255
    assert 1 == dataset.info.channels
    assert pytest.approx(pixels.mean()) == dataset.info.mean[0]
    assert pytest.approx(pixels.std()) == dataset.info.std[0]


def test_no_patient_and_no_duplicate_is_torn_apart(dataset: Dataset) -> None:
    """In the patient split and in folds, patients, copies and mirrored near-duplicates lie on one side."""
    manifest = dataset.read_manifest()
    patient_of = {row["source"]: row["patient"] for row in manifest.to_pylist()}
    for scheme in ("patient", "fold:0/3", "fold:2/3"):
        sides = defaultdict(set)
        parts = split_of(manifest, scheme, dataset.info.fractions, dataset.info.seed)
        for patient, part in zip(manifest.column("patient").to_pylist(), parts.tolist(), strict=True):
            sides[patient].add(part)
        assert {1} == {len(parts) for parts in sides.values()}
        for one, other in (("A-1-2.jpeg", "B-906-1.jpeg"), ("A-901-1.jpeg", "B-905-1.png")):
            (first,) = (patient for source, patient in patient_of.items() if source.endswith(one) and "train" in source)
            (second,) = (patient for source, patient in patient_of.items() if source.endswith(other))
            assert sides[first] == sides[second]
    near = dataset.info.audit["near_duplicates"]
    assert (1, 1, 1) == (near["count"], near["mirrored"], near["in_two_classes"])
    assert 1 == dataset.info.audit["duplicates"]["count"]


def test_the_summary_names_what_matters(result: PackResult) -> None:
    """Counts, rules, quarantine and warnings are printed, and nothing that could steer a terminal."""
    text = "\n".join(result.lines())
    for words in (
        "34 images of",
        "oct2017 34",
        "Quarantined: train/A/A-900-2.jpeg: empty file",
        "Warning: 1 mask do not fit",
    ):
        assert words in text


def test_same_input_same_fingerprint(source: Path, result: PackResult, tmp_path: Path) -> None:
    """Workers and a second run change nothing; the seed does."""
    again = pack(source, tmp_path / "again", max_pixels=10_000, workers=2)
    other = pack(source, tmp_path / "other", max_pixels=10_000, seed=1)
    assert again.info == result.info
    assert other.info.fingerprint != result.info.fingerprint


def test_colour_is_kept_and_shards_are_cut(tmp_path: Path) -> None:
    """One coloured picture makes the set RGB; rows run through shards in order of id, each about as large as asked."""
    write_set(tmp_path / "in", count=3)
    noise = np.random.default_rng(0).integers(0, 256, (7, 400, 600, 1), np.uint8)
    for number, picture in enumerate(noise):
        write(tmp_path / "in" / "B" / f"noise{number}.png", encode(".png", picture))
    write(tmp_path / "in" / "A" / "colour.png", encode(".png", draw_colour(9)))
    result = pack(tmp_path / "in", tmp_path / "out", shard_mib=1)
    dataset = open_dataset(str(tmp_path / "out"))
    assert 3 == result.info.channels
    assert 2 == len(result.info.shards)
    ids = [shard_rows(dataset, number).column("id").to_pylist() for number in range(2)]
    assert list(range(14)) == [*ids[0], *ids[1]]
    images = [decode(image, cv2.IMREAD_COLOR_RGB).reshape(-1, 3) for image, _ in packed_images(dataset).values()]
    pixels = np.concatenate(images) / 255
    assert pytest.approx(tuple(pixels.mean(axis=0))) == result.info.mean
    assert pytest.approx(tuple(pixels.std(axis=0))) == result.info.std


def test_a_csv_gives_labels_patients_and_splits(tmp_path: Path) -> None:
    """What a list says of patient and split is taken; where it is silent the rule is asked."""
    write_set(tmp_path / "in", count=4)
    sources = sorted(path.relative_to(tmp_path / "in").as_posix() for path in (tmp_path / "in").rglob("*.jpeg"))
    rows = [f"{source},{'xy'[number % 2]},{'p1' if number < 3 else ''}" for number, source in enumerate(sources)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,patient", *rows]))
    result = pack(tmp_path / "in", tmp_path / "out", csv=tmp_path / "list.csv", near_duplicates=False)
    assert {"x": 4, "y": 4} == result.info.counts
    assert {"csv": 3, "oct2017": 5} == result.info.audit["patients"]["found_by"]
    assert {"searched": False} == result.info.audit["near_duplicates"]


def test_refusals_write_nothing(source: Path, tmp_path: Path) -> None:
    """An output that exists or lies in the source, a wrong rule or masks that are not there: nothing is written."""
    (tmp_path / "taken").mkdir()
    for out, options, reason in (
        (tmp_path / "taken", {}, "exists"),
        (source / "packed", {}, "inside the source"),
        (tmp_path / "new" / "out", {"patient": "nih"}, "matches none"),
        (tmp_path / "new" / "out", {"masks": tmp_path / "nowhere"}, "--masks"),
    ):
        with pytest.raises(InputError, match=reason):
            pack(source, out, **options)
    assert ["taken"] == os.listdir(tmp_path)
    assert not (source / "packed").exists()


def test_a_class_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A class of which every file is quarantined ends packing, with an example, and nothing is left."""
    write_set(tmp_path / "in", count=2)
    write(tmp_path / "in" / "C" / "C-1-1.jpeg", b"no picture")
    with pytest.raises(InputError, match=r"class 'C' .* 'C/C-1-1.jpeg': not an image"):
        pack(tmp_path / "in", tmp_path / "out")
    assert ["in"] == os.listdir(tmp_path)


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle removes what was begun."""
    write_set(tmp_path / "in", count=2)
    seen = []

    def interrupt(what: str, done: int, total: int) -> None:
        seen.append(sorted(os.listdir(tmp_path))[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "in", tmp_path / "out", progress=interrupt)
    assert [True] == [name.startswith(".out.partial-") for name in seen]
    assert ["in"] == os.listdir(tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
from cluster.errors import StoreError
from cluster.store import open_store
from dataloading.config import PackConfig
from dataloading.packing.pack import run_pack

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    try:
        run_pack(Path(sys.argv[1]), open_store(sys.argv[2]), PackConfig(workers=1))
    except StoreError as error:
        print(error)
        raise SystemExit(error.exit_code)
"""


@pytest.mark.parametrize("limit_bytes", [10_000, 60_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit_bytes: int) -> None:
    """No room for the small copies, or for a shard: one error of the store, exit code 1, and no folder."""
    for name in "AB":
        noise = np.random.default_rng(ord(name)).integers(0, 256, (4, 100, 200), np.uint8)
        for number, picture in enumerate(noise):
            write(tmp_path / "in" / name / f"{name}-{number}-1.png", encode(".png", picture))
    (tmp_path / "script.py").write_text(FULL_DISK)
    command = [
        sys.executable,
        str(tmp_path / "script.py"),
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        str(limit_bytes),
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (1, True) == (done.returncode, "cannot write (File too large)" in done.stdout), done.stderr
    assert ["in", "script.py"] == sorted(os.listdir(tmp_path))


def test_real_oct_images(real_data: Path, tmp_path: Path) -> None:
    """47 scans of 41 patients are packed as they are, in gray; nothing is wrong with them and nothing is said."""
    result = pack(real_data / "oct_real", tmp_path / "out")
    assert {"CNV": 13, "DME": 11, "DRUSEN": 11, "NORMAL": 12} == result.info.counts
    assert (41, 1, 0) == (result.info.num_patients, result.info.channels, result.info.num_quarantined)
    assert {"oct2017": 47} == result.info.audit["patients"]["found_by"]
    assert [] == result.info.audit["warnings"]
    for source, (image, _) in packed_images(open_dataset(str(tmp_path / "out"))).items():
        assert image == (real_data / "oct_real" / source).read_bytes()


def test_real_xray_images(real_data: Path, tmp_path: Path) -> None:
    """644 X-rays: 15 of 382 named patients in two classes, one confirmed pair where hashes alone see hundreds."""
    result = pack(real_data / "xray_real", tmp_path / "out", workers=2)
    audit = result.info.audit
    assert {"COVID19": 75, "NORMAL": 279, "PNEUMONIA": 290} == result.info.counts
    assert {"nih": 569, "stem": 75} == audit["patients"]["found_by"]
    assert (382 + 75, 15) == (audit["patients"]["count"], audit["patients"]["in_two_classes"]["count"])
    assert (1, 1) == (audit["near_duplicates"]["count"], audit["near_duplicates"]["between_patients"]["count"])
    assert audit["size_baseline"]["above_chance"]
    manifest = open_dataset(str(tmp_path / "out")).read_manifest()
    sides = defaultdict(set)
    for row in manifest.to_pylist():
        sides[row["patient"]].add(row["patient_split"])
    assert {1} == {len(found) for found in sides.values()}
    shares = np.array([manifest.column("patient_split").to_pylist().count(split) for split in SPLITS]) / 644
    assert pytest.approx((0.7, 0.15, 0.15), abs=0.01) == shares


def test_a_set_is_packed_into_a_store(tmp_path: Path, s3: str) -> None:
    """The same dataset as on a disk, object by object; a taken place is refused."""
    write_set(tmp_path / "in", count=4)
    local = pack(tmp_path / "in", tmp_path / "out")
    remote = run_pack(tmp_path / "in", open_store(s3), PackConfig(workers=1))
    assert local.info == remote.info == open_dataset(s3).info
    keys = sorted(open_store(str(tmp_path / "out")).walk())
    assert keys == sorted(open_store(s3).walk())
    with pytest.raises(InputError, match="is not empty"):
        run_pack(tmp_path / "in", open_store(s3), PackConfig(workers=1))


def test_a_failed_pack_leaves_nothing_in_a_store(tmp_path: Path, s3: str) -> None:
    """Interrupted after shards were begun, it removes its objects; while it runs nobody else may begin."""
    write_set(tmp_path / "in", count=4)

    def interrupt(what: str, done: int, total: int) -> None:
        with pytest.raises(InputError, match=r"is not empty: it holds \.packing"):
            run_pack(tmp_path / "in", open_store(s3), PackConfig(workers=1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pack(tmp_path / "in", open_store(s3), PackConfig(workers=1), progress=interrupt)
    assert list(open_store(s3).walk()) == []
