use std::fs;

use kvwise_core::catalogue;
use serde_json::Value;

use super::*;

mod several;

fn order(model: &str, gpu: &str) -> Order {
    Order {
        deployment: Deployment {
            model: Some(model.to_owned()),
            gpu: Some(gpu.to_owned()),
            ..Deployment::default()
        },
        emit: Artifact::ALL.map(|(_, a)| a).to_vec(),
        ..Order::default()
    }
}

fn made(order: &Order) -> (Box<Server>, Vec<BundleFile>) {
    match generate(order).unwrap() {
        Outcome::Files { server, files, .. } => (server, files),
        Outcome::DoesNotFit { plan } => panic!("{}", plan.verdict),
    }
}

fn text<'a>(files: &'a [BundleFile], name: &str) -> &'a str {
    &files.iter().find(|f| f.name == name).unwrap().text
}

/// The documents of a YAML file.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|e| panic!("{e}\n{part}")))
        .collect()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_command_of_every_model_of_the_catalogue_passes_the_engines_parser() {
    use rayon::prelude::*;
    // The first of these that it fits on; tests/reference/generated_commands.py takes every model with several settings.
    const MACHINES: [(&str, u64); 4] = [("l40s", 1), ("h100", 4), ("h200", 8), ("b200", 8)];
    let checked = |id: &str| -> Option<(String, String)> {
        let mut why = String::new();
        for (gpu, tp) in MACHINES {
            let mut order = order(id, gpu);
            order.emit = vec![Artifact::Compose];
            order.deployment.tensor_parallel_size = Some(tp);
            order.deployment.max_model_len = Some("auto".to_owned());
            match generate(&order).unwrap_or_else(|e| panic!("{id} on {gpu}: {e:?}")) {
                Outcome::Files { server, files, .. } => {
                    let words = server.words(false);
                    assert_eq!(parse(flags::vllm(), &words).problems, [], "{words:?}");
                    assert_eq!(words[0], id);
                    let compose = documents(text(&files, "docker-compose.yaml")).remove(0);
                    let services = compose["services"].as_object().unwrap();
                    let service = services.values().next().unwrap();
                    assert_eq!(strings(&service["command"]), server.words(true), "{id}");
                    return None;
                }
                Outcome::DoesNotFit { plan } => why = plan.verdict.clone(),
            }
        }
        Some((id.to_owned(), why))
    };
    let ids: Vec<&str> = catalogue::all().map(|entry| entry.id).collect();
    let unfit: Vec<String> = ids
        .par_iter()
        .filter_map(|id| checked(id))
        .map(|(id, why)| {
            // How much is missing changes with every better estimate, that something is missing does not.
            let kind = why.split(": weights and").next().unwrap_or_default();
            format!("{id}: {}", kind.split([';', ',']).next().unwrap_or_default())
        })
        .collect();
    // Every other model of the catalogue has a command that starts.
    insta::assert_snapshot!("models_that_fit_no_machine", unfit.join("\n"));
}

#[cfg(unix)]
#[test]
fn a_gguf_file_gets_a_server_of_llama_cpp_that_holds_the_plan() {
    let file = gguf();
    let path = file.path().to_str().unwrap();
    let mut order = order(path, "rtx-4090");
    order.deployment.context = vec!["4096".to_owned()];
    order.deployment.concurrency = vec![4];
    order.deployment.cache_type_k = Some("q8_0".to_owned());
    order.deployment.cache_type_v = Some("q8_0".to_owned());
    let (server, files) = made(&order);
    let words = server.words(false);
    assert_eq!(words[..2], ["--model".to_owned(), path.to_owned()]);
    for pair in [
        ["--ctx-size", "16384"],
        ["--parallel", "4"],
        ["--n-gpu-layers", "all"],
        ["--cache-type-k", "q8_0"],
        ["--cache-type-v", "q8_0"],
        ["--flash-attn", "on"],
        ["--host", "0.0.0.0"],
    ] {
        assert!(words.windows(2).any(|w| w == pair), "{pair:?} in {words:?}");
    }
    assert_eq!(parse(flags::llamacpp(), &words).problems, []);
    assert!(server.arguments.iter().all(|a| !a.why.is_empty()));
    let name = file.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(server.words(true)[1], format!("/model/{name}"));
    let compose = documents(text(&files, "docker-compose.yaml")).remove(0);
    let services = compose["services"].as_object().unwrap();
    let service = services.values().next().unwrap();
    assert_eq!(service["image"], "ghcr.io/ggml-org/llama.cpp:server-cuda-b11243");
    assert_eq!(strings(&service["entrypoint"]), ["/app/llama-server"]);
    assert_eq!(strings(&service["healthcheck"]["test"])[1], "curl");
    assert_eq!(
        service["volumes"][1]["source"].as_str().unwrap(),
        file.path().parent().unwrap().to_str().unwrap()
    );
    assert!(text(&files, "docker_command.sh").contains("--entrypoint /app/llama-server"));
    assert!(text(&files, "serve_command.sh").contains("exec llama-server"));
    // The profile says the same deployment again.
    let profile = plan_profile::parse(text(&files, "profile.yaml")).unwrap();
    let again = Order {
        deployment: Deployment::from_profile(&profile).unwrap(),
        ..order
    };
    assert_eq!(made(&again).0.words(false), words);
}

/// A GGUF file of two layers, without its tensors' bytes.
fn gguf() -> tempfile::NamedTempFile {
    use std::io::Write;
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let tensors: [(&str, &[u64]); 3] = [
        ("token_embd.weight", &[256, 512]),
        ("blk.0.attn_q.weight", &[256, 256]),
        ("blk.1.attn_q.weight", &[256, 256]),
    ];
    let numbers = [
        ("llama.block_count", 2_u32),
        ("llama.context_length", 16_384),
        ("llama.embedding_length", 256),
        ("llama.feed_forward_length", 512),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.vocab_size", 512),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((numbers.len() as u64 + 1).to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8_u32.to_le_bytes());
    text(&mut out, "llama");
    for (key, value) in numbers {
        text(&mut out, key);
        out.extend(4_u32.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    let mut offset = 0_u64;
    for (name, dims) in tensors {
        text(&mut out, name);
        out.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        for dim in dims {
            out.extend(dim.to_le_bytes());
        }
        // Type 1 is f16.
        out.extend(1_u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += dims.iter().product::<u64>() * 2;
    }
    let length = out.len().next_multiple_of(32) as u64 + offset;
    let mut file = tempfile::Builder::new()
        .prefix("tiny ")
        .suffix(".gguf")
        .tempfile()
        .unwrap();
    file.write_all(&out).unwrap();
    file.as_file().set_len(length).unwrap();
    file
}

#[test]
fn a_hub_model_needs_the_name_of_its_gguf_files_for_llama_cpp() {
    let mut order = order("Qwen/Qwen3-8B", "rtx-4090");
    order.deployment.engine = Some("llamacpp".to_owned());
    order.deployment.context = vec!["8192".to_owned()];
    let e = generate(&order).unwrap_err();
    assert!(
        e.to_string().contains("llama.cpp serves GGUF files") && e.hints()[0].contains("--hf-repo"),
        "{e:?}"
    );
    order.hf_repo = Some("ggml-org/Qwen3-8B-GGUF:Q4_K_M".to_owned());
    let (server, _) = made(&order);
    assert_eq!(
        server.words(true)[..2],
        ["--hf-repo", "ggml-org/Qwen3-8B-GGUF:Q4_K_M"]
    );
    for wrong in ["Qwen3-8B", "-x/y", "a/b:c d", "a/b/c", ""] {
        order.hf_repo = Some(wrong.to_owned());
        assert!(
            generate(&order).unwrap_err().to_string().contains("--hf-repo is"),
            "{wrong}"
        );
    }
    order.hf_repo = Some("ggml-org/Qwen3-8B-GGUF".to_owned());
    order.deployment.enforce_eager = true;
    assert!(
        generate(&order)
            .unwrap_err()
            .to_string()
            .contains("--enforce-eager means nothing")
    );
}

#[test]
fn servers_on_cpus_get_a_script_and_containers_only_with_an_image() {
    let mut order = order("Qwen/Qwen3-0.6B", "cpu");
    order.emit = Vec::new();
    order.deployment.gpu_memory = Some("64GiB".to_owned());
    order.deployment.max_model_len = Some("4k".to_owned());
    let (server, files) = made(&order);
    assert!(files.iter().any(|f| f.name == "serve_command.sh"));
    assert!(files.iter().all(|f| f.name != "docker_command.sh"));
    assert!(server.warnings.iter().any(|w| w.contains("serves on CPUs")));
    order.image = Some("registry.local/vllm-cpu:1".to_owned());
    let (_, files) = made(&order);
    assert!(!text(&files, "docker_command.sh").contains("--gpus"));
    assert!(!text(&files, "k8s.yaml").contains("nvidia.com"));
    assert!(!text(&files, "docker-compose.yaml").contains("nvidia"));
}

#[test]
fn sglangs_command_says_what_its_plan_rests_on() {
    let mut order = order("deepseek-ai/DeepSeek-V3", "h200");
    order.deployment.engine = Some("sglang".to_owned());
    order.deployment.tensor_parallel_size = Some(8);
    order.deployment.data_parallel_size = Some(8);
    order.deployment.enforce_eager = true;
    order.deployment.no_async_scheduling = true;
    order.deployment.max_total_tokens = Some("20k".to_owned());
    let (server, _) = made(&order);
    let words = server.words(false).join(" ");
    for part in [
        "--tp-size 8",
        "--attn-dp-size 8",
        "--cuda-graph-backend-decode disabled",
        "--disable-overlap-schedule",
        "--max-total-tokens 20000",
    ] {
        assert!(words.contains(part), "{part} in {words}");
    }
    let mut awq = super::tests::order("Llama-3.1-8B", "h100");
    awq.deployment.engine = Some("sglang".to_owned());
    awq.deployment.quantization = Some("awq".to_owned());
    assert!(
        generate(&awq)
            .unwrap_err()
            .to_string()
            .contains("needs a checkpoint that is quantised so")
    );
}

#[test]
fn what_does_not_fit_is_not_made_and_the_nearest_that_fits_is_named() {
    let Outcome::DoesNotFit { plan } = generate(&order("meta-llama/Llama-3.1-70B", "h100")).unwrap() else {
        panic!("70 B parameters in 16 bits on one GPU")
    };
    assert!(!plan.feasibility.fits);
    let nearest = nearest(&order("meta-llama/Llama-3.1-70B", "h100").deployment).unwrap();
    assert_eq!(
        nearest.flags[0],
        ("--tensor-parallel-size".to_owned(), "2".to_owned())
    );
    // The offer holds: with its flags the files are made.
    let mut changed = order("meta-llama/Llama-3.1-70B", "h100");
    for (flag, value) in &nearest.flags {
        match flag.as_str() {
            "--tensor-parallel-size" => changed.deployment.tensor_parallel_size = value.parse().ok(),
            "--max-model-len" => changed.deployment.max_model_len = Some(value.clone()),
            "--kv-cache-dtype" => changed.deployment.kv_cache_dtype = Some(value.clone()),
            other => panic!("{other}"),
        }
    }
    assert!(matches!(generate(&changed).unwrap(), Outcome::Files { .. }));
}

#[test]
fn only_what_differs_from_the_defaults_is_in_the_command_and_each_flag_says_why() {
    let (server, _) = made(&order("Llama-3.1-8B", "h100"));
    assert_eq!(server.words(false), ["meta-llama/Meta-Llama-3.1-8B"]);
    let mut changed = order("Llama-3.1-8B", "h100");
    changed.deployment.tensor_parallel_size = Some(1);
    changed.deployment.gpu_memory_utilization = Some(0.92);
    changed.deployment.dtype = Some("auto".to_owned());
    changed.deployment.kv_cache_dtype = Some("fp8_e4m3fn".to_owned());
    changed.deployment.max_num_batched_tokens = Some("8k".to_owned());
    let (server, _) = made(&changed);
    assert_eq!(
        server.words(false)[1..],
        ["--kv-cache-dtype", "fp8_e4m3", "--max-num-batched-tokens", "8000"]
    );
    assert!(
        server.arguments.iter().all(|a| !a.why.is_empty()),
        "{:?}",
        server.arguments
    );
}

#[test]
fn more_requests_than_run_by_default_raise_the_bound() {
    let mut many = order("Qwen/Qwen3-0.6B", "l4");
    many.deployment.concurrency = vec![400];
    many.deployment.context = vec!["256".to_owned()];
    many.deployment.max_model_len = Some("2048".to_owned());
    let (server, _) = made(&many);
    assert!(
        server.words(false).join(" ").contains("--max-num-seqs 400"),
        "{:?}",
        server.words(false)
    );
}

/// A folder with a configuration under a name that breaks whatever does not quote.
fn hostile_folder(root: &std::path::Path) -> String {
    let name = "-a b'c\"d$HOME`e`,{f}: #g\\h\ni;rm &* 模$(j)";
    let folder = root.join(name);
    fs::create_dir(&folder).unwrap();
    let config = catalogue::find("Llama-3.1-8B").unwrap();
    fs::write(folder.join("config.json"), config.config_text().unwrap()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_hostile_path_stays_one_word_in_every_file() {
    let root = tempfile::tempdir().unwrap();
    let path = hostile_folder(root.path());
    let (server, files) = made(&order(&path, "h100"));
    assert_eq!(server.words(false)[0], path);
    assert_eq!(server.words(true)[0], "/model");
    let name = "-a b'c\"d$HOME`e`,{f}: #g\\h\ni;rm &* 模$(j)";
    let compose = documents(text(&files, "docker-compose.yaml")).remove(0);
    let service = compose["services"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap()
        .clone();
    // Compose reads two dollars as one.
    let command: Vec<String> = strings(&service["command"])
        .iter()
        .map(|w| w.replace("$$", "$"))
        .collect();
    assert_eq!(command, server.words(true));
    assert!(
        command.contains(&format!("--served-model-name={name}")),
        "{command:?}"
    );
    let mount = service["volumes"][1]["source"]
        .as_str()
        .unwrap()
        .replace("$$", "$");
    assert_eq!(mount, path);
    let k8s = documents(text(&files, "k8s.yaml"));
    let pod = &k8s.iter().find(|d| d["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"];
    let args: Vec<String> = strings(&pod["containers"][0]["args"])
        .iter()
        .map(|w| w.replace("$$", "$"))
        .collect();
    assert_eq!(args, server.words(true));
    assert_eq!(pod["volumes"][1]["hostPath"]["path"], path);
    let values = documents(text(&files, "values.yaml")).remove(0);
    assert_eq!(
        strings(&values["args"])
            .iter()
            .map(|w| w.replace("$$", "$"))
            .collect::<Vec<_>>(),
        server.words(true)
    );
}

#[cfg(unix)]
#[test]
fn a_shell_gives_the_engine_exactly_the_words_of_the_plan() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let path = hostile_folder(root.path());
    let mut order = order(&path, "h100");
    order.deployment.speculative_config =
        Some(r#"{"method": "ngram", "num_speculative_tokens": 2}"#.to_owned());
    let (server, files) = made(&order);
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for (program, script) in [("serve_command.sh", "vllm"), ("docker_command.sh", "docker")] {
        let stand_in = bin.join(script);
        fs::write(
            &stand_in,
            "#!/bin/sh\nfor w in \"$@\"; do printf '%s\\0' \"$w\"; done\n",
        )
        .unwrap();
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
        let file = root.path().join(program);
        fs::write(&file, text(&files, program)).unwrap();
        let output = std::process::Command::new("/bin/sh")
            .arg(&file)
            .arg("--max-num-seqs=7")
            .env("PATH", format!("{}:/bin:/usr/bin", bin.display()))
            .env("HOME", root.path())
            .env_remove("HF_HOME")
            .output()
            .unwrap();
        let got: Vec<String> = output
            .stdout
            .split(|&b| b == 0)
            .map(|w| String::from_utf8(w.to_vec()).unwrap())
            .collect();
        let container = script == "docker";
        let mut expected = server.words(container);
        expected.extend(["--max-num-seqs=7".to_owned(), String::new()]);
        assert!(got.ends_with(&expected), "{got:?}\n{expected:?}");
        if container {
            assert!(
                got.contains(&"--gpus".to_owned()) && got.contains(&"vllm/vllm-openai:v0.32.0".to_owned())
            );
            assert!(
                got.iter().any(|w| w.starts_with("type=bind,\"source=/")),
                "{got:?}"
            );
        } else {
            assert_eq!(got[0], "serve");
        }
    }
}

#[test]
fn a_manifest_asks_for_what_the_server_needs() {
    let mut order = order("Qwen/Qwen3-32B", "h100");
    order.deployment.tensor_parallel_size = Some(2);
    let (server, files) = made(&order);
    let k8s = documents(text(&files, "k8s.yaml"));
    let kinds: Vec<&str> = k8s.iter().map(|d| d["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PersistentVolumeClaim", "Deployment", "Service"]);
    let pod = &k8s[1]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 2);
    assert_eq!(container["startupProbe"]["httpGet"]["path"], "/health");
    assert_eq!(pod["volumes"][0]["emptyDir"]["medium"], "Memory");
    assert_eq!(container["env"][0]["valueFrom"]["secretKeyRef"]["optional"], true);
    assert_eq!(
        k8s[1]["spec"]["selector"]["matchLabels"]["app"],
        k8s[2]["spec"]["selector"]["app"]
    );
    // The claim holds the weights.
    let size = k8s[0]["spec"]["resources"]["requests"]["storage"]
        .as_str()
        .unwrap();
    let gib: u64 = size.strip_suffix("Gi").unwrap().parse().unwrap();
    assert!(gib << 30 > server.weights_bytes, "{size}");
    let profile = plan_profile::parse(text(&files, "profile.yaml")).unwrap();
    assert_eq!(Deployment::from_profile(&profile).unwrap(), order.deployment);
}

#[test]
fn amd_cards_get_their_own_devices() {
    let (_, files) = made(&order("Llama-3.1-8B", "mi300x"));
    assert!(text(&files, "docker_command.sh").contains("--device /dev/kfd"));
    assert!(text(&files, "k8s.yaml").contains("amd.com/gpu: 1"));
    assert!(text(&files, "docker-compose.yaml").contains("vllm-openai-rocm"));
}

#[test]
fn what_no_flag_can_do_is_refused_by_name() {
    let says = |order: &Order, text: &str| {
        let e = generate(order).unwrap_err();
        assert!(format!("{e:?}").contains(text), "expected \"{text}\" in {e:?}");
    };
    let mut awq = order("Llama-3.1-8B", "h100");
    awq.deployment.quantization = Some("awq".to_owned());
    says(&awq, "needs a checkpoint that is quantised so");
    let mut none = order("Qwen/Qwen3-32B-FP8", "h200");
    none.deployment.quantization = Some("none".to_owned());
    says(&none, "no flag undoes that");
    let mut generic = order("Llama-3.1-8B", "h100");
    generic.deployment.engine = Some("generic".to_owned());
    says(&generic, "no server is started for the engine generic");
    let with = |words: &[&str]| Order {
        extra: words.iter().map(|w| (*w).to_owned()).collect(),
        ..order("Llama-3.1-8B", "h100")
    };
    says(&with(&["--swap-space", "4"]), "--swap-space is gone");
    says(&with(&["--max-num-seqs", "4"]), "give it before the --");
    says(&with(&["--no-such-flag"]), "is not a flag");
    says(&with(&["word"]), "belongs to no flag");
    let mut old = order("Llama-3.1-8B", "h100");
    old.deployment.engine_version = Some("0.8.5".to_owned());
    old.deployment.language_model_only = true;
    says(&old, "is not known to be a flag of vllm 0.8.5");
    assert!(
        Artifact::parse("kubernetes")
            .unwrap_err()
            .to_string()
            .contains("--emit has \"kubernetes\"")
    );
}

#[test]
fn further_flags_come_last_and_made_formats_have_the_engines_names() {
    let mut order = order("Llama-3.1-8B", "h100");
    order.extra = ["--reasoning-parser", "qwen3", "--enable-log-requests"]
        .map(str::to_owned)
        .to_vec();
    order.deployment.quantization = Some("int8".to_owned());
    let (server, _) = made(&order);
    assert_eq!(
        server.words(false)[1..],
        [
            "--quantization",
            "int8_per_channel_weight_only",
            "--reasoning-parser",
            "qwen3",
            "--enable-log-requests"
        ]
    );
}

#[test]
fn limits_of_images_are_written_as_json() {
    let mut order = order("Qwen/Qwen2.5-VL-7B-Instruct", "h100");
    order.deployment.limit_mm_per_prompt = Some("image=0,video=0".to_owned());
    let (server, _) = made(&order);
    assert_eq!(
        server.words(false)[1..],
        ["--limit-mm-per-prompt", r#"{"image":0,"video":0}"#]
    );
    order.deployment.engine = Some("sglang".to_owned());
    let refused = generate(&order).unwrap_err().to_string();
    assert!(refused.contains("--limit-mm-per-prompt"), "{refused}");
}
