import logging
import types

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from softcft.training import precision
from softcft.training.precision import choose_precision, start_accelerator
from softcft.training.processes import this_process
from tests.training.test_loop import Regression, equal, numbers, run


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


def on_device(monkeypatch, kind):
    """As on a machine with such a device. bf16 tensors can be made on all of them."""
    PartialState()  # of which logging asks
    monkeypatch.setattr(precision, "this_process", lambda: types.SimpleNamespace(device=torch.device(kind)))


@pytest.mark.parametrize(
    ("major", "minor"),
    [(3, 7), (5, 2), (6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)],
)
def test_auto_on_a_gpu_is_bf16_from_ampere_on(monkeypatch, major, minor):
    on_device(monkeypatch, "cuda")
    properties = types.SimpleNamespace(major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert choose_precision("auto") == ("bf16" if major >= 8 else "no")
    assert choose_precision("bf16") == "bf16"


def test_auto_on_other_devices(monkeypatch):
    on_device(monkeypatch, "cuda")
    monkeypatch.setattr(torch.version, "hip", "6.4")  # AMD's
    assert choose_precision("auto") == "bf16"
    on_device(monkeypatch, "mps")
    assert choose_precision("auto") == "no"
    on_device(monkeypatch, "xpu")
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    for has in (True, False):
        properties = types.SimpleNamespace(has_bfloat16_conversions=has)
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device=None, it=properties: it)
        assert choose_precision("auto") == ("bf16" if has else "no")


# ---- several in one process, as in a notebook -----------------------------------------------------------------------


class Watched(Regression):
    def forward(self, batch):
        self.seen = self.linear(batch["x"]).dtype
        return super().forward(batch)


@pytest.mark.parametrize(
    "order", [["no", "bf16"], ["bf16", "no"], ["no", "bf16", "no", "auto"], ["auto", "bf16", "bf16"]], ids=str
)
def test_each_training_has_its_own_precision(tmp_path, order):
    batch = torch.utils.data.default_collate(numbers())
    trained = []
    for i, setting in enumerate(order):
        accumulated = 1 + i % 2  # another plan of accumulation, too
        fields = {"mixed_precision": setting, "gradient_accumulation_steps": accumulated, "checkpointing_steps": 3}
        objective = run(tmp_path / str(i), Watched(), **fields)
        assert objective.seen == (torch.bfloat16 if choose_precision(setting) == "bf16" else torch.float32)
        alone = tmp_path / f"alone {i}"
        AcceleratorState._reset_state(reset_partial_state=True)
        assert equal(run(alone, Watched(), **fields), objective)
        trained.append(objective)
    for objective in trained:  # those before are as usable as the last
        assert objective(batch)["loss"].isfinite()
        assert objective.seen == torch.float32


def test_what_failed_may_be_trained_again_in_another_precision(tmp_path):
    class Fails(Watched):
        fails = True

        def forward(self, batch):
            if self.fails:
                raise ValueError("for a reason of its own")
            return super().forward(batch)

    objective = Fails()
    with pytest.raises(ValueError, match="of its own"):
        run(tmp_path / "one", objective, mixed_precision="bf16")
    objective.fails = False
    run(tmp_path / "two", objective, mixed_precision="no")
    assert objective.seen == torch.float32


def test_to_the_cpu_where_there_was_a_gpu_before(tmp_path, monkeypatch):
    PartialState()._shared_state["device"] = torch.device("cuda", 0)
    start_accelerator("no")
    assert this_process().device.type == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert this_process().device.type == "cpu"
    assert start_accelerator("bf16").device.type == "cpu"
    run(tmp_path)
