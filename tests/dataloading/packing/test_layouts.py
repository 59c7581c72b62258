"""Published layouts: a tiny tree of each is packed as the set's authors meant it, and another tree is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from cluster.errors import InputError
from cluster.store import open_store
from dataloading.config import PackConfig
from dataloading.dataset import open_dataset
from dataloading.packing.layouts import LAYOUTS
from dataloading.packing.pack import PackResult, run_pack
from dataloading.splits import split_of
from tests.dataloading.packing.pictures import draw, encode, write

CHEST_XRAY = (
    *(f"train/NORMAL/IM-{number:04}-0001.jpeg" for number in range(115, 121)),
    "train/NORMAL/NORMAL2-IM-0503-0001.jpeg", "train/NORMAL/NORMAL2-IM-0503-0002.jpeg",
    *(f"train/PNEUMONIA/person{number}_bacteria_{number + 3}.jpeg" for number in range(1, 8)),
    "train/PNEUMONIA/person1_virus_9.jpeg",
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg", "test/NORMAL/IM-0003-0001.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg", "test/PNEUMONIA/person100_bacteria_475.jpeg",
)  # fmt: skip
COVID_CT = {
    ("COVID", "train"): ["2020.01.24.919183-p27-132.png", "2020.02.10.20021584-p6-52%0.png",
                         "2020.02.10.20021584-p6-52%1.png", "PIIS0140673620303603%8.jpg"],
    ("COVID", "val"): ["2020.02.22.20024927-p18-66%2.png"],
    ("COVID", "test"): ["2020.03.04.20026005-p8-91%0.png"],
    ("NonCOVID", "train"): ["0.jpg", "1%0.jpg", "1%1.jpg", "10%2.jpg"],
    ("NonCOVID", "val"): ["1003.png"],
    ("NonCOVID", "test"): ["673.jpg"],
}  # fmt: skip
COVID_XRAY = tuple(
    f"{split}/{name}/{name}({number}).jpg"
    for name in ("COVID19", "NORMAL", "PNEUMONIA")
    for split, numbers in (("train", range(8)), ("test", range(8, 10)))
    for number in numbers
)
OCT2017 = tuple(
    f"{split}/{name}/{name}-{1000 * place + 10 * label + number}-{number}.jpeg"
    for place, split in enumerate(("train", "val", "test"))
    for label, name in enumerate(("CNV", "DME", "DRUSEN", "NORMAL"))
    for number in range(1, 3 if split == "val" else 5)
)


def write_tree(root: Path, *files: str) -> Path:
    """Pictures, each unlike the others, under the names of a set."""
    for number, file in enumerate(files):
        write(root / file, encode(Path(file).suffix, draw(number)))
    return root


def write_covid_ct(root: Path) -> Path:
    """UCSD's repository: folders of images, lists of splits, and what else lies there."""
    write(root / "README.md", b"read me")
    write(root / "baseline methods" / "figure.png", encode(".png", draw(999)))
    for (name, split), files in COVID_CT.items():
        write_tree(root / "Images-processed" / f"CT_{name}", *files)
        for number, file in enumerate(files):
            picture = encode(Path(file).suffix, draw(seed_of(name, split) + number))
            write(root / "Images-processed" / f"CT_{name}" / file, picture)
        lines = "\n".join(files) + "\n\n"
        write(root / "Data-split" / name / f"{split}CT_{name}.txt", lines.encode())
    return root


def seed_of(name: str, split: str) -> int:
    """A seed of its own for each list."""
    return 100 * list(COVID_CT).index((name, split))


def pack(source: Path, out: Path, **options: object) -> PackResult:
    """Pack on one worker."""
    return run_pack(source, open_store(str(out)), PackConfig(**{"workers": 1, **options}))


def given_counts(result: PackResult) -> dict[str, list[int]]:
    """Images by class, in the order of labels, of each of the set's own splits."""
    return {split: list(counts.values()) for split, counts in result.info.audit["given_split_counts"].items()}


def parts(out: Path, scheme: str) -> Counter[int]:
    """Images in train (0), val (1) and test (2) under a scheme."""
    dataset = open_dataset(str(out))
    return Counter(split_of(dataset.read_manifest(), scheme, dataset.info.fractions, dataset.info.seed).tolist())


def test_every_layout_can_be_named() -> None:
    """`pack.layout` takes the rows of the table, and `auto`."""
    assert ("auto", *LAYOUTS) == get_args(get_type_hints(PackConfig)["layout"])


@pytest.mark.parametrize("layout", ["auto", "oct2017"])
def test_oct2017(tmp_path: Path, layout: str) -> None:
    """Kermany's OCT set is found behind its wrapping folder; patients are in the names; a small val is warned of."""
    write_tree(tmp_path / "in" / "OCT2017 ", *OCT2017)
    result = pack(tmp_path / "in", tmp_path / "out", layout=layout)
    audit = result.info.audit
    assert ("oct2017", ("CNV", "DME", "DRUSEN", "NORMAL")) == (audit["layout"], result.info.classes)
    assert {"train": [4] * 4, "val": [2] * 4, "test": [4] * 4} == given_counts(result)
    assert {"oct2017": 40} == audit["patients"]["found_by"]
    assert "Layout: oct2017. Patients found by: oct2017 40." in "\n".join(result.lines())
    assert any("own val has 8 images" in warning for warning in audit["warnings"])


@pytest.mark.parametrize("layout", ["auto", "chest_xray"])
def test_chest_xray(tmp_path: Path, layout: str) -> None:
    """Kaggle's pneumonia set: patients by both kinds of names, the copy of the set left alone, a new split offered."""
    write_tree(tmp_path / "in" / "chest_xray", *CHEST_XRAY, *(f"chest_xray/{file}" for file in CHEST_XRAY))
    write(tmp_path / "in" / "chest_xray" / "__MACOSX" / "chest_xray" / "._train", b"")
    result = pack(tmp_path / "in", tmp_path / "out", layout=layout)
    audit = result.info.audit
    assert ("chest_xray", {"NORMAL": 11, "PNEUMONIA": 11}) == (audit["layout"], result.info.counts)
    assert {"train": [8, 8], "val": [1, 1], "test": [2, 2]} == given_counts(result)
    assert {"chest_xray": 22} == audit["patients"]["found_by"]
    assert (19, ["person1"]) == (result.info.num_patients, audit["given_splits_share"]["patients"]["names"])
    (warning,) = (warning for warning in audit["warnings"] if "own val has 2 images" in warning)
    assert "data.split=given_test keeps its test" in warning
    assert "data.split=patient draws all" in warning
    assert {0: 16, 1: 2, 2: 4} == parts(tmp_path / "out", "given")
    drawn = parts(tmp_path / "out", "given_test")
    assert (18, 4) == (drawn[0] + drawn[1], drawn[2])
    assert 2 <= drawn[1] <= 4


@pytest.mark.parametrize("layout", ["auto", "covid_ct"])
def test_covid_ct(tmp_path: Path, layout: str) -> None:
    """UCSD's set: lists tell the splits, NonCOVID is label 0, pictures of one paper are kept as one patient's."""
    write_covid_ct(tmp_path / "in" / "COVID-CT-master")
    result = pack(tmp_path / "in", tmp_path / "out", layout=layout)
    audit = result.info.audit
    assert ("covid_ct", ("NonCOVID", "COVID")) == (audit["layout"], result.info.classes)
    assert {"train": [4, 4], "val": [1, 1], "test": [1, 1]} == given_counts(result)
    assert {"covid_ct": 9, "stem": 3} == audit["patients"]["found_by"]
    rows = open_dataset(str(tmp_path / "out")).read_manifest().to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["label"], row["source"]))
    patient_of = {row["source"].rpartition("/")[2]: (row["label"], row["patient"]) for row in rows}
    assert (1, "2020.02.10.20021584") == patient_of["2020.02.10.20021584-p6-52%0.png"]
    assert (0, "1") == patient_of["1%0.jpg"] == patient_of["1%1.jpg"]
    assert {0: 8, 1: 2, 2: 2} == parts(tmp_path / "out", "given")


def test_covid_ct_lists_are_the_set(tmp_path: Path) -> None:
    """A picture in no list and a listed one that is not there are quarantined, each with its reason."""
    root = write_covid_ct(tmp_path / "in")
    write(root / "Images-processed" / "CT_COVID" / "unlisted.png", encode(".png", draw(77)))
    (root / "Images-processed" / "CT_NonCOVID" / "0.jpg").unlink()
    result = pack(root, tmp_path / "out")
    assert {
        "Images-processed/CT_COVID/unlisted.png": "in no list of a split",
        "Images-processed/CT_NonCOVID/0.jpg": "no such file",
    } == {item.source: item.reason for item in result.quarantined}


def test_covid_ct_lists_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    """A picture in the lists of two splits, a list that is no text, or one that leads out of the source."""
    root = write_covid_ct(tmp_path / "in")
    path = root / "Data-split" / "COVID" / "testCT_COVID.txt"
    outside = tmp_path / "secret.txt"
    outside.write_text("name\n")
    for content, reason in ((b"PIIS0140673620303603%8.jpg\n", "in the list of train too"), (b"\xff\xfe", "not a read")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            pack(root, tmp_path / "out", layout="covid_ct")
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(InputError, match="leaves SRC"):
        pack(root, tmp_path / "out", layout="covid_ct")


@pytest.mark.parametrize("layout", ["auto", "covid_xray"])
def test_covid_xray(tmp_path: Path, layout: str) -> None:
    """The set without val: said when packed, refused as `given`, and given_test draws val from train."""
    write_tree(tmp_path / "in" / "Data", *COVID_XRAY)
    result = pack(tmp_path / "in", tmp_path / "out", layout=layout)
    audit = result.info.audit
    assert ("covid_xray", ("COVID19", "NORMAL", "PNEUMONIA")) == (audit["layout"], result.info.classes)
    assert {"train": [8] * 3, "test": [2] * 3} == given_counts(result)
    assert {"stem": 30} == audit["patients"]["found_by"]
    assert any("has no val of its own" in warning and "given_test" in warning for warning in audit["warnings"])
    with pytest.raises(InputError, match=r"val missing.*data\.split=given_test"):
        parts(tmp_path / "out", "given")
    drawn = parts(tmp_path / "out", "given_test")
    assert (24, 6) == (drawn[0] + drawn[1], drawn[2])
    assert 3 <= drawn[1] <= 6


@pytest.mark.parametrize(
    ("layout", "files", "reason"),
    [
        ("oct2017", CHEST_XRAY, r"for train\|val\|test/CNV\|DME\|DRUSEN\|NORMAL: train/CNV, .*train/PNEUMONIA not"),
        ("chest_xray", ("NORMAL/a.jpeg", "PNEUMONIA/b.jpeg"), "train/NORMAL, train/PNEUMONIA missing; test/NORMAL"),
        ("chest_xray", (*CHEST_XRAY, "val/OTHER/x.jpeg"), "val/OTHER not in it"),
        ("covid_xray", tuple(file for file in COVID_XRAY if "test/NORMAL" not in file), ": test/NORMAL missing"),
        ("covid_ct", COVID_XRAY, "Images-processed/CT_NonCOVID, Images-processed/CT_COVID missing"),
        ("covid_ct", ("Images-processed/CT_COVID/a.png", "Images-processed/CT_NonCOVID/b.png", "Data-split/c.png"),
         "Data-split/CLASS/SPLITCT_CLASS.txt: Data-split/NonCOVID/trainCT_NonCOVID.txt, "),
    ],
)  # fmt: skip
def test_another_tree_is_refused(tmp_path: Path, layout: str, files: tuple[str, ...], reason: str) -> None:
    """A layout asked for by name must be there: the refusal says what was looked for and what is not so."""
    write_tree(tmp_path / "in", *files)
    with pytest.raises(InputError, match=reason):
        pack(tmp_path / "in", tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_auto_takes_other_trees_as_they_are(tmp_path: Path) -> None:
    """Folders that are no published set keep the general layouts."""
    write_tree(tmp_path / "a", "train/A/1.png", "train/B/2.png", "test/A/3.png")
    write_tree(tmp_path / "b", *(file for file in CHEST_XRAY if "test/NORMAL" not in file))
    write_tree(tmp_path / "c", "NORMAL/1.png", "PNEUMONIA/2.png")
    layouts = [pack(tmp_path / name, tmp_path / f"{name}-out").info.audit["layout"] for name in "abc"]
    assert ["split/class", "split/class", "class"] == layouts


def test_a_csv_and_a_layout_contradict_each_other(tmp_path: Path) -> None:
    """Both say where images lie, so only one may be given."""
    write_tree(tmp_path / "in", *CHEST_XRAY)
    with pytest.raises(InputError, match=r"--csv and pack\.layout=chest_xray"):
        run_pack(
            tmp_path / "in",
            open_store(str(tmp_path / "out")),
            PackConfig(layout="chest_xray"),
            csv=tmp_path / "list.csv",
        )
