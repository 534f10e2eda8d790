import logging

import pytest
import torch
from accelerate.state import PartialState

from softcft.training.config import TrainingConfig
from softcft.training.precision import choose_precision


@pytest.fixture(params=[True, False])
def computes_bf16(request, monkeypatch):
    """On a CPU with such instructions, and on one without."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    PartialState._reset_state()
    yield request.param
    PartialState._reset_state()


def test_auto_is_what_the_machine_computes_in(computes_bf16):
    assert choose_precision("auto") == ("bf16" if computes_bf16 else "no")
    assert [choose_precision(setting) for setting in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]


def test_bf16_on_a_cpu_that_emulates_it_is_warned_of(computes_bf16, caplog):
    with caplog.at_level(logging.WARNING):
        choose_precision("auto")
        assert not caplog.records
        choose_precision("bf16")
    assert ("--mixed_precision bf16 is very slow on this CPU" in caplog.text) == (not computes_bf16)


def test_the_answer_of_this_machine_is_of_a_known_kind():
    PartialState._reset_state()
    assert choose_precision("auto") in ("bf16", "no")


def test_other_settings_are_refused():
    with pytest.raises(ValueError, match=r"--mixed_precision must be one of .*'auto'.*, got 'bfloat16'"):
        TrainingConfig(output_dir="x", mixed_precision="bfloat16")
