"""CLIP's tokenizer, built by us from an untrusted vocabulary and merge list.

Byte-level byte-pair encoding (Sennrich et al., 2016, https://arxiv.org/abs/1508.07909) as CLIP uses it. A tokenizer
file may ask for any component; of tokenizer.json only the vocabulary and the merges are read, each entry checked, of
tokenizer_config.json and special_tokens_map.json only which tokens of the vocabulary begin, end, fill and replace.
Everything else is as transformers' CLIPTokenizer has it; limits and further tokens that the files state are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from audit_cli.checkpoint import Checkpoint, strict_json
from audit_cli.checkpoint.config import MERGES, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, VOCABULARY
from audit_cli.errors import CheckpointError, UnsupportedError
from audit_cli.models.prompts import SPECIAL
from audit_cli.report.sanitise import clean

TOKEN_CAP = 256  # characters of one token; the longest of CLIP's has 18
ROLES = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "unk_token": SPECIAL[1], "pad_token": SPECIAL[1]}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # of a special token: how it is told from the text around it
REMEDY = "export the tokenizer again"

Tokenizer = Callable[[Sequence[str]], Tensor]  # texts -> ids (N, T) int64, padded to one T <= the context


def read_tokenizer(checkpoint: Checkpoint, vocabulary: int, context: int) -> tuple[Tokenizer, int]:
    """The tokenizer of `checkpoint` and the id of its end token.

    vocabulary: rows of the token embedding, which every id must be under. context: longest sequence, longer texts are
    cut. Raises UnsupportedError when the folder has no tokenizer and CheckpointError when it contradicts itself.
    """
    tokens, merges, where = _material(checkpoint)
    _check_tokens(tokens, vocabulary, where)
    special = special_tokens(checkpoint, tokens, where)
    pairs = _pairs(merges, cast(Mapping[str, int], tokens), where)
    from transformers import AddedToken, CLIPTokenizer  # slow to import, and only needed here

    try:
        roles = {role: AddedToken(token, special=True, **flags) for role, (token, flags) in special.items()}
        theirs = CLIPTokenizer(vocab=dict(tokens), merges=pairs, **roles)
    except Exception as error:  # the library raises its own, undeclared types
        raise CheckpointError(f"{where}: no byte-pair encoding ({clean(str(error), 80)}); {REMEDY}") from error

    def tokenize(texts: Sequence[str]) -> Tensor:
        ids = theirs(list(texts), padding=True, truncation=True, max_length=context)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)

    return tokenize, cast(int, tokens[special["eos_token"][0]])


def special_tokens(
    checkpoint: Checkpoint, tokens: Mapping[str, object], where: str
) -> dict[str, tuple[str, dict[str, bool]]]:
    """Role -> token of the vocabulary, and its flags; as in transformers, the map wins over the tokenizer's config
    unless that lists the added tokens itself, and what neither states is CLIP's own."""
    stated: dict[str, Any] = dict(ROLES)
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        content = checkpoint.read(name)
        document = strict_json.parse_object(content, name) if content is not None else {}
        stated |= {role: document[role] for role in ROLES if role in document}
        if "added_tokens_decoder" in document:
            break
    return {role: _special(role, value, tokens, where) for role, value in stated.items()}


def _special(role: str, value: object, tokens: Mapping[str, object], where: str) -> tuple[str, dict[str, bool]]:
    token = value.get("content") if isinstance(value, dict) else value
    flags = {flag: value[flag] for flag in FLAGS if flag in value} if isinstance(value, dict) else {}
    if not isinstance(token, str) or not all(type(flag) is bool for flag in flags.values()):
        raise CheckpointError(f"{where}: {role} of the tokenizer's config is not a token; {REMEDY}")
    if token not in tokens:
        raise CheckpointError(f"{where}: has no token {clean(token, 40)}, the {role}; {REMEDY}")
    return token, flags


def _material(checkpoint: Checkpoint) -> tuple[Mapping[str, object], Sequence[object], str]:
    """Vocabulary and merges, unchecked, and the file they are from; tokenizer.json wins, as in transformers."""
    whole = checkpoint.read(TOKENIZER)
    if whole is not None:
        model = strict_json.parse_object(whole, TOKENIZER).get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise CheckpointError(f"{TOKENIZER}: its model is not byte-pair encoding; {REMEDY}")
        tokens, merges = model.get("vocab"), model.get("merges")
        if not isinstance(tokens, dict) or not isinstance(merges, list):
            raise CheckpointError(f"{TOKENIZER}: its model has no vocab or no merges; {REMEDY}")
        return tokens, merges, TOKENIZER
    vocabulary, list_ = checkpoint.read(VOCABULARY), checkpoint.read(MERGES)
    if vocabulary is None or list_ is None:
        raise UnsupportedError(
            f"{clean(str(checkpoint.source))}: a CLIP model without {TOKENIZER}, or {VOCABULARY} with {MERGES}; "
            "give the folder that has its tokenizer"
        )
    try:
        lines = list_.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{MERGES}: is not UTF-8; {REMEDY}") from error
    lines = [line.removesuffix("\r") for line in lines]
    head = 1 if lines[0].startswith("#version") else 0
    return strict_json.parse_object(vocabulary, VOCABULARY), [line for line in lines[head:] if line], VOCABULARY


def _check_tokens(tokens: Mapping[str, object], vocabulary: int, where: str) -> None:
    """Distinct ids of the token embedding's rows."""
    if not 2 <= len(tokens) <= vocabulary:
        raise CheckpointError(f"{where}: {len(tokens)} tokens for {vocabulary} embeddings; {REMEDY}")
    if len(set(map(str, tokens.values()))) != len(tokens):
        raise CheckpointError(f"{where}: two tokens have one id; {REMEDY}")
    for token, number in tokens.items():
        if type(number) is not int or not 0 <= number < vocabulary or not 1 <= len(token) <= TOKEN_CAP:
            raise CheckpointError(
                f"{where}: token `{clean(token, 40)}` is not of 1 to {TOKEN_CAP} characters with an id under "
                f"{vocabulary}; {REMEDY}"
            )


def _pairs(merges: Sequence[object], tokens: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    """Each merge as a pair of tokens whose union is a token; each pair once."""
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(f"{where}: a merge is not two tokens; {REMEDY}")
        left, right = parts
        if left not in tokens or right not in tokens or left + right not in tokens:
            pair = clean(f"{left} {right}", 60)
            raise CheckpointError(f"{where}: merge `{pair}` names what is no token; {REMEDY}")
        pairs.append((left, right))
    if len(set(pairs)) != len(pairs):
        raise CheckpointError(f"{where}: a merge appears twice; {REMEDY}")
    return pairs
