"""Which projector goes with which model."""

from collections.abc import Sequence

import pytest

from llamaherd_supervisor.gguf_file import ProjectorHead
from llamaherd_supervisor.projectors import ModelFile, Projector, claims_of, explain_unused, projector_of


def model(path: str, length: int = 64) -> ModelFile:
    return ModelFile(path.rpartition("/")[2].removesuffix(".gguf"), f"/m/{path}", length)


def projector(path: str, *lengths: int, quantization: str = "F16") -> Projector:
    head = ProjectorHead(senses=["vision"], embedding_lengths=frozenset(lengths), quantization=quantization)
    return Projector(f"/m/{path}", 1, head)


def pair(models: Sequence[ModelFile], projectors: Sequence[Projector]) -> dict[str, str]:
    """Model -> its projector, by their names."""
    claims = claims_of(projectors, models)
    own = {each.name: projector_of(each, claims) for each in models}
    return {name: found.path.removeprefix("/m/") for name, found in own.items() if found is not None}


@pytest.mark.parametrize(
    "name",
    [
        "mmproj.gguf",
        "mmproj-F16.gguf",
        "mmproj-model-f16.gguf",
        "mmproj-seer-7b-it-BF16.gguf",
        "mmproj-seer-7b.gguf",
        "mmproj-Seer_7B_it_v2.gguf",
        "seer-7b-it-mmproj-f16.gguf",
        "seer-7b-it-Q4_K_M-mmproj.gguf",
        "seer-7b-it.mmproj.Q8_0.gguf",
        "somebody_elses-mmproj.gguf",
        "clip.gguf",
    ],
)
def test_projector_beside_the_only_model_is_its_own_whatever_it_is_called(name: str) -> None:
    assert pair([model("seer-7b-it-Q4_K_M.gguf")], [projector(name, 64)]) == {"seer-7b-it-Q4_K_M": name}


def test_all_quantizations_of_a_model_share_its_projector() -> None:
    models = [model("seer-Q4_K_M.gguf"), model("seer-UD-Q8_K_XL.gguf"), model("seer-qat-Q4_0.gguf")]

    found = pair(models, [projector("mmproj-F16.gguf", 64)])

    assert found == {each.name: "mmproj-F16.gguf" for each in models}


def test_projector_goes_to_the_model_it_is_named_for() -> None:
    models = [model("seer-7b.gguf"), model("seer-7b-coder.gguf"), model("llama-7b.gguf")]

    assert pair(models, [projector("mmproj-seer-7b-coder-f16.gguf", 64)]) == {
        "seer-7b-coder": "mmproj-seer-7b-coder-f16.gguf"
    }


def test_projector_of_another_length_is_never_taken() -> None:
    assert pair([model("seer.gguf", 64)], [projector("mmproj-seer.gguf", 48)]) == {}
    assert pair([model("seer.gguf", 64)], [projector("mmproj.gguf", 32, 64)]) != {}


def test_length_that_is_not_told_is_no_obstacle() -> None:
    assert pair([model("seer.gguf", 0)], [projector("mmproj.gguf", 48)]) != {}
    assert pair([model("seer.gguf", 64)], [projector("mmproj.gguf")]) != {}


def test_projector_without_a_name_goes_to_the_only_model_it_fits() -> None:
    models = [model("seer.gguf", 64), model("cria.gguf", 128)]

    assert pair(models, [projector("mmproj.gguf", 64)]) == {"seer": "mmproj.gguf"}


def test_projector_without_a_name_beside_several_models_that_it_fits_is_nobodys() -> None:
    models = [model("seer.gguf"), model("cria.gguf")]
    nameless = projector("mmproj.gguf", 64)

    assert pair(models, [nameless]) == {}
    assert "fits more than one model here (cria, seer): name it mmproj-MODEL.gguf" in explain_unused(nameless, models)


def test_model_with_a_projector_of_its_name_leaves_the_nameless_one_to_another() -> None:
    models = [model("seer.gguf"), model("watcher.gguf")]
    projectors = [projector("mmproj.gguf", 64), projector("mmproj-seer.gguf", 64)]

    assert pair(models, projectors) == {"seer": "mmproj-seer.gguf", "watcher": "mmproj.gguf"}


def test_projector_without_a_name_stays_in_its_folder() -> None:
    models = [model("a/seer.gguf"), model("b/cria.gguf"), model("llama.gguf")]

    assert pair(models, [projector("a/mmproj.gguf", 64)]) == {"seer": "a/mmproj.gguf"}


def test_projector_with_a_name_is_found_in_another_folder() -> None:
    assert pair([model("a/seer.gguf")], [projector("b/mmproj-seer.gguf", 64)]) == {"seer": "b/mmproj-seer.gguf"}


def test_of_several_the_nearest_the_best_named_and_the_most_precise_is_taken() -> None:
    in_order = [
        projector("a/mmproj-seer-7b-F16.gguf", 64, quantization="F16"),
        projector("a/mmproj-seer-7b-BF16.gguf", 64, quantization="BF16"),
        projector("a/mmproj-seer-7b-F32.gguf", 64, quantization="F32"),
        projector("a/mmproj-seer-7b-Q8_0.gguf", 64, quantization="Q8_0"),
        projector("a/mmproj-seer-7b-mxfp4.gguf", 64, quantization=""),
        projector("a/mmproj-seer.gguf", 64),
        projector("a/mmproj.gguf", 64),
        projector("b/mmproj-seer-7b.gguf", 64),
    ]
    models = [model("a/seer-7b.gguf")]

    for best, *others in (in_order[place:] for place in range(len(in_order))):
        for offered in ([best, *others], [*reversed(others), best]):
            assert pair(models, offered) == {"seer-7b": best.path.removeprefix("/m/")}


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ([], "put it beside its model, or name it mmproj-MODEL.gguf"),
        ([model("a/seer.gguf")], "put it beside its model, or name it mmproj-MODEL.gguf"),
        (
            [model("seer.gguf"), model("cria.gguf", 128)],
            "for models with embeddings of length 48, and does not fit cria with 128, seer with 64",
        ),
    ],
)
def test_projector_that_is_nobodys_says_why(models: list[ModelFile], sentence: str) -> None:
    nameless = projector("mmproj.gguf", 48)

    assert pair(models, [nameless]) == {}
    assert explain_unused(nameless, models) == f"it is no model but a projector (vision){_joined(sentence)}"


def _joined(sentence: str) -> str:
    return f" {sentence}" if sentence.startswith("for") else f": {sentence}"


def test_projector_with_the_name_of_a_model_it_does_not_fit_says_so() -> None:
    models = [model("seer.gguf", 64), model("cria.gguf", 48)]
    misnamed = projector("mmproj-seer.gguf", 48)

    assert pair(models, [misnamed]) == {}
    assert explain_unused(misnamed, models).endswith("of length 48, and does not fit seer with 64")
