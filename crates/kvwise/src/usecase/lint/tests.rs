use super::*;

fn text(text: &str) -> Lint {
    let source = Source::Text {
        name: "f".to_owned(),
        text: text.to_owned(),
    };
    lint(&source, &Target::default()).unwrap()
}

fn on(gpu: &str, command: &str) -> Lint {
    let source = Source::Text {
        name: "f".to_owned(),
        text: command.to_owned(),
    };
    let target = Target {
        gpu: Some(gpu.to_owned()),
        ..Target::default()
    };
    lint(&source, &target).unwrap()
}

fn codes(lint: &Lint) -> Vec<&'static str> {
    lint.servers
        .iter()
        .flat_map(|s| &s.findings)
        .map(|f| f.code)
        .collect()
}

#[test]
fn a_good_command_has_no_findings() {
    let good = text("vllm serve Qwen/Qwen3-8B --max-model-len 32k --kv-cache-dtype fp8");
    assert_eq!(codes(&good), [""; 0]);
    assert_eq!(good.errors, 0);
}

#[test]
fn each_kind_of_mistake_is_found() {
    for (words, code) in [
        ("--swap-space 4", "removed-flag"),
        ("--max-modle-len 4", "unknown-flag"),
        ("--dtype fp16", "bad-value"),
        ("--dtype auto", "redundant"),
        ("--gpu-memory-utilization 0.99", "little-left"),
        ("--gpu-memory-utilization 1.4", "bad-share"),
        ("--max-model-len -44838", "bad-length"),
        ("--enforce-eager", "slower"),
        ("--trust-remote-code", "remote-code"),
        ("--api-key abc", "secret-in-command"),
        ("--max-loras 2", "without-effect"),
        ("--num-gpu-blocks-override 9", "by-hand"),
        (
            "--kv-cache-memory-bytes 1g --gpu-memory-utilization 0.5",
            "ignored",
        ),
        ("--max-num-seqs 8 --max-num-seqs 9", "given-twice"),
        ("--tensor-par 2", "abbreviated"),
        ("--max-num-seqs 9 --max-num-batched-tokens 8", "contradiction"),
        ("--tensor-parallel-size 0", "not-positive"),
        ("'--dtype auto'", "joined-words"),
        ("--max-model-len", "missing-value"),
    ] {
        let found = codes(&text(&format!("vllm serve m {words}")));
        assert!(found.contains(&code), "{words}: {found:?}");
    }
    assert_eq!(
        codes(&text("VLLM_ATTENTION_BACKEND=FLASHINFER vllm serve m")),
        ["unknown-variable"]
    );
    assert_eq!(codes(&text("vllm serve --port 8001")), ["no-model"]);
    let docker = codes(&text(
        "docker run --gpus 1 vllm/vllm-openai:latest --model m -tp 2",
    ));
    for code in ["too-few-gpus", "shared-memory", "floating-image"] {
        assert!(docker.contains(&code), "{docker:?}");
    }
}

#[test]
fn an_older_image_may_still_have_what_is_gone() {
    let old = text("docker run vllm/vllm-openai:v0.8.5 --model m --swap-space 4");
    assert_eq!(old.errors, 0, "{old:?}");
    assert_eq!(
        text("docker run vllm/vllm-openai:v0.32.0 --model m --swap-space 4").errors,
        1
    );
}

#[test]
fn with_a_gpu_each_flag_says_what_it_changes_and_what_does_not_fit_is_an_error() {
    let good = on(
        "h100",
        "vllm serve Qwen/Qwen3-32B -tp 2 --kv-cache-dtype fp8 --max-model-len 16384",
    );
    let flags = &good.servers[0].flags;
    assert_eq!(flags.len(), 3);
    assert!(flags.iter().all(|f| f.effect.is_some()), "{flags:?}");
    assert!(good.servers[0].verdict.as_ref().unwrap().starts_with("fits"));
    let bad = on("h100", "vllm serve meta-llama/Llama-3.1-70B");
    assert_eq!((codes(&bad)[0], bad.errors), ("does-not-fit", 1));
    let better = on("h100", "vllm serve Qwen/Qwen3-32B -tp 2 --max-model-len 16384");
    assert!(codes(&better).contains(&"better"), "{better:?}");
}

#[test]
fn a_profile_is_read_with_its_further_flags() {
    let profile = "profile_version: 1\nmodel: {id: Llama-2-7b, dtype: fp16, quantization: none, max_model_len: 4096}\n\
                   hardware: {gpu_name: 'RTX 4090', gpus: 1}\nworkload: {prompt_tokens: 512, gen_tokens: 256, concurrency: 4}\n\
                   policy: {gpu_memory_utilization: 0.9}\noutputs: {emit: [command], vllm_args: {swap_space: 8, seed: 1}}\n";
    let found = text(profile);
    assert!(codes(&found).contains(&"removed-flag"), "{found:?}");
    assert!(
        codes(&found).contains(&"bad-value"),
        "fp16 is no spelling of vLLM's: {found:?}"
    );
    assert!(found.servers[0].verdict.is_some(), "the profile names its GPU");
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_an_empty_answer() {
    for bad in [
        "",
        "echo hello",
        "services: {a: {image: nginx}}",
        "kind: Pod\nspec: [",
        "vllm serve 'm",
    ] {
        let source = Source::Text {
            name: "f".to_owned(),
            text: bad.to_owned(),
        };
        let e = lint(&source, &Target::default()).unwrap_err();
        assert!(e.to_string().starts_with("f: "), "{bad}: {e}");
    }
    let nothing = Source::of(&["no-such-file.sh".to_owned()], || Ok(String::new()));
    assert!(nothing.unwrap_err().to_string().contains("no such file"));
}

#[test]
fn a_server_of_llama_cpp_is_read_like_the_others() {
    let codes = |text: &str| -> Vec<&'static str> {
        let found = on("h100", text);
        assert_eq!(found.servers[0].engine, "llamacpp");
        found.servers[0].findings.iter().map(|f| f.code).collect()
    };
    let said = "llama-server -m m.gguf -c 8192 -np 2 -ngl all";
    assert_eq!(codes(said), ["shared-context"]);
    assert_eq!(codes(&format!("{said} --kv-unified")), [""; 0]);
    assert_eq!(codes("llama-server -m m.gguf"), ["left-open"; 3]);
    assert_eq!(codes(&format!("{said} -kvu --ctx-siz 1")), ["unknown-flag"]);
    assert_eq!(
        codes(&format!("{said} -kvu -ctv q8_0 -fa off")),
        ["needs-flash-attention"]
    );
    let run =
        "docker run --gpus 2 ghcr.io/ggml-org/llama.cpp:server-cuda -hf a/b:Q4_K_M -c 4096 -np 1 -ngl 99";
    assert_eq!(codes(run), [""; 0]);
    assert_eq!(on("h100", run).servers[0].model.as_deref(), Some("a/b:Q4_K_M"));
}

#[test]
fn what_generate_writes_for_several_machines_and_for_llama_cpp_is_clean() {
    use super::super::deployment::Deployment;
    use super::super::generate::{Order, Outcome, generate};
    let several = Order {
        deployment: Deployment {
            model: Some("deepseek-ai/DeepSeek-V3".to_owned()),
            gpu: Some("h100".to_owned()),
            tensor_parallel_size: Some(8),
            pipeline_parallel_size: Some(2),
            max_model_len: Some("32k".to_owned()),
            ..Deployment::default()
        },
        ..Order::default()
    };
    let llamacpp = Order {
        deployment: Deployment {
            model: Some("Qwen/Qwen3-8B".to_owned()),
            gpu: Some("h100".to_owned()),
            engine: Some("llamacpp".to_owned()),
            context: vec!["8192".to_owned()],
            concurrency: vec![4],
            cache_type_v: Some("q8_0".to_owned()),
            ..Deployment::default()
        },
        hf_repo: Some("ggml-org/Qwen3-8B-GGUF:Q4_K_M".to_owned()),
        ..Order::default()
    };
    let by_ray = Order {
        deployment: several.deployment.clone(),
        executor: crate::report::generate::Executor::Ray,
        image: Some("registry.local/vllm-ray:v0.32.0".to_owned()),
        ..Order::default()
    };
    for order in [several, by_ray, llamacpp] {
        let Outcome::Files { files, .. } = generate(&order).unwrap() else {
            panic!()
        };
        for file in files
            .iter()
            .filter(|f| !["plan.json", "profile.yaml"].contains(&f.name))
        {
            let found = on("h100", &file.text);
            assert_eq!((found.errors, found.warnings), (0, 0), "{}: {found:?}", file.name);
        }
    }
}

#[test]
fn a_repository_of_ggufs_is_planned_by_its_name() {
    let found = on(
        "rtx-4090",
        "llama-server -hf ggml-org/Qwen3-8B-GGUF:Q8_0 --ctx-size 8192 --parallel 1 --n-gpu-layers all",
    );
    let server = &found.servers[0];
    assert!(
        server.verdict.as_deref().is_some_and(|v| v.starts_with("fits")),
        "{server:?}"
    );
    assert!(server.findings.iter().any(|f| f.code == "read-from-name"));
    let unknown = on(
        "rtx-4090",
        "llama-server -hf nobody/thing-GGUF --ctx-size 8192 --parallel 1",
    );
    assert_eq!(unknown.servers[0].verdict, None);
    // Names of tensors are in the file alone: nothing is planned as if the pattern were not there.
    let placed = on(
        "rtx-4090",
        "llama-server -hf ggml-org/Qwen3-8B-GGUF:Q8_0 -c 8192 -np 1 -ngl all -ot ffn=CPU",
    );
    let server = &placed.servers[0];
    assert_eq!(server.verdict, None);
    let why = server.findings.iter().find(|f| f.code == "not-planned").unwrap();
    assert!(why.message.contains("names of tensors"), "{why:?}");
}

#[test]
fn what_generate_writes_is_clean() {
    use super::super::deployment::Deployment;
    use super::super::generate::{Artifact, Order, Outcome, generate};
    let order = Order {
        deployment: Deployment {
            model: Some("Qwen/Qwen3-32B".to_owned()),
            gpu: Some("h100".to_owned()),
            tensor_parallel_size: Some(2),
            kv_cache_dtype: Some("fp8".to_owned()),
            ..Deployment::default()
        },
        emit: Artifact::ALL.map(|(_, a)| a).to_vec(),
        ..Order::default()
    };
    let Outcome::Files { files, .. } = generate(&order).unwrap() else {
        panic!()
    };
    for file in files.iter().filter(|f| f.name != "plan.json") {
        let found = on("h100", &file.text);
        assert_eq!((found.errors, found.warnings), (0, 0), "{}: {found:?}", file.name);
    }
}
