//! Servers of several machines.

use super::*;
use crate::report::generate::nodes::{Places, Role, Word};

/// DeepSeek-V3 on two machines of eight H100.
fn two_machines() -> Order {
    let mut order = order("deepseek-ai/DeepSeek-V3", "h100");
    order.emit = Vec::new();
    order.deployment.tensor_parallel_size = Some(8);
    order.deployment.pipeline_parallel_size = Some(2);
    order.deployment.max_model_len = Some("32k".to_owned());
    order
}

#[test]
fn a_server_of_two_nodes_gets_every_file() {
    let mut order = two_machines();
    let (server, files) = made(&order);
    assert!(server.words(false).windows(2).any(|w| w == ["--nnodes", "2"]));
    assert_eq!((server.gpus, server.nodes.unwrap().count), (8, 2));
    let script = text(&files, "serve_command.sh");
    assert!(script.contains("--node-rank \"$NODE_RANK\" --master-addr \"$HEAD_ADDRESS\""));
    assert!(script.contains("set -- --headless"));
    assert!(text(&files, "docker_command.sh").contains("--network host"));
    let names: Vec<&str> = files.iter().map(|f| f.name).collect();
    assert_eq!(
        names,
        [
            "serve_command.sh",
            "docker_command.sh",
            "docker-compose.yaml",
            "k8s.yaml",
            "values.yaml",
            "profile.yaml",
            "plan.json"
        ]
    );
    order.gpus_per_node = Some(16);
    assert!(made(&order).0.nodes.is_none());
    order.gpus_per_node = None;
    order.deployment.engine_version = Some("0.8.5".to_owned());
    let e = generate(&order).unwrap_err();
    assert!(e.to_string().contains("has no --nnodes"), "{e}");
    assert!(e.hints()[0].contains("--distributed-executor-backend ray"));
}

#[test]
fn the_pods_of_several_nodes_are_a_leader_worker_set() {
    // The fields of the object's published schema (kubernetes-sigs/lws v0.9.0,
    // config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml); tests/reference/manifests.py reads all of it.
    const SPEC: [&str; 5] = [
        "leaderWorkerTemplate",
        "networkConfig",
        "replicas",
        "rolloutStrategy",
        "startupPolicy",
    ];
    const TEMPLATE: [&str; 7] = [
        "leaderTemplate",
        "persistentVolumeClaimRetentionPolicy",
        "restartPolicy",
        "size",
        "subGroupPolicy",
        "volumeClaimTemplates",
        "workerTemplate",
    ];
    let known = |value: &Value, names: &[&str]| {
        let object = value.as_object().unwrap();
        object.keys().all(|key| names.contains(&key.as_str()))
    };
    for engine in ["vllm", "sglang"] {
        let mut order = two_machines();
        order.deployment.engine = Some(engine.to_owned());
        let (server, files) = made(&order);
        let documents = documents(text(&files, "k8s.yaml"));
        let kinds: Vec<&str> = documents.iter().map(|d| d["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["PersistentVolumeClaim", "LeaderWorkerSet", "Service"]);
        assert_eq!(documents[0]["spec"]["accessModes"][0], "ReadWriteMany");
        let set = &documents[1];
        assert_eq!(set["apiVersion"], "leaderworkerset.x-k8s.io/v1");
        assert!(known(&set["spec"], &SPEC));
        let template = &set["spec"]["leaderWorkerTemplate"];
        assert!(known(template, &TEMPLATE));
        assert_eq!(
            (&template["size"], &template["restartPolicy"]),
            (&Value::from(2), &Value::from("RecreateGroupOnPodRestart"))
        );
        let container = |role: &str| template[role]["spec"]["containers"][0].clone();
        let (leader, worker) = (container("leaderTemplate"), container("workerTemplate"));
        for (container, role) in [(&leader, Role::Head), (&worker, Role::Worker)] {
            assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 8);
            let args = strings(&container["args"]);
            assert!(
                args.windows(2)
                    .any(|w| w == ["--node-rank", "$(LWS_WORKER_INDEX)"])
            );
            assert_eq!(
                args.contains(&"--headless".to_owned()),
                engine == "vllm" && role == Role::Worker
            );
            assert_eq!(container.get("startupProbe").is_some(), role == Role::Head);
        }
        let address = if engine == "vllm" {
            ["--master-addr", "$(LWS_LEADER_ADDRESS)"]
        } else {
            ["--dist-init-addr", "$(LWS_LEADER_ADDRESS):20000"]
        };
        assert!(strings(&worker["args"]).windows(2).any(|w| w == address));
        // The service reaches the leader alone; the set's own has the set's name.
        assert_eq!(documents[2]["metadata"]["name"], "deepseek-v3-leader");
        let labels = template["leaderTemplate"]["metadata"]["labels"]
            .as_object()
            .unwrap();
        assert_eq!(documents[2]["spec"]["selector"].as_object().unwrap(), labels);
        assert_ne!(
            template["workerTemplate"]["metadata"]["labels"]
                .as_object()
                .unwrap(),
            labels
        );
        // What the variables become is read by the engine's own rules.
        assert_eq!(
            parse(super::super::table(engine), &server.node_words(true)).problems,
            []
        );
        let values = documents_of_one(text(&files, "values.yaml"));
        assert_eq!(values["nodes"]["count"], 2);
        assert_eq!(values["worker"]["args"], worker["args"]);
    }
}

fn documents_of_one(text: &str) -> Value {
    documents(text).remove(0)
}

#[test]
fn compose_has_a_service_for_the_head_and_one_for_the_others() {
    let (_, files) = made(&two_machines());
    let compose = documents_of_one(text(&files, "docker-compose.yaml"));
    let service = |name: &str| compose["services"][name].clone();
    let (head, worker) = (service("deepseek-v3"), service("deepseek-v3-worker"));
    assert_eq!(
        (&head["profiles"][0], &worker["profiles"][0]),
        (&Value::from("head"), &Value::from("worker"))
    );
    assert_eq!(head["network_mode"], "host");
    assert!(head.get("ports").is_none());
    let words = strings(&worker["command"]);
    assert!(words.contains(&"--headless".to_owned()));
    assert!(words.iter().any(|w| w.starts_with("${NODE_RANK:?")));
    assert!(!strings(&head["command"]).contains(&"--headless".to_owned()));
}

#[test]
fn ray_needs_an_image_that_has_it_and_then_starts_one_server() {
    let mut order = two_machines();
    order.executor = Executor::Ray;
    let (server, files) = made(&order);
    assert!(
        files
            .iter()
            .all(|f| !f.name.contains("k8s") && !f.name.contains("docker"))
    );
    assert!(
        server
            .warnings
            .iter()
            .any(|w| w.contains("needs an image with Ray")),
        "{:?}",
        server.warnings
    );
    let script = text(&files, "serve_command.sh");
    assert!(
        script.contains("until ray start --address=\"$HEAD_ADDRESS:6379\" $address --num-gpus=8 --block")
    );
    assert!(!script.contains("--nnodes") && script.contains("--distributed-executor-backend ray"));
    order.image = Some("registry.local/vllm-ray:0.32".to_owned());
    let (server, files) = made(&order);
    let set = &documents(text(&files, "k8s.yaml"))[1]["spec"]["leaderWorkerTemplate"];
    let words = |role: &str, key: &str| strings(&set[role]["spec"]["containers"][0][key]);
    let leader = words("leaderTemplate", "args");
    assert_eq!(leader[..2], ["vllm", "serve"]);
    assert_eq!(leader[2..], server.words(true));
    let worker = words("workerTemplate", "command");
    assert!(
        worker[2].contains("ray start --address=$(LWS_LEADER_ADDRESS):6379 --block"),
        "{worker:?}"
    );
    // An image from before 0.19 has Ray.
    order.image = None;
    order.deployment = Deployment {
        engine_version: Some("0.11.0".to_owned()),
        ..order.deployment
    };
    assert!(made(&order).1.iter().any(|f| f.name == "k8s.yaml"));
}

#[test]
fn rays_data_parallel_ranks_are_whole_on_a_node() {
    let mut order = two_machines();
    order.executor = Executor::Ray;
    order.deployment.pipeline_parallel_size = None;
    order.deployment.data_parallel_size = Some(2);
    order.deployment.enable_expert_parallel = true;
    order.deployment.gpu = Some("h200".to_owned());
    let (server, _) = made(&order);
    let words = server.words(false).join(" ");
    assert!(
        words.contains("--data-parallel-backend ray --data-parallel-size-local 1"),
        "{words}"
    );
    order.gpus_per_node = Some(4);
    let e = generate(&order).unwrap_err();
    assert!(
        e.hints()[0].contains("data-parallel replica is on one machine"),
        "{e:?}"
    );
    order.executor = Executor::Own;
    assert_eq!(made(&order).0.nodes.unwrap().count, 4);
    order.executor = Executor::Ray;
    order.gpus_per_node = Some(64);
    assert!(generate(&order).unwrap_err().to_string().contains("are on one"));
    order.deployment.engine = Some("sglang".to_owned());
    assert!(
        generate(&order)
            .unwrap_err()
            .to_string()
            .contains("is a way of vLLM")
    );
}

#[test]
fn a_hostile_path_stays_one_word_on_every_machine() {
    let root = tempfile::tempdir().unwrap();
    let mut order = order(&hostile_folder(root.path()), "l4");
    order.deployment.tensor_parallel_size = Some(2);
    order.deployment.max_model_len = Some("8k".to_owned());
    order.gpus_per_node = Some(1);
    let (server, files) = made(&order);
    let set = &documents(text(&files, "k8s.yaml"))[0]["spec"]["leaderWorkerTemplate"];
    let args: Vec<String> = strings(&set["workerTemplate"]["spec"]["containers"][0]["args"])
        .iter()
        .map(|w| w.replace("$$", "$"))
        .collect();
    assert_eq!(args[..server.words(true).len()], server.words(true));
    let command = server.command(Role::Worker, Places::KUBERNETES);
    assert_eq!(command.words[0], Word::Plain("/model".to_owned()));
}

#[cfg(unix)]
#[test]
fn a_shell_starts_the_head_or_joins_it() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    for name in ["vllm", "ray", "docker"] {
        let stand_in = root.path().join(name);
        fs::write(&stand_in, format!("#!/bin/sh\nprintf '{name} %s\\n' \"$*\"\n")).unwrap();
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let said = |files: &[BundleFile], name: &str, rank: &str| {
        let file = root.path().join(name);
        fs::write(&file, text(files, name)).unwrap();
        let output = std::process::Command::new("/bin/sh")
            .arg(&file)
            .env("PATH", format!("{}:/bin:/usr/bin", root.path().display()))
            .env("HOME", root.path())
            .env("NODE_RANK", rank)
            .env("HEAD_ADDRESS", "10.0.0.1")
            .env_remove("VLLM_HOST_IP")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (_, files) = made(&two_machines());
    assert!(said(&files, "serve_command.sh", "0").ends_with("--node-rank 0 --master-addr 10.0.0.1\n"));
    assert!(
        said(&files, "serve_command.sh", "1").ends_with("--node-rank 1 --master-addr 10.0.0.1 --headless\n")
    );
    assert!(
        said(&files, "docker_command.sh", "1").ends_with("--node-rank 1 --master-addr 10.0.0.1 --headless\n")
    );
    let mut order = two_machines();
    order.executor = Executor::Ray;
    order.image = Some("registry.local/vllm-ray:0.32".to_owned());
    let (_, files) = made(&order);
    let head = said(&files, "serve_command.sh", "0");
    assert!(
        head.starts_with("ray start --head --port=6379 --num-gpus=8\nvllm serve deepseek"),
        "{head}"
    );
    let other = said(&files, "serve_command.sh", "1");
    assert_eq!(other, "ray start --address=10.0.0.1:6379 --num-gpus=8 --block\n");
    let head = said(&files, "docker_command.sh", "0");
    assert!(head.contains("--entrypoint sh registry.local/vllm-ray:0.32 -c ray start --head --port=6379 && exec \"$@\" sh vllm serve deepseek"), "{head}");
    let other = said(&files, "docker_command.sh", "1");
    assert!(other.ends_with("do sleep 5; done 10.0.0.1\n"), "{other}");
}
