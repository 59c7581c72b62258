"""Whose image a file is, by its name.

Owns the named rules. Knows names only: a CSV's own patient column is taken before any rule is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.errors import InputError

__all__ = ["PatientRule", "parse_patient_rule"]

_STEM = "stem"
_PATTERNS = {
    # person1_virus_6, IM-0115-0001, NORMAL2-IM-0503-0001; Kermany 2018, X-rays. Nobody has said whether equal numbers
    # of two series are one child: taken as one, which can tear no patient apart. Before oct2017, which would take some.
    "chest_xray": re.compile(r"^(?:NORMAL2-)?(person\d+(?=_(?:bacteria|virus)_\d+$)|IM-\d{4}(?=(?:-\d{4}){1,2}$))"),
    "oct2017": re.compile(r"^[A-Za-z][A-Za-z0-9_]*-(\d+)-\d+$"),  # CLASS-PATIENT-N, Kermany 2018
    "nih": re.compile(r"^(\d{8})_\d{3}$"),  # PATIENT_FOLLOWUP, ChestX-ray8 and 14
    # PAPER-pPAGE-NUMBER%PART or NUMBER%PART: pictures cut out of one paper or figure, mostly of one patient.
    "covid_ct": re.compile(r"^(.+?)(?:-p\d+-\d+(?:%\d+)?|%\d+)$"),
}
_ONLY_BY_NAME = {"covid_ct"}  # would take names that it was not made for


@dataclass(frozen=True)
class PatientRule:
    """Patterns that are tried in turn; a file that none matches is its own patient, by its stem.

    Attributes:
        name: as in `pack.patient`.
        patterns: (what took the file, pattern with one group).
        on_stem: whether patterns see the name without its extension.
    """

    name: str
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    on_stem: bool = True

    def patient(self, file_name: str) -> tuple[str, str]:
        """(patient, name of the rule that took the file)."""
        stem = file_name.rpartition(".")[0] or file_name
        for name, pattern in self.patterns:
            match = pattern.search(stem if self.on_stem else file_name)
            if match and match.group(1):
                return match.group(1), name
        return stem, _STEM

    def check_taken(self, taken: dict[str, int]) -> None:
        """Refuse a rule that was asked for by name and found no patient.

        Raises:
            InputError: `taken`, the number of files by rule, has only stems.
        """
        if self.name not in ("auto", _STEM) and set(taken) == {_STEM}:
            raise InputError(
                f"pack.patient {self.name!r} matches none of the {taken[_STEM]} file names. "
                f"Give a rule that does (auto, {', '.join(_PATTERNS)}), stem if each file is a patient of its own, "
                "or a regular expression with one group, which is searched in the file's name."
            )


def parse_patient_rule(text: str, own: str = "") -> PatientRule:
    """The rule that `pack.patient` names; `auto` tries that of the set's own layout first.

    Raises:
        InputError: not a name, and not a regular expression with one group.
    """
    if text == _STEM:
        return PatientRule(text, ())
    if text == "auto":
        names = [own] * bool(own) + [name for name in _PATTERNS if name != own and name not in _ONLY_BY_NAME]
        return PatientRule(text, tuple((name, _PATTERNS[name]) for name in names))
    if text in _PATTERNS:
        return PatientRule(text, ((text, _PATTERNS[text]),))
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(_not_a_rule(text, f"not a regular expression: {error}")) from None
    if pattern.groups != 1:
        raise InputError(_not_a_rule(text, f"it has {pattern.groups} groups"))
    return PatientRule(text, (("regex", pattern),), on_stem=False)


def _not_a_rule(text: str, why: str) -> str:
    names = ", ".join(["auto", *_PATTERNS, _STEM])
    return f"pack.patient {text!r} cannot be used ({why}). Give {names}, or a regular expression with one group."
