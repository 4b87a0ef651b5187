"""A GGUF file described, cut to the room of one message."""

import io
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest

from harness.random_gguf import CHAT_TEMPLATE, write_random_gguf
from llamaherd_shared.commands import TensorDescription
from llamaherd_supervisor import gguf_description
from llamaherd_supervisor.gguf_description import (
    ROOM_BYTES,
    TENSOR_TYPES,
    GgufDescription,
    join_tensors,
    read_description,
    read_tensors,
)


def describe(path: Path, *, verbose: bool = False) -> GgufDescription:
    data = path.read_bytes()
    return read_description(io.BytesIO(data), size_bytes=len(data), verbose=verbose)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long and short arrays, a long text, numbers that JSON cannot hold."""
    path = tmp_path_factory.mktemp("gguf") / "odd.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("short", [1, 2, 3, 4, 5])
    writer.add_array("words", ["a", "b"])
    writer.add_array("long", list(range(6)))
    writer.add_array("huge", ["x" * 10_000] * 70)
    writer.add_array("after", [7] * 10)
    writer.add_string("license", "x" * 100_000)
    writer.add_string("endless", "x" * ROOM_BYTES)
    writer.add_float32("nothing", float("nan"))
    writer.add_uint64("big", 2**64 - 1)
    writer.add_tensor("t", np.zeros((3, 2), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensor_types_are_named_as_the_gguf_package_names_them() -> None:
    assert {int(kind): kind.name for kind in gguf.GGMLQuantizationType} == dict(TENSOR_TYPES)


def test_model_is_described_by_its_metadata_template_and_tensors(tmp_path: Path) -> None:
    found = describe(write_random_gguf(tmp_path / "m.gguf", layers=1, width=16))

    assert found.metadata["general.architecture"] == "llama"
    assert found.metadata["llama.context_length"] == 512
    assert "tokenizer.chat_template" not in found.metadata
    assert found.chat_template == CHAT_TEMPLATE
    assert found.tensors[0] == TensorDescription("token_embd.weight", "F32", [16, 260])
    assert found.emptied == ["tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"]


def test_long_arrays_are_emptied_and_named(odd: Path) -> None:
    found = describe(odd)

    assert found.metadata["short"] == [1, 2, 3, 4, 5]
    assert found.metadata["words"] == ["a", "b"]
    assert [found.metadata[key] for key in ("long", "huge", "after")] == [[], [], []]
    assert found.metadata["license"] == "x" * 100_000
    assert found.metadata["endless"] == ""
    assert found.metadata["nothing"] is None
    assert found.metadata["big"] == 2**64 - 1
    assert found.emptied == ["long", "huge", "after", "endless"]
    assert found.tensors == [TensorDescription("t", "F16", [2, 3])]


def test_verbose_tells_as_many_arrays_as_there_is_room_for(odd: Path) -> None:
    found = describe(odd, verbose=True)

    assert found.metadata["long"] == [0, 1, 2, 3, 4, 5]
    assert found.metadata["after"] == [7] * 10
    assert found.emptied == ["huge", "endless"]
    assert list(found.metadata)[1:6] == ["short", "words", "long", "huge", "after"], "in the file's order"


def test_whatever_is_in_a_file_its_description_fits_into_a_message(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_description, "ROOM_BYTES", 300)
    path = write_random_gguf(tmp_path / "m.gguf", layers=1, width=16)

    found = describe(path)

    assert len(msgspec.json.encode(found)) < 300 + 50 * len(found.metadata)
    assert "tensors" in found.emptied


def test_tensors_of_a_split_models_other_files_come_behind(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", layers=1, width=16)
    first = describe(path)
    more = read_tensors(io.BytesIO(path.read_bytes()), size_bytes=path.stat().st_size)

    joined = join_tensors(first, more)

    assert joined.tensors == first.tensors * 2
    assert (joined.metadata, joined.emptied) == (first.metadata, first.emptied)
