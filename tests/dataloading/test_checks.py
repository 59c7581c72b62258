"""What the doctor makes of decoders and GPUs."""

from __future__ import annotations

from typing import Any

from dataloading.checks import _decoders, judge_decoders


def _facts(gpu: str = "", **decoders: str) -> dict[str, Any]:
    return {"gpu": gpu, "torch": "2.13.0", "decoders": decoders}


def test_the_decoders_of_this_machine_work() -> None:
    """A real JPEG goes through OpenCV and DALI and comes out as it went in."""
    decoders = _decoders()["decoders"]
    assert {"opencv": "", "DALI on the CPU": ""} == {name: decoders[name] for name in ("opencv", "DALI on the CPU")}


def test_a_decoder_that_fails_is_red() -> None:
    """With its reason; the others are green."""
    (finding,) = judge_decoders({"a": _facts(opencv="", dali="RuntimeError: no driver")}, {})
    assert (False, "dali: RuntimeError: no driver") == (finding.ok, finding.told)
    (finding,) = judge_decoders({"a": _facts(opencv="")}, {})
    assert (True, "opencv decode a JPEG as it should be") == (finding.ok, finding.told)


def test_a_gpu_that_torch_does_not_see_is_red() -> None:
    """Ray gives out GPUs by count; a torch without CUDA would train on the CPU beside them."""
    gpu, _ = judge_decoders({"a": _facts(opencv="")}, {"a": 8})
    assert (False, "Ray counts 8, torch 2.13.0 none") == (gpu.ok, gpu.told)
    gpu, _ = judge_decoders({"a": _facts("NVIDIA H100", opencv="")}, {"a": 8})
    assert (True, "8 x NVIDIA H100") == (gpu.ok, gpu.told)
