"""What llama-server says of its GPUs."""

from llamaherd_supervisor.gpu_listing import Gpu, read_listing, visible_numbers

MIB = 2**20
LISTING = """\
ggml_cuda_init: found 2 CUDA devices:
  Device 0: NVIDIA H200, compute capability 9.0, VMM: yes
Available devices:
  CUDA0: NVIDIA H200 (143771 MiB, 143180 MiB free)
  CUDA1: NVIDIA GeForce RTX 4090 (24080 MiB, 23600 MiB free)
  Vulkan0: AMD Radeon (RADV NAVI31) (16384 MiB, 16000 MiB free)
  MTL0: Apple M3 Max (27648 MiB, 27647 MiB free)
  BLAS0: Accelerate (0 MiB, 0 MiB free)
"""


def test_gpus_are_listed_in_their_order_without_what_is_ram() -> None:
    assert read_listing(LISTING, {}) == [
        Gpu(title="NVIDIA H200", total_bytes=143771 * MIB, free_bytes=143180 * MIB, nvidia=0),
        Gpu(title="NVIDIA GeForce RTX 4090", total_bytes=24080 * MIB, free_bytes=23600 * MIB, nvidia=1),
        Gpu(title="AMD Radeon (RADV NAVI31)", total_bytes=16384 * MIB, free_bytes=16000 * MIB),
    ]
    assert read_listing("Available devices:\n  (none)\n", {}) == []


def test_number_of_a_gpu_is_the_drivers_where_only_some_are_visible() -> None:
    found = read_listing(LISTING, {"CUDA_VISIBLE_DEVICES": "3,1"})

    assert [gpu.nvidia for gpu in found] == [3, 1, None]


def test_visible_gpus_are_all_none_or_those_that_are_named() -> None:
    assert visible_numbers({}) is None
    assert visible_numbers({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_numbers({"CUDA_VISIBLE_DEVICES": " 1, 0"}) == [1, 0]
    assert visible_numbers({"CUDA_VISIBLE_DEVICES": "GPU-8f6a"}) is None
