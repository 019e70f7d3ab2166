use super::*;

fn says(deployment: &Deployment, text: &str) {
    let e = deployment.resolve().unwrap_err();
    assert!(format!("{e:?}").contains(text), "expected \"{text}\" in {e:?}");
}

fn llama() -> Deployment {
    Deployment {
        model: Some("Llama-2-7b".to_owned()),
        gpu: Some("h100".to_owned()),
        ..Deployment::default()
    }
}

#[test]
fn what_is_missing_is_asked_for_with_an_example() {
    says(
        &Deployment {
            model: None,
            ..llama()
        },
        "which model?",
    );
    says(&Deployment { gpu: None, ..llama() }, "which GPU?");
}

#[test]
fn contradictions_and_nonsense_are_refused_by_name() {
    says(
        &Deployment {
            context: vec!["4096".to_owned()],
            prompt_tokens: Some(512),
            ..llama()
        },
        "give one of them",
    );
    says(
        &Deployment {
            params_b: Some(f64::NAN),
            ..llama()
        },
        "--params-b is NaN",
    );
    says(
        &Deployment {
            gpus: Some(0),
            ..llama()
        },
        "--gpus is 0",
    );
    says(
        &Deployment {
            concurrency: vec![0],
            ..llama()
        },
        "--concurrency is 0",
    );
    says(
        &Deployment {
            context: vec!["-5".to_owned()],
            ..llama()
        },
        "--context",
    );
    says(
        &Deployment {
            gpu_memory: Some("24".to_owned()),
            ..llama()
        },
        "--gpu-memory",
    );
    says(
        &Deployment {
            dtype: Some("fp17".to_owned()),
            ..llama()
        },
        "--dtype is \"fp17\"",
    );
    says(
        &Deployment {
            engine: Some("vlm".to_owned()),
            ..llama()
        },
        "did you mean vllm?",
    );
    says(
        &Deployment {
            max_loras: Some(2),
            ..llama()
        },
        "without --enable-lora",
    );
    says(
        &Deployment {
            enable_lora: true,
            max_lora_rank: Some(24),
            ..llama()
        },
        "--max-lora-rank is 24, and vLLM takes only 1, 8, 16, 32, 64, 128, 256, 320, 512",
    );
    says(
        &Deployment {
            tensor_parallel_size: Some(u64::MAX),
            pipeline_parallel_size: Some(2),
            ..llama()
        },
        "parallel sizes",
    );
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = Deployment {
        gpu: Some("a100-80gb".to_owned()),
        max_num_seqs: Some(64),
        enforce_eager: true,
        ..Deployment::default()
    };
    let both = llama().over(&file).unwrap();
    assert_eq!(both.gpu.as_deref(), Some("h100"));
    assert_eq!(both.max_num_seqs, Some(64));
    assert!(both.enforce_eager);
}
