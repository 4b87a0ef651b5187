"""Record what the real llama-server prints: its help, and its last lines when it cannot go on.

`uv run python tests/golden/record_output.py` writes `llama_server/help.txt` and, into `llama_server/faults/`, a log of
each way to fail: `<kind of fault>-<what was done>.log`. Times, addresses and numbers of processes differ from one
recording to the next; what is missing on this machine (a limit that does not work) is told and left as it was.
"""

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gguf
import numpy as np

from harness.herd import free_port, llama_server_or_none
from harness.random_gguf import write_garbage_gguf, write_random_gguf, write_truncated_gguf, write_unloadable_gguf
from harness.random_projector import write_random_projector

GOLDEN = Path(__file__).parent / "llama_server"
TIMEOUT_S = 20
MB = 2**20


@dataclass(frozen=True)
class Case:
    """One way to fail, in a folder with the files of `write_files`."""

    name: str
    arguments: Sequence[str]
    memory_bytes: int = 0
    """Of address space; 0: as much as it wants."""
    environment: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    """Another one than the real llama-server, in the folder."""


def serve(model: str, *words: str) -> tuple[str, ...]:
    return ("--model", model, *words)


CASES = [
    Case("unknown_architecture-alpaca", serve("alpaca.gguf")),
    Case("unknown_tokenizer-martian", serve("martian.gguf")),
    Case("unsupported_quantization-99", serve("type99.gguf")),
    Case("unsupported_quantization-removed", serve("type4.gguf")),
    Case("unsupported_format-9", serve("version9.gguf")),
    Case("unsupported_format-1", serve("version1.gguf")),
    Case("broken_file-truncated", serve("truncated.gguf")),
    Case("broken_file-head", serve("head.gguf")),
    Case("broken_file-garbage", serve("garbage.gguf")),
    Case("broken_file-empty", serve("empty.gguf")),
    Case("broken_file-text", serve("text.gguf")),
    Case("unfit_file-tensor", serve("tensor.gguf")),
    Case("missing_file-gone", serve("gone.gguf")),
    Case("bad_argument-unknown", serve("model.gguf", "--nonsense", "1")),
    Case("bad_argument-number", serve("model.gguf", "--ctx-size", "many")),
    Case("bad_argument-type", serve("model.gguf", "--cache-type-k", "q9")),
    Case("bad_argument-removed", serve("model.gguf", "--draft-max", "3")),
    Case("bad_argument-long_usage", serve("model.gguf", "--chat-template-file", "gone.jinja")),
    Case("bad_argument-device", serve("model.gguf", "--device", "CUDA0")),
    Case("bad_argument-variable", serve("model.gguf"), environment={"LLAMA_ARG_CTX_SIZE": "many"}),
    Case("bad_argument-together", serve("model.gguf", "--cache-type-v", "q8_0", "--flash-attn", "off")),
    Case("bad_chat_template-file", serve("template.gguf")),
    Case("bad_chat_template-option", serve("model.gguf", "--chat-template", "{% for m in %}")),
    Case("bad_adapter-gone", serve("model.gguf", "--lora", "gone.gguf")),
    Case("bad_adapter-model", serve("model.gguf", "--lora", "model.gguf")),
    Case("bad_draft_model-gone", serve("model.gguf", "--model-draft", "gone.gguf")),
    Case("internal_error-draft_model", serve("model.gguf", "--model-draft", "alpaca.gguf")),
    Case("bad_projector-other", serve("model.gguf", "--mmproj", "projector48.gguf")),
    Case("bad_projector-gone", serve("model.gguf", "--mmproj", "gone.gguf")),
    Case("bad_projector-model", serve("model.gguf", "--mmproj", "model.gguf")),
    Case("bad_projector-alone", serve("projector48.gguf")),
    Case("context_too_large-million", serve("model.gguf", "--ctx-size", "1000000", "--fit", "off"), 600 * MB),
    Case("out_of_memory-weights", serve("large.gguf", "--load-mode", "none", "--fit", "off"), 340 * MB),
    Case("out_of_memory-mapping", serve("large.gguf", "--load-mode", "mmap"), 290 * MB),
    Case("out_of_threads-stacks", serve("model.gguf"), 100 * MB),
    Case("port_in_use-ours", serve("model.gguf")),
    Case("missing_library-openmp", serve("model.gguf"), program="unlinked"),
    Case("internal_error-assertion", serve("model.gguf", "--batch-size", "0")),
]


def main() -> None:
    binary = llama_server_or_none()
    if binary is None:
        sys.exit("no llama-server: build one with `uv run llamaherd install llama-server`")
    (GOLDEN / "help.txt").write_bytes(subprocess.run([binary, "--help"], capture_output=True, check=True).stdout)
    faults = GOLDEN / "faults"
    faults.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, socket.socket() as taken:
        folder = Path(name)
        write_files(folder, binary)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for case in CASES:
            port = taken.getsockname()[1] if case.name.startswith("port_in_use") else free_port()
            output = fail(case, binary, folder, port=port)
            if output is None:
                print(f"it does not fail here: {case.name}", file=sys.stderr)
            else:
                (faults / f"{case.name}.log").write_text(output)
    for path in faults.iterdir():
        if path.stem not in {case.name for case in CASES}:
            path.unlink()


def fail(case: Case, binary: Path, folder: Path, *, port: int) -> str | None:
    """What it prints before it ends by itself; `None` when it does not. No line tells of this machine."""

    def limit() -> None:
        if case.memory_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (case.memory_bytes, case.memory_bytes))

    program = folder / case.program if case.program else binary
    command = [program, *case.arguments, "--host", "127.0.0.1", "--port", str(port), "--threads", "2"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            env={**os.environ, **case.environment},
            preexec_fn=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    text = done.stdout.decode("utf-8", "replace")
    for place, name in ((folder, "/models"), (binary.parent, "/build")):
        text = text.replace(str(place), name)
    return text


def write_files(folder: Path, binary: Path) -> None:
    model = write_random_gguf(folder / "model.gguf")
    write_random_gguf(folder / "large.gguf", width=1024, layers=6)
    write_unloadable_gguf(folder / "alpaca.gguf")
    write_truncated_gguf(folder / "truncated.gguf")
    write_truncated_gguf(folder / "head.gguf", keep_bytes=3000)
    write_garbage_gguf(folder / "garbage.gguf")
    write_random_projector(folder / "projector48.gguf", embedding_length=48)
    write_other_tokenizer(folder / "martian.gguf")
    (folder / "empty.gguf").touch()
    (folder / "text.gguf").write_text("Not a model.\n")
    patch(model, "template.gguf", lambda data: replace(data, b"in messages %}", b"in          %}"))
    patch(model, "type99.gguf", lambda data: set_type(data, 99))
    patch(model, "type4.gguf", lambda data: set_type(data, 4))
    patch(model, "version9.gguf", lambda data: data.__setitem__(slice(4, 8), (9).to_bytes(4, "little")))
    patch(model, "version1.gguf", lambda data: data.__setitem__(slice(4, 8), (1).to_bytes(4, "little")))
    patch(model, "tensor.gguf", lambda data: replace(data, b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight"))
    patch(binary, "unlinked", lambda data: replace(data, b"libgomp.so.1", b"libgomq.so.1"), folder=folder)
    shutil.copymode(binary, folder / "unlinked")


def patch(source: Path, name: str, change: Callable[[bytearray], None], *, folder: Path | None = None) -> None:
    data = bytearray(source.read_bytes())
    change(data)
    ((folder or source.parent) / name).write_bytes(data)


def replace(data: bytearray, old: bytes, new: bytes) -> None:
    place = data.index(old)
    data[place : place + len(old)] = new


def set_type(data: bytearray, number: int) -> None:
    """Change the type of the first tensor: behind its name, the count of dimensions and the dimensions."""
    name = b"token_embd.weight"
    place = data.index(name) + len(name)
    place += 4 + 8 * int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = number.to_bytes(4, "little")


def write_other_tokenizer(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("martian")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
