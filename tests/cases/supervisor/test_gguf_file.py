"""Heads of GGUF files."""

import io
import struct
from pathlib import Path

import gguf
import pytest

from harness.random_gguf import write_garbage, write_garbage_gguf, write_random_gguf, write_unloadable_gguf
from harness.random_projector import write_random_projector
from llamaherd_supervisor.gguf_file import (
    FILE_TYPES,
    TENSOR_SIZES,
    GgufHead,
    ProjectorHead,
    UnreadableGguf,
    parse_gguf,
)


def parse(data: bytes) -> GgufHead | ProjectorHead:
    return parse_gguf(io.BytesIO(data), size_bytes=len(data))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_random_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", layers=1, width=32, title="Cría").read_bytes()


def test_head_of_a_model(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(whole)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")

    head = parse(whole)

    assert head == GgufHead(
        architecture="llama",
        title="Cría",
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        context_tokens=512,
        embedding_length=32,
        quantization="F32",
        chat=True,
        capabilities=["completion"],
    )


def test_tables_are_those_of_the_gguf_package() -> None:
    assert {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()} == dict(TENSOR_SIZES)
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    names.pop(int(gguf.LlamaFileType.GUESSED))
    assert names == dict(FILE_TYPES)


def test_end_of_a_file_that_was_cut_short_is_told_in_bytes(whole: bytes) -> None:
    with pytest.raises(UnreadableGguf, match=rf"needs {len(whole):,} bytes, {len(whole) - 1:,} are there"):
        parse(whole[:-1])


def test_garbage_is_refused_with_a_sentence(tmp_path: Path) -> None:
    noise = write_garbage(tmp_path / "a.gguf").read_bytes()
    damaged = write_garbage_gguf(tmp_path / "b.gguf").read_bytes()

    with pytest.raises(UnreadableGguf, match="not a GGUF file: it begins with"):
        parse(noise)
    with pytest.raises(UnreadableGguf, match="the file is damaged"):
        parse(damaged)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "its GGUF version is 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1) + bytes(100), "counts"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not say its architecture"),
        (b"PK\x03\x04" + bytes(100), "begins with b'PK"),
    ],
)
def test_each_defect_has_its_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UnreadableGguf, match=sentence):
        parse(data)


def write_pairs(path: Path, architecture: str, **pairs: object) -> bytes:
    """A file without weights."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in pairs.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_part_of_a_model_is_not_offered_as_one(tmp_path: Path) -> None:
    adapter = write_pairs(tmp_path / "lora.gguf", "llama", general__type="adapter")

    with pytest.raises(UnreadableGguf, match=r"not a model but a part for one \(adapter\)"):
        parse(adapter)


@pytest.mark.parametrize(
    ("sees", "hears", "senses"),
    [(True, False, ["vision"]), (False, True, ["audio"]), (True, True, ["vision", "audio"])],
)
def test_projector_is_told_from_a_model_and_says_what_it_is_for(
    tmp_path: Path, sees: bool, hears: bool, senses: list[str]
) -> None:
    data = write_random_projector(tmp_path / "p.gguf", sees=sees, hears=hears, embedding_length=48).read_bytes()

    head = ProjectorHead(senses=senses, embedding_lengths=frozenset({48}), quantization="F16")
    assert parse(data) == head


def test_old_projector_with_the_projection_of_its_own_tower_may_be_for_any_length_of_its_matrices(
    tmp_path: Path,
) -> None:
    data = write_random_projector(tmp_path / "p.gguf", embedding_length=48, said_length=768).read_bytes()

    head = parse(data)

    assert isinstance(head, ProjectorHead)
    assert head.embedding_lengths == {32, 48}


def test_projector_for_neither_images_nor_sounds_is_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UnreadableGguf, match="a part for a model, for neither images nor sounds"):
        parse(write_pairs(tmp_path / "p.gguf", "clip", clip__has_vision_encoder=False))


def test_architecture_nobody_knows_is_left_to_llama_server(tmp_path: Path) -> None:
    assert parse(write_unloadable_gguf(tmp_path / "x.gguf").read_bytes()).architecture == "alpaca_that_is_not"
