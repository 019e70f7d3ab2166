#!/usr/bin/env python3
"""Writes the command line of an engine, as its own argument parser knows it, in the form of crates/core/data/flags_*.tsv.

    python tests/reference/engine_flags.py vllm > crates/core/data/flags_vllm.tsv      # in an environment with vLLM 0.32.0
    python tests/reference/engine_flags.py sglang > crates/core/data/flags_sglang.tsv  # in an environment with SGLang 0.5.23

Columns: spellings (commas), takes (0 switch, b switch with --no-, 1 value, ? + * as argparse, a repeated), type, choices (bars),
default, first and last version seen. `--older FILE.json` ({version: [flags]}) adds what earlier versions had.
"""
import argparse
import json
import re
import sys


def kind(action):
    t = action.type
    if t is None:
        return "str"
    seen = set()
    while getattr(t, "__closure__", None) and id(t) not in seen:
        seen.add(id(t))
        inner = [c.cell_contents for c in t.__closure__ if callable(c.cell_contents) or isinstance(c.cell_contents, type)]
        if not inner:
            break
        t = inner[0]
    name = getattr(t, "__name__", str(t))
    return {
        "int": "int", "float": "float", "human_readable_int": "count", "human_readable_int_or_auto": "count_or_auto",
        "loads": "json", "parse_dataclass": "json", "json_list_type": "json",
    }.get(name, "json_or_str" if name == "union_dict_and_str" else "json" if "json" in name.lower() or is_model(t) else "str")


def is_model(t):
    return isinstance(t, type) and (hasattr(t, "__dataclass_fields__") or hasattr(t, "__pydantic_validator__"))


def takes(action):
    name = type(action).__name__
    if name == "BooleanOptionalAction":
        return "b"
    if name == "_AppendAction":
        return "a"
    if action.nargs is None:
        return "1"
    return str(action.nargs)


def plain(text):
    text = re.sub(r"[\t\n\r]+", " ", text)
    # Defaults that are whole objects say nothing to a reader of a command.
    return "" if text in ("None", "==SUPPRESS==", "set()") or len(text) > 60 or "(" in text or text.startswith("{'") else text


def parser(engine):
    if engine == "vllm":
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        import vllm.engine.arg_utils as module

        module.NEEDS_HELP = False
        return make_arg_parser(FlexibleArgumentParser()), "0.32.0"
    from sglang.srt.server_args import ServerArgs

    made = argparse.ArgumentParser()
    ServerArgs.add_cli_args(made)
    return made, "0.5.23"


def further_choices(engine):
    """Values that the engine checks after parsing, which its parser does not list."""
    if engine != "vllm":
        return {}
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return {"--quantization": QUANTIZATION_METHODS, "--attention-backend": list(AttentionBackendEnum.__members__)}


def main():
    engine = sys.argv[1]
    older = json.load(open(sys.argv[3])) if sys.argv[2:3] == ["--older"] else {}
    order = sorted(older, key=lambda v: [int(n) for n in re.findall(r"\d+", v)[:3]])
    made, version = parser(engine)
    print(f"# {engine} {version}: its own argument parser, written by tests/reference/engine_flags.py")
    print(f"# versions compared: {' '.join(v.removesuffix('.post1') for v in order + [version])}")
    known = {"--help", "-h"}
    extra = further_choices(engine)
    for action in made._actions:
        names = [n for n in action.option_strings if not n.startswith("--no-") or type(action).__name__ != "BooleanOptionalAction"]
        if not names or "--help" in names:
            continue
        known.update(action.option_strings)
        first = next((v for v in order if set(names) & set(older[v])), version).removesuffix(".post1")
        choices = "|".join(str(c) for c in action.choices or extra.get(names[0], []))
        print("\t".join([",".join(names), takes(action), kind(action), choices, plain(str(action.default)), first, ""]))
    gone = sorted(set().union(*older.values()) - known) if older else []
    for name in gone:
        seen = [v.removesuffix(".post1") for v in order if name in older[v]]
        if re.fullmatch(r"--[a-z][a-z0-9-]+", name) and not name.startswith("--no-"):
            print("\t".join([name, "1", "str", "", "", seen[0], seen[-1]]))


main()
