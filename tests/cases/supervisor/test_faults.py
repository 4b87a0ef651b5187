"""Why a llama-server ended, as its own output tells (`tests/golden/llama_server/faults/`, `record_output.py`)."""

import re
import time
from pathlib import Path

import pytest

from llamaherd_supervisor.faults import KINDS, OUT_OF_MEMORY, Fault, find_fault

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "llama_server"
LOGS = sorted((GOLDEN / "faults").glob("*.log"))

MAY_HEAL = {"context_too_large", "out_of_memory", "out_of_threads", "port_in_use", "internal_error"}
"""Kinds among the recorded ones that another try may do without."""


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]


def fault_of(*lines: str, signal: str | None = None, loading: bool = True) -> Fault | None:
    return find_fault(lines, signal=signal, loading=loading)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_every_recorded_end_is_known_by_its_kind(path: Path) -> None:
    kind = path.stem.partition("-")[0]

    fault = find_fault(lines_of(path), signal=None, loading=True)

    assert fault is not None
    assert fault.kind == kind
    assert kind in KINDS
    assert fault.final == (kind not in MAY_HEAL and path.stem != "bad_argument-device")
    assert not re.search(r"[{}]\B|\n|\.$|None", fault.reason.replace("{% for m in %}", "").replace("%}", ""))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "unknown_architecture-alpaca",
            "this llama-server does not know the architecture alpaca_that_is_not: a newer one may",
        ),
        ("bad_argument-number", "llama-server refuses --ctx-size (`context_tokens`): its value is no number"),
        (
            "bad_argument-long_usage",
            "llama-server refuses --chat-template-file (`chat_template`): failed to open file 'gone.jinja'",
        ),
        ("bad_argument-variable", "llama-server refuses the variable LLAMA_ARG_CTX_SIZE: its value is no number"),
        (
            "bad_draft_model-gone",
            "its draft model gone.gguf cannot be loaded: failed to open GGUF file 'gone.gguf'"
            " (No such file or directory)",
        ),
        (
            "bad_projector-other",
            "its projector is of another model: embeddings of 48 numbers, where the model's have 64",
        ),
        (
            "out_of_memory-weights",
            "memory is full (242.08 MB were asked for): unload another model, or use a smaller quantization",
        ),
        (
            "broken_file-truncated",
            "the model file is broken or incomplete (tensor 'blk.1.ffn_up.weight' data is not within the file bounds,"
            " model is corrupted or incomplete): get it again",
        ),
        ("missing_file-gone", "gone.gguf cannot be opened: No such file or directory"),
        ("unsupported_format-1", "this llama-server does not read version GGUFv1 of GGUF: get a file that fits it"),
        (
            "internal_error-assertion",
            "a check inside llama-server failed at llama-context.cpp:2275 (n_outputs_max <= cparams.n_outputs_max):"
            " a bug of it, or options that do not go together",
        ),
    ],
)
def test_the_sentence_names_what_is_wrong_and_what_helps(name: str, reason: str) -> None:
    fault = find_fault(lines_of(GOLDEN / "faults" / f"{name}.log"), signal=None, loading=True)

    assert fault is not None
    assert fault.reason == reason


CUDA_FULL = (
    "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory"
)


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("out_of_gpu_memory", [CUDA_FULL, "E llama_model_load: error loading model: unable to allocate CUDA0 buffer"]),
        ("out_of_gpu_memory", ["E llama_model_load: error loading model: unable to allocate CUDA0 buffer"]),
        ("out_of_gpu_memory", ["E alloc_tensor_range: failed to allocate Vulkan0 buffer of size 1024"]),
        ("out_of_gpu_memory", ["CUDA error: out of memory", "/b/ggml-cuda.cu:103: CUDA error"]),
        ("out_of_gpu_memory", ["terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'"]),
        (
            "context_too_large",
            [
                CUDA_FULL,
                "E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
            ],
        ),
        ("gpu_failed", ["CUDA error: an illegal memory access was encountered", "/b/ggml-cuda.cu:103: CUDA error"]),
        (
            "out_of_memory",
            ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"],
        ),
        ("out_of_memory", ["E clip_init: failed to load model '/m/mmproj.gguf': failed to allocate buffer"]),
        (
            "missing_library",
            [
                "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file:"
                " No such file or directory"
            ],
        ),
        (
            "missing_library",
            [
                "llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object file:"
                " No such file or directory"
            ],
        ),
        (
            "missing_library",
            ["llama-server: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by llama-server)"],
        ),
        ("missing_library", ["dyld[812]: Library not loaded: @rpath/libllama.dylib"]),
        (
            "no_gpu",
            [
                "E ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime"
                " version"
            ],
        ),
        ("bad_projector", ["E clip_init: failed to load model '/m/p.gguf': load_hparams: unknown projector type: eye"]),
        ("internal_error", ["terminate called after throwing an instance of 'std::runtime_error'", "  what():  oh"]),
        ("cannot_start", ['/opt/llama-server: 6: Syntax error: ")" unexpected']),
        ("cannot_start", ["/opt/start.sh: line 2: exec: /opt/llama-server: not found"]),
    ],
)
def test_ends_that_this_machine_cannot_have_are_known_too(kind: str, lines: list[str]) -> None:
    fault = fault_of(*lines)

    assert fault is not None
    assert fault.kind == kind


def test_size_that_was_asked_of_the_gpu_is_told() -> None:
    fault = fault_of(CUDA_FULL)

    assert fault is not None
    assert "the GPU's memory is full (4096.00 MiB were asked for)" in fault.reason
    assert not fault.final


@pytest.mark.parametrize(
    ("signal", "kind"),
    [
        ("SIGKILL", "killed"),
        ("SIGTERM", "killed"),
        ("SIGILL", "illegal_instruction"),
        ("SIGBUS", "file_changed"),
        ("SIGSEGV", "internal_error"),
        ("SIGABRT", "internal_error"),
    ],
)
def test_a_signal_tells_when_no_line_does(signal: str, kind: str) -> None:
    fault = fault_of("0.00.000.841 I srv  llama_server: initializing ...", signal=signal)

    assert fault is not None
    assert fault.kind == kind
    assert signal in fault.reason


def test_kill_by_the_kernel_for_want_of_memory_is_told_from_any_other() -> None:
    assert find_fault((), signal="SIGKILL", loading=True, oom_killed=True) == OUT_OF_MEMORY
    assert find_fault((), signal="SIGSEGV", loading=True, oom_killed=True) != OUT_OF_MEMORY


def test_signal_from_outside_is_no_matter_of_what_the_log_says() -> None:
    fault = fault_of("E llama_model_load: error loading model: oh", signal="SIGTERM")

    assert fault is not None
    assert fault.kind == "killed"


def test_lines_of_an_abort_say_more_than_its_signal() -> None:
    lines = lines_of(GOLDEN / "faults" / "internal_error-assertion.log")

    fault = find_fault(lines, signal="SIGABRT", loading=False)

    assert fault is not None
    assert "llama-context.cpp:2275" in fault.reason


@pytest.mark.parametrize("name", ["load.log", "load_verbose.log"])
def test_load_that_went_well_has_no_fault(name: str) -> None:
    assert find_fault(lines_of(GOLDEN / name), signal=None, loading=True) is None


def test_warning_is_no_fault() -> None:
    assert fault_of("0.00.004.201 W operator(): error loading model: only measured, fitting without it") is None
    assert fault_of("W ggml_cuda_host_malloc: failed to allocate 512.00 MiB of pinned memory: out of memory") is None


def test_what_is_said_of_loading_means_nothing_once_it_was_ready() -> None:
    old = "error: the supplied chat template is not supported: x"

    assert fault_of(old, loading=False) is None
    assert fault_of(old, CUDA_FULL, loading=False) is not None


def test_servers_of_others_are_not_read_as_llama_server() -> None:
    line = "error: unrecognized arguments: --nonsense"

    assert find_fault([line], signal=None, loading=True, llama_server=False) is None
    assert find_fault(["CUDA error: out of memory"], signal=None, loading=True, llama_server=False) is not None


@pytest.mark.parametrize(
    "line", ["x" * 10_000, "a b:1: " * 100, "/a/b:1: c " * 50, "E something failed: (x) 'y' " * 20]
)
def test_reading_long_lines_takes_no_time_to_speak_of(line: str) -> None:
    """All instances wait for it. A pattern that tries every beginning would take ten times that."""
    began = time.process_time()

    fault_of(*[line] * 40)

    assert time.process_time() - began < 0.02


def test_silence_is_no_fault() -> None:
    assert fault_of() is None
    assert fault_of(signal="SIGUSR1") is None


def test_every_kind_is_described() -> None:
    _, _, rows = (ROOT / "docs" / "faults.md").read_text().partition("| fault |")
    described = set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE))

    assert described == KINDS
