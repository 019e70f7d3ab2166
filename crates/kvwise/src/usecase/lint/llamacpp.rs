//! What is wrong with a command of llama.cpp's server, and what it says of a deployment.

use kvwise_core::catalogue;
use kvwise_core::engine::flags::parse::{Given, Parsed};
use kvwise_core::engine::llamacpp::convert::Mix;
use serde_json::{Value, json};

use crate::report::lint::Level;
use crate::usecase::deployment::Deployment;

/// What `--cpu-moe` and `--n-cpu-moe` match (b11549, `common/common.h`).
const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
/// More layers than any model has (`LLAMA_MAX_LAYERS`).
const MOST_LAYERS: u64 = 512;

/// What the server decides by itself where a flag is missing (llama.cpp b11549, `tools/server/server.cpp`, `common/fit.cpp`).
const LEFT_OPEN: [(&str, &str); 3] = [
    (
        "--ctx-size",
        "the context is the model's, or as much of it as fits beside the weights",
    ),
    ("--parallel", "the server takes four slots that share one cache"),
    (
        "--n-gpu-layers",
        "as many layers go to GPUs as fit when the server starts",
    ),
];

/// Settings that contradict each other, and what is left to the machine.
pub fn settings(parsed: &Parsed, add: &mut impl FnMut(Level, &'static str, &str, String, Option<&str>)) {
    for (flag, says) in LEFT_OPEN {
        let open = match parsed.value(flag) {
            None => true,
            Some(value) => ["auto", "-1", "0"].contains(&value) && (flag, value) != ("--n-gpu-layers", "0"),
        };
        if open {
            add(
                Level::Info,
                "left-open",
                flag,
                format!("{flag} is left open: {says}"),
                Some("say it, so that the memory is the same on every start"),
            );
        }
    }
    let values = parsed.value("--cache-type-v").unwrap_or("f16");
    if !["f16", "f32", "bf16"].contains(&values) && parsed.value("--flash-attn") == Some("off") {
        add(
            Level::Error,
            "needs-flash-attention",
            "--cache-type-v",
            format!("a V cache of {values} needs flash attention, and it is off"),
            Some("leave --flash-attn out, or give --cache-type-v f16"),
        );
    }
    let size = |flag: &str| parsed.value(flag).and_then(|v| v.parse::<u64>().ok());
    if let (Some(context), Some(slots @ 2..)) = (size("--ctx-size").filter(|&n| n > 0), size("--parallel"))
        && parsed.last("--kv-unified").is_none_or(|g| g.negated)
    {
        add(
            Level::Info,
            "shared-context",
            "--ctx-size",
            format!(
                "each of the {slots} slots gets {} of the {context} tokens",
                context / slots
            ),
            None,
        );
    }
}

/// The model of the catalogue whose GGUF files a repository of the hub holds, and their format: `ORG/NAME-GGUF:QUANT`, where the
/// server takes `Q4_K_M` unless the name says another.
pub fn of_catalogue(repository: &str) -> Option<(&'static str, &'static str)> {
    let (name, format) = repository.split_once(':').unwrap_or((repository, "Q4_K_M"));
    let (_, short) = name.split_once('/')?;
    let lower = short.to_ascii_lowercase();
    let model = lower
        .strip_suffix("-gguf")
        .or_else(|| lower.strip_suffix(".gguf"))?;
    let mix = Mix::by_name(format)?;
    let entry = catalogue::find(model).ok()?;
    Some((entry.id, mix.name))
}

/// The field of a deployment that a flag of a form of its own sets, and its value beside what was given before.
pub fn field(given: &Given, before: &Deployment) -> Option<(&'static str, Value)> {
    let value = given.values.first().map(String::as_str);
    match given.flag.name() {
        "--flash-attn" if value == Some("off") => Some(("no_flash_attn", json!(true))),
        "--tensor-split" => {
            let shares = value?.split([',', '/']).map(|s| s.trim().parse::<f64>());
            Some(("tensor_split", json!(shares.collect::<Result<Vec<_>, _>>().ok()?)))
        }
        "--override-tensor" => {
            // Patterns are asked in their order: experts that were kept with the host by a flag before come first.
            let layers = if before.cpu_moe {
                0
            } else {
                before.n_cpu_moe.unwrap_or(0).min(MOST_LAYERS)
            };
            let mut patterns = before.override_tensor.clone();
            let experts = (0..layers).map(|layer| format!("blk\\.{layer}{EXPERTS}=CPU"));
            for pattern in experts.chain(before.cpu_moe.then(|| format!("{EXPERTS}=CPU"))) {
                if !patterns.contains(&pattern) {
                    patterns.push(pattern);
                }
            }
            patterns.push(value?.to_owned());
            Some(("override_tensor", json!(patterns)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kvwise_core::engine::flags::{self, parse::parse};

    use super::*;

    #[test]
    fn patterns_keep_the_order_of_the_command() {
        let words = ["-ot".to_owned(), "exps=CUDA1".to_owned()];
        let parsed = parse(flags::llamacpp(), &words);
        let before = Deployment {
            n_cpu_moe: Some(2),
            override_tensor: vec!["attn=CUDA0".to_owned()],
            ..Deployment::default()
        };
        let (name, value) = field(&parsed.given[0], &before).unwrap();
        assert_eq!(name, "override_tensor");
        let experts = |layer| format!(r"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU");
        assert_eq!(value, json!(["attn=CUDA0", experts(0), experts(1), "exps=CUDA1"]));
    }

    #[test]
    fn repositories_of_the_hub_are_known_by_their_names() {
        let qwen = |format| Some(("Qwen/Qwen3-8B", format));
        assert_eq!(of_catalogue("ggml-org/Qwen3-8B-GGUF:Q8_0"), qwen("q8_0"));
        assert_eq!(of_catalogue("Qwen/Qwen3-8B-GGUF"), qwen("q4_k_m"));
        // A mix whose size is not known is not guessed.
        assert_eq!(of_catalogue("unsloth/Qwen3-8B-GGUF:UD-Q4_K_XL"), None);
        for other in [
            "Qwen/Qwen3-8B",
            "nobody/nothing-GGUF",
            "Qwen3-8B-GGUF",
            "a/Qwen3-8B-GGUF:../x",
        ] {
            assert_eq!(of_catalogue(other), None, "{other}");
        }
    }
}
