"""Which device and which precision: what is asked for, or one line that says what there is."""

import pytest
import torch

from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many CUDA devices."""

    def pretend(count: int, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        for name in ("LOCAL_RANK", "SLURM_LOCALID"):
            monkeypatch.delenv(name, raising=False)

    return pretend


def test_without_a_gpu(gpus):
    gpus(0)
    assert choose_device() == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UserError, match="use cpu"):
            choose_device(name)


def test_gpus_by_number_and_by_rank(gpus, monkeypatch):
    gpus(2)
    assert choose_device() == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1) and choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="only cpu, cuda:0, cuda:1"):
        choose_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == choose_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "3")  # more processes than GPUs: in turn
    assert choose_device() == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "", "mps:0", "cuda:-1"])
def test_unknown_devices(gpus, name):
    gpus(1)
    if name == "cuda:":
        assert choose_device(name) == torch.device("cuda", 0)
        return
    with pytest.raises(UserError, match="unknown device"):
        choose_device(name)


def test_precision_by_device(gpus):
    gpus(1)
    gpu, cpu, mps = torch.device("cuda", 0), torch.device("cpu"), torch.device("mps")
    assert choose_precision("auto", gpu) is torch.bfloat16 and choose_precision("fp16", gpu) is torch.float16
    assert choose_precision("float32", gpu) is None and choose_precision("auto", mps) is None
    assert choose_precision("bf16", cpu) is torch.bfloat16
    gpus(1, bf16=False)
    assert choose_precision("auto", gpu) is None
    with pytest.raises(UserError, match="no bf16"):
        choose_precision("bf16", gpu)
    with pytest.raises(UserError, match="fp16 is for GPUs"):
        choose_precision("fp16", cpu)
    with pytest.raises(UserError, match="unknown precision 'half': give auto, float32, bf16 or fp16"):
        choose_precision("half", cpu)


@pytest.mark.parametrize("kernels", ["DEFAULT", "AVX2", "AVX512"])
def test_a_cpu_computes_in_bf16_only_with_kernels_that_multiply_it(kernels: str, monkeypatch):
    """ATEN_CPU_CAPABILITY chooses lesser kernels than the processor has."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert choose_precision("auto", torch.device("cpu")) is (torch.bfloat16 if kernels == "AVX512" else None)
