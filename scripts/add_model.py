#!/usr/bin/env python3
"""Adds or replaces one row of the built-in model catalogue.

    scripts/add_model.py ORG/NAME config.json --source "where the file came from" --date YYYY-MM-DD [--alias ORG/OTHER]...

The catalogue (crates/core/data/models.jsonl) has one model a line, sorted by hub id. A row holds the configuration
unchanged, except for keys that no engine reads for memory (token ids, sampling and initialiser settings), which are left
out to keep the program small; `--elide-experts` also drops the per-expert quantisation entries that repeat expert 0's.
"""

import argparse
import json
import pathlib
import re

CATALOGUE = pathlib.Path(__file__).resolve().parent.parent / "crates/core/data/models.jsonl"
UNREAD = {
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "initializer_range", "init_std", "initializer_factor",
    "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout",
    "classifier_dropout", "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "use_cache", "id2label",
    "label2id", "transformers_version", "output_attentions", "output_hidden_states", "return_dict", "problem_type",
    "_name_or_path", "auto_map", "chunk_size_feed_forward", "architectures_note",
    "apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob",
    "mask_feature_length", "mask_feature_min_masks", "median_filter_width", "activation_dropout", "encoder_layerdrop",
    "time_step_limit", "time_step_min", "time_step_max", "time_step_floor", "decoder_layerdrop", "router_jitter_noise", "summary_activation", "summary_first_dropout",
}
EXPERT = re.compile(r"^(.*\.experts\.)(\d+)(\..*)$")


def pruned(config):
    """The configuration without the keys that nothing reads, at every level."""
    if isinstance(config, dict):
        return {k: pruned(v) for k, v in config.items() if k not in UNREAD}
    return config


def without_repeated_experts(config):
    """Drops `quantized_layers` entries of experts 1.. where they equal expert 0's; anything else is an error."""
    layers = config["quantization_config"]["quantized_layers"]
    kept = {}
    for key, value in layers.items():
        match = EXPERT.match(key)
        if match and match[2] != "0":
            if layers[f"{match[1]}0{match[3]}"] != value:
                raise SystemExit(f"{key} differs from expert 0: cannot be left out")
            continue
        kept[key] = value
    config["quantization_config"]["quantized_layers"] = kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id")
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--alias", action="append", default=[])
    parser.add_argument("--note")
    parser.add_argument("--elide-experts", action="store_true")
    args = parser.parse_args()

    config = pruned(json.loads(args.config.read_text()))
    if args.elide_experts:
        without_repeated_experts(config)
    row = {"id": args.id}
    if args.alias:
        row["aliases"] = sorted(args.alias, key=str.lower)
    row |= {"source": args.source, "date": args.date}
    if args.note:
        row["note"] = args.note
    row["config"] = config

    rows = {}
    if CATALOGUE.exists():
        for line in CATALOGUE.read_text().splitlines():
            rows[json.loads(line)["id"]] = line
    rows[args.id] = json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    CATALOGUE.write_text("".join(rows[key] + "\n" for key in sorted(rows, key=str.lower)))


if __name__ == "__main__":
    main()
