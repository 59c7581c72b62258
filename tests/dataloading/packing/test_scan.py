"""Rules of the scan: layouts, what holds no images, what is refused, and whose image a file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import InputError
from dataloading.packing.patients import parse_patient_rule
from dataloading.packing.scan import scan_source
from tests.dataloading.packing.pictures import write


def make(root: Path, *files: str) -> Path:
    """A tree of files with some bytes in them."""
    for file in files:
        write(root / file, b"data")
    return root


def found(root: Path, **options: Path) -> list[tuple[str, str, str | None]]:
    """(source, class, given split) of what a scan finds."""
    return [(image.source, image.class_name, image.given_split) for image in scan_source(root, **options).images]


def test_class_folders(tmp_path: Path) -> None:
    """Each folder is a class; images are ordered by class and source; folders below belong to the class."""
    make(tmp_path, "B/b.png", "A/z.JPG", "A/deep/a.jpeg")
    assert [("A/deep/a.jpeg", "A", None), ("A/z.JPG", "A", None), ("B/b.png", "B", None)] == found(tmp_path)


def test_oct2017_layout_with_its_traps(tmp_path: Path) -> None:
    """Split and class folders behind a wrapping folder, with trailing spaces and what systems leave behind."""
    home = "OCT2017 /"
    make(
        tmp_path,
        *(f"{home}{split}/{name}/{name}-1-1.jpeg" for split in ("train", "val ", "test") for name in ("CNV", "DME ")),
        ".DS_Store", f"{home}.DS_Store", f"{home}train/.DS_Store", f"{home}train/CNV/.DS_Store",
        "__MACOSX/OCT2017 /train/CNV/._CNV-1-1.jpeg", f"{home}masks/train/CNV/CNV-1-1.png",
    )  # fmt: skip
    scan = scan_source(tmp_path)
    assert ("CNV", "DME") == scan.classes
    assert ("split/class", "OCT2017 ", ()) == (scan.layout, scan.home, scan.rejected)
    assert ["test", "train", "val"] * 2 == [image.given_split for image in scan.images]


@pytest.mark.parametrize("name", ["validation", "Valid", "VAL"])
def test_other_names_of_val(tmp_path: Path, name: str) -> None:
    """The usual spellings of val are understood."""
    make(tmp_path, "train/A/a.png", "train/B/b.png", f"{name}/A/c.png")
    assert {"train", "val"} == {split for *_, split in found(tmp_path)}


def test_masks_are_never_images(tmp_path: Path) -> None:
    """A folder called masks is passed over at any depth, and so is the one that --masks names."""
    make(tmp_path, "A/a.png", "B/b.png", "masks/A/a.png", "B/masks/b.png", "lesions/A/a.png")
    assert ["A/a.png", "B/b.png"] == [source for source, *_ in found(tmp_path, skip=tmp_path / "lesions")]


def test_other_files_are_quarantined_by_name(tmp_path: Path) -> None:
    """Files that are no images, or lie outside classes, are listed with a reason; a README beside classes is not."""
    make(tmp_path, "README.md", "loose.png", "A/a.png", "A/README", "A/notes.txt", "B/b.png")
    os.mkfifo(tmp_path / "B" / "pipe.png")
    assert [
        ("A/README", "not an image"),
        ("A/notes.txt", "not an image"),
        ("B/pipe.png", "not an image"),
        ("loose.png", "outside any class folder"),
    ] == [(item.source, item.reason) for item in scan_source(tmp_path).rejected]


def test_names_that_are_not_utf8_are_quarantined(tmp_path: Path) -> None:
    """A name that cannot be stored as text is listed with escapes."""
    make(tmp_path, "A/a.png", "B/b.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/A/\xff.png")).write_bytes(b"data")
    (rejected,) = scan_source(tmp_path).rejected
    assert ("A/\\udcff.png", "the file's name is not UTF-8") == (rejected.source, rejected.reason)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "no images"),
        (("a.png", "b.png"), "no images"),
        (("A/a.png",), "no images|one class"),
        (("wrap/A/a.png",), "one class"),
        (("train/A/a.png", "test/A/b.png"), "one class"),
        (("train/A/a.png", "train/B/b.png", "test/C/c.png"), "test has the class 'C', which train lacks"),
        (("val/A/a.png", "val/B/b.png"), "train lacks"),
        (("train/A/a.png", "train/B/b.png", "other/A/a.png"), "mixes"),
        (("A/a.png", "B/b.txt"), "holds no images"),
    ],
)
def test_unusable_trees_are_refused(tmp_path: Path, files: tuple[str, ...], reason: str) -> None:
    """What no classifier can be trained on is refused before any file is read."""
    with pytest.raises(InputError, match=reason):
        scan_source(make(tmp_path, *files))


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    """A source that is no folder is refused, its name escaped."""
    with pytest.raises(InputError, match=r"\\x1b\[31m"):
        scan_source(tmp_path / "\x1b[31mred")


@pytest.mark.parametrize("place", ["A/link.png", "C", "train"])
def test_links_that_leave_the_source_are_refused(tmp_path: Path, place: str) -> None:
    """A link out of SRC is refused, be it a file or a folder; links inside are files like others."""
    outside = make(tmp_path / "outside", "x.png")
    root = make(tmp_path / "in", "A/a.png", "B/b.png")
    (root / "B" / "inside.png").symlink_to(root / "A" / "a.png")
    assert 3 == len(found(root))
    (root / place).symlink_to(outside / "x.png" if "." in place else outside)
    with pytest.raises(InputError, match="leaves SRC"):
        scan_source(root)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    """A link to a folder inside SRC is not followed: it may lead back to itself."""
    root = make(tmp_path, "A/a.png", "B/b.png")
    (root / "A" / "loop").symlink_to(root)
    with pytest.raises(InputError, match="not followed"):
        scan_source(root)


def scan_list(root: Path, text: str) -> list[tuple[str, str, str | None, str | None]]:
    """What a scan by CSV finds, with patients."""
    path = root / "list.csv"
    path.write_text(text, encoding="utf-8")
    images = scan_source(root, path).images
    return [(image.source, image.class_name, image.given_split, image.patient) for image in images]


def test_csv_names_files_classes_patients_and_splits(tmp_path: Path) -> None:
    """A CSV replaces the folders' say; patient and split may be missing or empty; a BOM does not hurt."""
    make(tmp_path, "x/1.png", "x/2.png", "y/3.png")
    text = "\ufeffPath,Label,patient,split\nx/2.png,b,,train\n./x/1.png,a,p7,train\ny/3.png,a,,validation\n"
    assert [
        ("x/1.png", "a", "train", "p7"),
        ("y/3.png", "a", "val", None),
        ("x/2.png", "b", "train", None),
    ] == scan_list(tmp_path, text)
    assert [("x/1.png", "a", None, None), ("x/2.png", "b", None, None)] == scan_list(
        tmp_path, "path,label\nx/1.png,a\nx/2.png,b\n"
    )


@pytest.mark.parametrize("path", ["../out.png", "/etc/hostname.png", "x/../../out.png", "x/link.png", "x/\0.png"])
def test_csv_paths_that_leave_the_source_are_refused(tmp_path: Path, path: str) -> None:
    """A list cannot reach files outside SRC, by whatever way."""
    root = make(tmp_path / "in", "x/1.png", "x/2.png")
    make(tmp_path, "out.png")
    (root / "x" / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(InputError, match=r"line 4: .*leaves SRC"):
        scan_list(root, f"path,label\nx/1.png,a\nx/2.png,b\n{path},a\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must name the columns path and label"),
        ("file,class\nx/1.png,a\n", "must name the columns path and label"),
        ("path,label\nx/1.png,\n", "line 2: path or label is empty"),
        ("path,label\nx/1.png,a\nx/./1.png,b\n", "line 3: 'x/1.png' is listed twice"),
        ("path,label,split\nx/1.png,a,dev\n", "line 2: split 'dev'"),
        ("path,label\nx/1.png,a\nx/2.png,a\n", "one class"),
        ("path,label\n", "no images"),
    ],
)
def test_csv_that_makes_no_sense_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """A wrong list is refused with its line."""
    with pytest.raises(InputError, match=reason):
        scan_list(make(tmp_path, "x/1.png", "x/2.png"), text)


def test_csv_quarantines_files_that_are_not_there(tmp_path: Path) -> None:
    """A listed file that is missing is quarantined, not silently dropped."""
    make(tmp_path, "1.png", "2.png")
    (tmp_path / "list.csv").write_text("path,label\n1.png,a\n2.png,b\n3.png,b\n")
    scan = scan_source(tmp_path, tmp_path / "list.csv")
    assert [("3.png", "no such file")] == [(item.source, item.reason) for item in scan.rejected]


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        ("auto", "CNV-364469-2.jpeg", ("364469", "oct2017")),
        ("auto", "00000061_012.jpeg", ("00000061", "nih")),
        ("auto", "person123_bacteria_4.jpeg", ("person123", "chest_xray")),
        ("auto", "person123_virus_9.jpeg", ("person123", "chest_xray")),
        ("auto", "IM-0115-0001.jpeg", ("IM-0115", "chest_xray")),
        ("chest_xray", "NORMAL2-IM-0503-0001.jpeg", ("IM-0503", "chest_xray")),
        ("chest_xray", "IM-0666-0001-0002.jpeg", ("IM-0666", "chest_xray")),
        ("chest_xray", "NORMAL2-IM-0503.jpeg", ("NORMAL2-IM-0503", "stem")),
        ("chest_xray", "person123_left_4.jpeg", ("person123_left_4", "stem")),
        ("covid_ct", "2020.01.24.919183-p27-132.png", ("2020.01.24.919183", "covid_ct")),
        ("covid_ct", "2020.02.10.20021584-p6-52%0.png", ("2020.02.10.20021584", "covid_ct")),
        ("covid_ct", "1%0.jpg", ("1", "covid_ct")),
        ("covid_ct", "1.jpg", ("1", "stem")),
        ("auto", "1%0.jpg", ("1%0", "stem")),
        ("auto", "1-s2.0-S0140673620303706-fx1_lrg.jpeg", ("1-s2.0-S0140673620303706-fx1_lrg", "stem")),
        ("oct2017", "00000061_012.jpeg", ("00000061_012", "stem")),
        ("nih", "00000061_012.png", ("00000061", "nih")),
        ("stem", "CNV-364469-2.jpeg", ("CNV-364469-2", "stem")),
        (r"^(p\d+)_", "p12_left.png", ("p12", "regex")),
        (r"_(\w+)\.png$", "p12_left.png", ("left", "regex")),
        (r"^(p\d+)_", "q12_left.png", ("q12_left", "stem")),
        (r"^(p\d+)?_", "_left.png", ("_left", "stem")),
    ],
)
def test_patient_rules(rule: str, name: str, expected: tuple[str, str]) -> None:
    """Each rule names the patient, and what took the file; what no rule matches is its own patient."""
    assert expected == parse_patient_rule(rule).patient(name)


def test_auto_asks_the_rule_of_the_sets_layout_first() -> None:
    """A layout's own rule stands before the others under `auto`, and changes nothing where a rule is named."""
    assert ("1", "covid_ct") == parse_patient_rule("auto", "covid_ct").patient("1%0.jpg")
    assert ("364469", "oct2017") == parse_patient_rule("auto", "covid_ct").patient("CNV-364469-2.jpeg")
    assert ("1%0", "stem") == parse_patient_rule("stem", "covid_ct").patient("1%0.jpg")


@pytest.mark.parametrize("rule", ["", "(", "no group", "(two)(groups)", "oct2018"])
def test_wrong_patient_rules_are_refused(rule: str) -> None:
    """What is neither a rule's name nor a regular expression with one group is refused."""
    with pytest.raises(InputError, match=r"pack\.patient"):
        parse_patient_rule(rule)


def test_a_rule_that_matches_nothing_is_refused() -> None:
    """A rule asked for by name must find at least one patient; auto and stem need not."""
    with pytest.raises(InputError, match="matches none of the 7 file names"):
        parse_patient_rule("nih").check_taken({"stem": 7})
    for rule in ("auto", "stem"):
        parse_patient_rule(rule).check_taken({"stem": 7})
    parse_patient_rule("nih").check_taken({"stem": 6, "nih": 1})
