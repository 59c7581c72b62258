"""RESULTS.md: a bench replaces its own section and nothing else."""

from __future__ import annotations

import importlib

from tests.bench.__main__ import bench_names, main
from tests.bench.results import compare, measured, median_interval, write_section

DETAILS = {"unit": "ms", "versions": "v", "hardware": "h", "command": "c"}


def test_a_comparison_is_the_median_of_the_rounds_ratios():
    """Contenders measured in turns are compared round by round, so a slow minute hits both."""
    row = compare("ours", [1.0, 2.0, 30.0], "theirs", [4.0, 8.0, 60.0], **DETAILS)
    assert (row.ratio, row.median, row.spread, row.n) == (0.25, 2.0, (1.0, 30.0), 3)


def test_an_interval_of_the_median_is_of_two_values():
    """By the binomial of n halves: of 10 values the 2nd and the 9th (97.9 %), of 5 no pair is enough."""
    assert (median_interval([*range(10, 0, -1)]), median_interval([3, 1, 2, 5, 4])) == ((2, 9), (1, 5))


def test_a_section_is_replaced_and_the_rest_kept(tmp_path):
    """Text of a person and sections of other benches survive a second run."""
    path = tmp_path / "RESULTS.md"
    row = measured("a", [1.0], **DETAILS)
    write_section(path, "one", "One", [row])
    write_section(path, "two", "Two", [row])
    path.write_text(path.read_text() + "\nBy hand.\n")
    write_section(path, "one", "One anew", [measured("b", [12345.6], **DETAILS)])
    text = path.read_text()
    assert [text.count(part) for part in ("## One anew", "## One\n", "## Two", "By hand.", "12,346")] == [
        1,
        0,
        1,
        1,
        2 + 1,
    ]
    assert text.index("One anew") < text.index("Two")


def test_every_bench_has_a_title_and_rows():
    """What `python -m tests.bench` finds it can run."""
    modules = [importlib.import_module(f"tests.bench.bench_{name}") for name in bench_names()]
    assert "loader" in bench_names()
    assert [bool(module.__doc__) and callable(module.rows) for module in modules] == [True] * len(modules)


def test_an_unknown_bench_is_refused(capsys):
    """The message lists those that there are."""
    assert main(["lodaer"]) == 2
    assert "loader" in capsys.readouterr().err
