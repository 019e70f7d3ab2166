#!/usr/bin/env python3
"""Writes what the configuration classes that vLLM uses accept, in the form of crates/core/data/field_types.tsv.

    python tests/reference/vllm_config_types.py crates/core/data/model_types.tsv > crates/core/data/field_types.tsv

in an environment with vLLM 0.32.0. Rows are made for the model types of the given table. A class that checks nothing
(vLLM's own ones) has a row only where its base model is known.
"""
import collections.abc
import dataclasses
import inspect
import sys
import types
import typing

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from vllm import __version__ as vllm_version
from vllm.transformers_utils.config import _CONFIG_REGISTRY

LETTERS = {int: "i", float: "f", bool: "b", str: "s", list: "l", dict: "d", type(None): "z"}


def kinds(annotation):
    """JSON kinds that pass the class's check, or None where nothing is checked."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is typing.Any or isinstance(annotation, (str, typing.ForwardRef)):
        return None
    if annotation is None:
        return {"z"}
    if origin in (typing.Union, types.UnionType):
        parts = [kinds(part) for part in arguments]
        return None if None in parts else set().union(*parts)
    if origin is typing.Literal:
        return {"s"} if all(isinstance(value, str) for value in arguments) else None
    if origin is collections.abc.Sequence:
        return {"l"}
    plain = origin or annotation
    if not isinstance(plain, type):
        return None
    if issubclass(plain, PreTrainedConfig):
        return {"d"}
    # A tuple, or anything else that no JSON value becomes, lets nothing pass.
    return set(LETTERS.get(plain, ""))


def fields(config_class):
    """Names by the kinds they take, of the nearest class that checks."""
    strict = next((c for c in config_class.__mro__ if "__validators__" in c.__dict__), None)
    by_kinds = {}
    for field in dataclasses.fields(strict) if strict else ():
        letters = kinds(field.type) if field.name in strict.__validators__ else None
        if letters:
            by_kinds.setdefault("".join(sorted(letters)), []).append(field.name)
    return by_kinds


def rules(config_class):
    checks = "__validators__" in config_class.__dict__
    found = ""
    if checks and "self.hidden_size % self.num_attention_heads" in inspect.getsource(config_class.validate_architecture):
        found += "h"
    if checks and config_class.validate_layer_type is PreTrainedConfig.validate_layer_type:
        found += "l" if hasattr(config_class, "num_hidden_layers") else ""
    if checks and "rope_parameters" in config_class.__validators__:
        found += "r"
    return found or "-"


def main():
    print(f"# What configuration classes accept (transformers {transformers.__version__}; vllm {vllm_version}, transformers_utils/config.py),")
    print("# written by tests/reference/vllm_config_types.py: model_type, class of the model without a head, rules")
    print("# (h: hidden_size is a multiple of num_attention_heads, l: layer_types fit the layers, r: rotary settings are complete), fields by the JSON kinds they take")
    print("# (i integer, f fraction, b boolean, s string, l list, d object, z null).")
    for line in open(sys.argv[1]):
        name = line.split("\t")[0]
        if line.startswith("#"):
            continue
        known = _CONFIG_REGISTRY if name in _CONFIG_REGISTRY else CONFIG_MAPPING
        base = MODEL_MAPPING_NAMES.get(name, "-")
        base = base if isinstance(base, str) else base[0]
        if name not in known:
            continue
        groups = " ".join(f"{k}={','.join(sorted(v))}" for k, v in sorted(fields(known[name]).items()))
        if groups or base != "-":
            print(f"{name}\t{base}\t{rules(known[name])}\t{groups}")


main()
