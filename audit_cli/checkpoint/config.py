"""config.json, preprocessor_config.json and processor_config.json as plain data.

The usual loader lets these files name Python code to import. Here they are dictionaries: keys that ask for code are
refused outright, and `models` takes the few numbers it knows from the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from audit_cli.checkpoint import strict_json
from audit_cli.errors import CheckpointError
from audit_cli.report.sanitise import clean

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of a whole model; holds the other as `image_processor`, and then wins
CONFIG_CAP = 4 * 2**20  # bytes; the labels of 21,841 classes take about 1 MB
TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_CAP = 16 * 2**20  # bytes; that of CLIP, 49,408 tokens, takes 2 to 4 MB

_RUNS_CODE = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "attn_implementation", "code_revision"})
_CHANGES_WEIGHTS = frozenset({"quantization_config", "compression_config", "adapter_config"})
_LEADS_ELSEWHERE = frozenset({"transformers_weights", "configuration_files"})  # to a file beside those audited
_LEADS_ELSEWHERE |= {"attribute_map"}  # to another setting: num_attention_heads would be read from any key


def read_config(path: Path, name: str) -> Mapping[str, object]:
    """The object in `path`. Raises CheckpointError unless it is a strict JSON object that asks for no code."""
    document = strict_json.parse_object(path.read_bytes(), name)
    _refuse(document, name)
    return document


def image_processor(configs: Mapping[str, Mapping[str, object]]) -> tuple[Mapping[str, object] | None, str]:
    """The settings that transformers' AutoImageProcessor would take from `configs`, by file name, and that file's name.

    They are `image_processor` of processor_config.json, unless that is missing or null; else preprocessor_config.json.
    """
    nested = configs.get(PROCESSOR, {}).get("image_processor")
    if nested is None:
        return configs.get(PREPROCESSOR), PREPROCESSOR
    if not isinstance(nested, dict):
        raise CheckpointError(f"{PROCESSOR}: image_processor is not an object; save the processor again")
    return nested, PROCESSOR


def _refuse(value: object, name: str) -> None:
    """Walk every level: composite models keep a config in a config. The depth is bounded by the JSON reader's."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key in _LEADS_ELSEWHERE:
            raise CheckpointError(
                f"{clean(name)}: `{key}` leads a loader to other weights or settings than those audited; remove the key"
            )
        if isinstance(key, str) and item not in (None, False, {}):
            if key in _RUNS_CODE or (key.startswith("_attn_implementation") and item is not True):
                raise CheckpointError(
                    f"{clean(name)}: `{clean(key, 60)}` makes a loader run code; remove the key and audit the"
                    " weights with an --arch you trust"
                )
            if key in _CHANGES_WEIGHTS:
                raise CheckpointError(f"{clean(name)}: `{key}` changes the weights on loading; audit the plain weights")
        _refuse(item, name)
