"""What the names of GGUF files tell: the quantization, and whose projector one is.

A projector's name bears its model's (`mmproj-seer-F16`, `seer-mmproj`), or none (`mmproj-F16`, `mmproj-model-f16`).
"""

import re
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Final

PRECISIONS: Final = ("F16", "BF16", "F32")
"""Of projectors, the best first: encoders are made in half precision; what is shorter loses something."""

_QUANTIZATION: Final = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:(?:I?Q|TQ)\d\w*|BF16|F16|F32|FP16|FP32|MXFP4\w*|NVFP4))(?![A-Za-z0-9])", re.IGNORECASE
)
_WORD: Final = re.compile(r"[a-z0-9]+")
_NO_NAME: Final = frozenset({"mmproj", "model"})
"""Words that do not tell whose projector it is."""


def quantization_of(name: str) -> str:
    """The quantization a file or folder is named for, in upper case; empty when it is not."""
    found = _QUANTIZATION.findall(name)
    return str(found[-1]).upper() if found else ""


def without_quantization(name: str) -> str:
    """The name with the quantization cut out; the same when that is all of it."""
    before, _, after = name.rpartition(_QUANTIZATION.findall(name)[-1]) if quantization_of(name) else (name, "", "")
    return f"{before.rstrip('-_. ')}{after}" or name


def is_projector(name: str) -> bool:
    """Whether a file is named as a projector; what it is, its content tells."""
    return "mmproj" in name.lower()


def kinship(model: str, projector: str) -> int:
    """How many words the names of a model and of a projector share; 0: the projector's is not that of this model.

    One of them must begin with all of the other; quantizations do not count. Names are those of files without ending.
    """
    ours, its = _words(model), [word for word in _words(projector) if word not in _NO_NAME]
    shared = _shared_words(ours, its)
    return shared if shared == min(len(ours), len(its)) else 0


def are_of_one_name(models: Collection[str]) -> bool:
    """Whether they differ in quantization only, or in words behind the shortest of them."""
    words = sorted((_words(model) for model in models), key=len)
    return all(_shared_words(words[0], each) == len(words[0]) for each in words)


def precision_rank(quantization: str) -> int:
    """0 for the best precision of a projector."""
    return PRECISIONS.index(quantization) if quantization in PRECISIONS else len(PRECISIONS)


def _words(name: str) -> Sequence[str]:
    return _WORD.findall(without_quantization(name).lower())


def _shared_words(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
