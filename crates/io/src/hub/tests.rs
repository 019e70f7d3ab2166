use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvwise_core::ErrorKind;

use super::test_hub::{Asked, Reply, Repo, SHA, Stored, TestHub, safetensors};
use super::*;
use crate::model::{self, Place};

mod gguf;
mod http;

/// Waits that suit tests.
const QUICK: Limits = Limits {
    silence: Duration::from_millis(400),
    answer: Duration::from_secs(5),
    pause: Duration::from_millis(1),
    longest_pause: Duration::from_secs(1),
    attempts: 3,
};

fn settings(url: &str, cache: &Path) -> Settings {
    Settings {
        endpoint: url.to_owned(),
        token: None,
        hub_cache: Some(cache.join("hf")),
        cache: Some(cache.join("kvwise")),
        offline: None,
        limits: QUICK,
    }
}

fn id(text: &str) -> RepoId {
    RepoId::parse(text).unwrap()
}

fn quiet(_: &str, _: usize, _: usize) {}

/// Asks `hub` for `org/name` with a fresh cache.
fn ask(hub: &TestHub) -> Result<HubModel> {
    let cache = tempfile::tempdir().unwrap();
    find(&id("org/name"), None, &settings(&hub.url, cache.path()), &quiet)
}

#[track_caller]
fn refuses(hub: &TestHub, says: &str) -> Error {
    let e = ask(hub).unwrap_err();
    assert!(format!("{e:?}").contains(says), "expected \"{says}\" in {e:?}");
    e
}

fn sharded() -> Repo {
    Repo::llama("org/name")
        .tensors(
            "model-00001-of-00002.safetensors",
            &[("a", 1 << 30), ("b", 2 << 30)],
        )
        .tensors("model-00002-of-00002.safetensors", &[("c", 3 << 30)])
        .index(&[
            ("a", "model-00001-of-00002.safetensors"),
            ("b", "model-00001-of-00002.safetensors"),
            ("c", "model-00002-of-00002.safetensors"),
        ])
}

#[test]
fn a_sharded_model_costs_its_headers_and_the_second_time_no_network() {
    let hub = TestHub::start(|asked| sharded().answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub.url, cache.path());
    let seen = AtomicUsize::new(0);
    let model = find(&id("org/name"), None, &settings, &|what, done, of| {
        if what == "tensor headers" {
            seen.fetch_max(done, Ordering::SeqCst);
            assert_eq!(of, 2);
        }
    })
    .unwrap();
    assert_eq!(model.origin.taken, Taken::Network);
    assert_eq!(model.origin.commit, SHA);
    assert_eq!(model.config.u64("hidden_size").unwrap(), Some(64));
    assert_eq!(
        model.checkpoint.as_ref().unwrap().total_bytes().unwrap(),
        12 << 30
    );
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!(hub.asked().len(), 5, "{:?}", hub.asked());
    assert!(hub.sent_bytes() < 2 * (128 << 10) + 4096, "{}", hub.sent_bytes());

    let again = find(&id("org/name"), None, &settings, &quiet).unwrap();
    assert_eq!(again.origin.taken, Taken::OwnCache);
    assert_eq!(
        (&again.config, &again.checkpoint),
        (&model.config, &model.checkpoint)
    );
    let pinned = find(
        &id("org/name"),
        Some(SHA),
        &settings.clone().offline_because("--offline"),
        &quiet,
    )
    .unwrap();
    assert_eq!(pinned.checkpoint, model.checkpoint);
    assert_eq!(hub.asked().len(), 5, "the network was asked again");
}

#[test]
fn a_header_longer_than_the_first_request_is_fetched_in_two_and_one_file_needs_no_index() {
    let names: Vec<String> = (0..5000).map(|i| format!("model.layers.{i}.weight")).collect();
    let tensors: Vec<(&str, u64)> = names.iter().map(|n| (n.as_str(), 10)).collect();
    let (start, _) = safetensors(&tensors);
    assert!(start.len() > 300_000);
    let repo = Repo::llama("org/name").tensors("model.safetensors", &tensors);
    let hub = TestHub::start(move |asked| repo.answer(asked));
    let model = ask(&hub).unwrap();
    assert_eq!(model.checkpoint.unwrap().total_bytes().unwrap(), 100_000);
    let ranges: Vec<_> = hub.asked().into_iter().filter_map(|a| a.range).collect();
    assert_eq!(
        ranges,
        [(0, (128 << 10) - 1), (128 << 10, start.len() as u64 - 1)]
    );
}

#[test]
fn many_files_are_fetched_at_once_and_add_up() {
    let mut repo = Repo::llama("org/name");
    for i in 0..40_u32 {
        let name = format!("model-{i:05}-of-00040.safetensors");
        repo = repo.tensors(&name, &[(format!("t{i}").as_str(), 1000)]);
    }
    let hub = TestHub::start(move |asked| repo.answer(asked));
    let model = ask(&hub).unwrap();
    assert_eq!(model.checkpoint.unwrap().total_bytes().unwrap(), 40 * 2000);
}

#[test]
fn the_token_goes_to_the_hub_and_never_to_where_it_redirects() {
    let store = TestHub::start(|asked| {
        let name = asked.path.rsplit('/').next().unwrap_or_default();
        let path = format!("/org/name/resolve/{SHA}/{name}");
        sharded().answer(&Asked {
            path,
            ..asked.clone()
        })
    });
    let elsewhere = store.url.clone();
    let hub = TestHub::start(move |asked| {
        let name = asked.path.rsplit('/').next().unwrap_or_default().to_owned();
        if name.ends_with(".safetensors") {
            return Reply::new(302, "").with("Location", format!("{elsewhere}/cdn/{name}"));
        }
        // what the hub does for small files, and for models that were renamed: a relative redirect
        if let Some(rest) = asked.path.strip_prefix("/org/name/resolve/") {
            return Reply::new(307, "").with("Location", format!("/api/resolve-cache/{rest}"));
        }
        let path = asked.path.replace("/api/resolve-cache/", "/org/name/resolve/");
        sharded().answer(&Asked {
            path,
            ..asked.clone()
        })
    });
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&hub.url, cache.path());
    settings.token = Token::new("hf_secret", "test").unwrap();
    let model = find(&id("org/name"), None, &settings, &quiet).unwrap();
    assert_eq!(model.checkpoint.unwrap().total_bytes().unwrap(), 12 << 30);
    assert!(
        hub.asked()
            .iter()
            .all(|a| a.authorization.as_deref() == Some("Bearer hf_secret"))
    );
    assert_eq!(store.asked().len(), 2);
    assert!(
        store
            .asked()
            .iter()
            .all(|a| a.authorization.is_none() && a.range.is_some())
    );
}

#[test]
fn redirects_in_a_circle_and_to_nowhere_end() {
    let hub = TestHub::start(|_| Reply::new(302, "").with("Location", "/round"));
    refuses(&hub, "more than 6 redirects");
    assert_eq!(hub.asked().len(), 7);
    let hub = TestHub::start(|_| Reply::new(302, "").with("Location", "ftp://x/y"));
    refuses(&hub, "\"ftp://x/y\" cannot be followed");
    let hub = TestHub::start(|_| Reply::new(302, ""));
    refuses(&hub, "cannot be followed");
}

#[test]
fn a_server_that_ignores_ranges_is_not_read_beyond_the_header() {
    let repo = Repo::llama("org/name").tensors("model.safetensors", &[("a", 1 << 30)]);
    let hub = TestHub::start(move |asked| {
        repo.answer(&Asked {
            range: None,
            ..asked.clone()
        })
    });
    let model = ask(&hub).unwrap();
    assert_eq!(model.checkpoint.unwrap().total_bytes().unwrap(), 2 << 30);
    // the sockets' buffers take some megabytes before the server notices that nobody reads
    assert!(hub.sent_bytes() < 64 << 20, "{}", hub.sent_bytes());
}

#[test]
fn refusals_are_explained_with_what_to_do() {
    let with = |status: u16, code: &'static str, message: &'static str| {
        TestHub::start(move |_| {
            let mut reply = Reply::new(status, "{}");
            for (name, value) in [("X-Error-Code", code), ("X-Error-Message", message)] {
                if !value.is_empty() {
                    reply = reply.with(name, value);
                }
            }
            reply
        })
    };
    for (status, code) in [(401, "GatedRepo"), (403, "GatedRepo")] {
        let hub = with(status, code, "Access to model org/name is restricted.");
        let e = refuses(&hub, "is gated");
        assert!(format!("{e:?}").contains("then set HF_TOKEN"), "{e:?}");
        assert_eq!(hub.asked().len(), 1, "asked again in vain");
    }
    let e = refuses(&with(401, "", "Invalid username or password."), "or is private");
    assert_eq!(e.kind(), ErrorKind::NotFound);
    refuses(
        &with(404, "RepoNotFound", "Repository not found"),
        "org/name is not on http://127",
    );
    refuses(&with(404, "RevisionNotFound", ""), "no revision \"main\"");
    refuses(
        &with(401, "", "Invalid credentials in Authorization header"),
        "refuses the token",
    );
    refuses(&with(403, "", ""), "HTTP status 403");
    refuses(&with(418, "", ""), "HTTP status 418");

    let hub = with(403, "GatedRepo", "");
    let cache = tempfile::tempdir().unwrap();
    let mut with_token = settings(&hub.url, cache.path());
    with_token.token = Token::new("hf_x", "test").unwrap();
    let e = find(&id("org/name"), None, &with_token, &quiet).unwrap_err();
    assert!(
        format!("{e:?}").contains("the account of your token has no access"),
        "{e:?}"
    );
}

#[test]
fn a_gated_model_is_gated_also_where_only_its_files_are() {
    let hub = TestHub::start(|asked| {
        if asked.path.contains("/resolve/") {
            Reply::new(401, "").with("X-Error-Code", "GatedRepo")
        } else {
            sharded().answer(asked)
        }
    });
    let e = refuses(&hub, "is gated");
    assert!(format!("{e:?}").contains("/org/name, then set HF_TOKEN"), "{e:?}");
}

#[test]
fn a_busy_hub_is_asked_again_a_bounded_number_of_times() {
    let count = AtomicUsize::new(0);
    let hub = TestHub::start(move |asked| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, "").with("Retry-After", "0"),
        1 => Reply::new(503, ""),
        _ => sharded().answer(asked),
    });
    assert!(ask(&hub).is_ok());
    let hub = TestHub::start(|_| Reply::new(500, ""));
    refuses(&hub, "HTTP status 500");
    assert_eq!(hub.asked().len(), 3);
    let hub = TestHub::start(|_| Reply::new(429, "").with("Retry-After", "3600"));
    let before = Instant::now();
    refuses(&hub, "asks to wait 3600 s");
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(hub.asked().len(), 1);
}

#[test]
fn silence_and_dripping_end_in_time() {
    let hub = TestHub::start(|_| {
        let mut reply = Reply::new(200, "{}");
        reply.late = Duration::from_secs(20);
        reply
    });
    let before = Instant::now();
    refuses(&hub, "no answer in time");
    assert!(before.elapsed() < Duration::from_secs(5));

    // one byte again and again is no silence, but the whole answer has its limit too
    let hub = TestHub::start(|_| {
        let mut reply = Reply::new(200, vec![b' '; 100_000]);
        reply.drip = Duration::from_millis(20);
        reply
    });
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&hub.url, cache.path());
    settings.limits.answer = Duration::from_millis(300);
    settings.limits.attempts = 1;
    let e = find(&id("org/name"), None, &settings, &quiet).unwrap_err();
    assert!(e.to_string().contains("broke off"), "{e}");
    assert!(before.elapsed() < Duration::from_secs(8));
}

#[test]
fn lies_about_lengths_are_found_out() {
    let lying = |change: fn(Reply) -> Reply| {
        TestHub::start(move |asked| {
            let reply = sharded().answer(asked);
            if asked.range.is_some() {
                change(reply)
            } else {
                reply
            }
        })
    };
    let range = |text: &'static str| {
        TestHub::start(move |asked| {
            let mut reply = sharded().answer(asked);
            for (name, value) in &mut reply.headers {
                if name == "Content-Range" {
                    text.clone_into(value);
                }
            }
            reply
        })
    };
    for text in [
        "",
        "bytes 5-9/100",
        "bytes 0-99999999999/100",
        "bytes 10-5/100",
        "x",
    ] {
        refuses(&range(text), "Content-Range is");
    }
    refuses(&range("bytes 0-0/1000000"), "only 1 came");
    // claims more than it sends
    refuses(
        &lying(|mut r| {
            r.zeros = 0;
            r.claimed = Some(128 << 10);
            r.body.truncate(10);
            r
        }),
        "broke off",
    );
    // a file that is shorter than its header says
    let of_bytes = |bytes: Vec<u8>| {
        TestHub::start(move |asked| {
            Repo::llama("org/name")
                .file("model.safetensors", bytes.clone())
                .answer(asked)
        })
    };
    refuses(&of_bytes(b"short".to_vec()), "shorter than the 8 bytes");
    refuses(&of_bytes(u64::MAX.to_le_bytes().to_vec()), "claims a header");
    refuses(&of_bytes([&99_u64.to_le_bytes()[..], b"{}"].concat()), "cut off");
    refuses(
        &of_bytes([&5_u64.to_le_bytes()[..], b"{\"a\":"].concat()),
        "cannot be read",
    );
}

#[test]
fn a_huge_header_is_refused_without_being_fetched() {
    let mut repo = Repo::llama("org/name");
    let mut start = 200_000_000_u64.to_le_bytes().to_vec();
    start.push(b'{');
    repo = repo.file("model.safetensors", start);
    repo.files.get_mut("model.safetensors").unwrap().zeros = 1 << 40;
    let hub = TestHub::start(move |asked| repo.answer(asked));
    refuses(&hub, "claims a header of 200000000 bytes");
    assert!(hub.sent_bytes() < 1 << 20);
}

#[test]
fn an_answer_without_end_is_cut() {
    let hub = TestHub::start(|asked| {
        let mut reply = sharded().answer(asked);
        if asked.path.ends_with("config.json") {
            reply.zeros = 1 << 40;
        }
        reply
    });
    refuses(&hub, "longer than the 67108864 bytes");
    assert!(hub.sent_bytes() < 64 << 20);
}

#[test]
fn what_is_no_hub_is_said_to_be_none() {
    refuses(
        &TestHub::start(|_| Reply::new(200, "<html>")),
        "not what a hub says",
    );
    refuses(
        &TestHub::start(|_| Reply::new(200, r#"{"sha":"../../etc"}"#)),
        "is not a commit",
    );
    for (files, says) in [
        (&["m.gguf"][..], "GGUF"),
        (&["adapter_config.json"], "adapter"),
        (&["model_index.json"], "diffusion"),
        (&["params.json"], "params.json"),
        (&[], "is it a model"),
    ] {
        let mut repo = Repo::new("org/name");
        for name in files {
            repo = repo.file(name, "{}");
        }
        refuses(&TestHub::start(move |asked| repo.answer(asked)), says);
    }
    let broken = Repo::new("org/name").file("config.json", "[1]");
    refuses(
        &TestHub::start(move |asked| broken.answer(asked)),
        "not an object",
    );
}

#[test]
fn files_with_hostile_names_are_not_touched() {
    let repo = Repo::llama("org/name")
        .tensors("../../evil.safetensors", &[("a", 1)])
        .tensors("sub/model.safetensors", &[("b", 1)]);
    let hub = TestHub::start(move |asked| repo.answer(asked));
    let model = ask(&hub).unwrap();
    assert_eq!(model.checkpoint, None);
    assert_eq!(model.origin.notes.len(), 1);
    assert_eq!(hub.asked().len(), 2);

    let repo = Repo::llama("org/name").index(&[("a", "../../../../tmp/evil.safetensors")]);
    refuses(
        &TestHub::start(move |asked| repo.answer(asked)),
        "not the name of a file",
    );
}

#[test]
fn the_hubs_own_cache_comes_before_the_network_and_offline_needs_a_cache() {
    let hub = TestHub::start(|asked| sharded().answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub.url, cache.path()).offline_because("HF_HUB_OFFLINE");
    let e = find(&id("org/name"), Some("v1"), &settings, &quiet).unwrap_err();
    let text = format!("{e:?}");
    assert!(
        text.contains("at revision v1") && text.contains("HF_HUB_OFFLINE forbids"),
        "{text}"
    );
    assert!(text.contains(cache.path().to_str().unwrap()), "{text}");

    let folder = cache.path().join("hf/models--org--name");
    let snapshot = folder.join("snapshots").join(SHA);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), SHA).unwrap();
    fs::write(snapshot.join("config.json"), r#"{"hidden_size": 7}"#).unwrap();
    let model = find(&id("org/name"), None, &settings, &quiet).unwrap();
    assert_eq!(model.origin.taken, Taken::HubCache);
    assert_eq!(model.config.u64("hidden_size").unwrap(), Some(7));
    assert_eq!(model.checkpoint, None);
    assert!(hub.asked().is_empty());
}

#[test]
fn an_unfinished_snapshot_is_fetched_anew_and_a_broken_one_named() {
    let hub = TestHub::start(|asked| sharded().answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub.url, cache.path());
    find(&id("org/name"), None, &settings, &quiet).unwrap();
    let folder = settings
        .own_cache()
        .unwrap()
        .join("models--org--name/snapshots")
        .join(SHA);
    let manifest = folder.join("snapshot.json");
    fs::remove_file(&manifest).unwrap();
    let model = find(&id("org/name"), None, &settings, &quiet).unwrap();
    assert_eq!(model.origin.taken, Taken::Network);
    assert!(
        !fs::read_dir(&folder)
            .unwrap()
            .any(|f| { f.unwrap().file_name().to_string_lossy().ends_with(".tmp") })
    );
    for (text, says) in [
        ("{", "not a stored snapshot"),
        (
            r#"{"schema":"kvwise.hub/9","id":"org/name","commit":"x","tensor_files":{},"notes":[]}"#,
            "kvwise.hub/9",
        ),
    ] {
        fs::write(&manifest, text).unwrap();
        let e = find(&id("org/name"), None, &settings, &quiet).unwrap_err();
        assert!(
            format!("{e:?}").contains(says) && format!("{e:?}").contains("remove the folder"),
            "{e:?}"
        );
    }
}

#[test]
fn revisions_are_asked_for_by_name_and_nonsense_is_refused() {
    let hub = TestHub::start(|asked| sharded().answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub.url, cache.path());
    let model = find(&id("org/name"), Some("refs/pr/1"), &settings, &quiet).unwrap();
    assert_eq!(model.origin.revision, "refs/pr/1");
    assert_eq!(hub.asked()[0].path, "/api/models/org/name/revision/refs%2Fpr%2F1");
    // another name of the same commit costs one question
    let before = hub.asked().len();
    let model = find(&id("org/name"), Some("v1.0"), &settings, &quiet).unwrap();
    assert_eq!(
        (model.origin.taken, hub.asked().len()),
        (Taken::OwnCache, before + 1)
    );
    for bad in ["", "../main", "a b", "a//b", "/a", "x?y", ".hidden"] {
        let e = find(&id("org/name"), Some(bad), &settings, &quiet).unwrap_err();
        assert!(e.to_string().contains("--revision"), "{bad}: {e}");
    }
}

#[test]
fn a_quantisation_file_beside_the_configuration_is_fetched_and_counts() {
    let second = r#"{"producer":{"name":"modelopt"},"quantization":{"quant_algo":"FP8"}}"#;
    let repo = Repo::llama("org/name").file("hf_quant_config.json", second);
    let hub = TestHub::start(move |asked| repo.answer(asked));
    let config = ask(&hub).unwrap().config;
    let method = config
        .get("quantization_config")
        .and_then(|q| q.get("quant_method"));
    assert_eq!(method.and_then(|m| m.as_str()), Some("modelopt"));
}

#[test]
fn a_name_is_looked_for_in_files_catalogue_caches_and_hub_in_this_order() {
    let hub = TestHub::start(|asked| sharded().answer(asked));
    let cache = tempfile::tempdir().unwrap();
    let online = settings(&hub.url, cache.path());
    let find = |name: &str, revision: Option<&str>| model::find_anywhere(name, revision, &online, &quiet);

    assert!(matches!(
        find("Qwen/Qwen3-32B", Some("main")).unwrap().place,
        Place::Catalogue(_)
    ));
    assert!(find("qwen3-32", None).unwrap_err().hints()[0].contains("Qwen/Qwen3-32B"));
    assert!(hub.asked().is_empty(), "a short name went to the network");
    let found = find("org/name", None).unwrap();
    assert!(matches!(&found.place, Place::Hub(origin) if origin.taken == Taken::Network));
    assert_eq!(found.name, "org/name");

    // a pinned revision of a catalogue model: the hub says that there is none
    let e = find("Qwen/Qwen3-32B", Some("v9")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    // and where the hub cannot be asked, the catalogue stands in and says so
    let offline = online.clone().offline_because("--offline");
    let found = model::find_anywhere("Qwen/Qwen3-32B", Some("v9"), &offline, &quiet).unwrap();
    assert!(matches!(found.place, Place::Catalogue(_)));
    assert!(
        found.notes[0].contains("v9") && found.notes[0].contains("--offline"),
        "{:?}",
        found.notes
    );
    let nobody = settings("http://127.0.0.1:9", cache.path());
    let found = model::find_anywhere("Qwen/Qwen3-32B", Some("v9"), &nobody, &quiet).unwrap();
    assert_eq!(found.notes.len(), 1);
}

#[test]
fn a_mistyped_name_without_network_still_gets_suggestions_at_once() {
    let cache = tempfile::tempdir().unwrap();
    let nobody = settings("http://127.0.0.1:9", cache.path());
    let before = Instant::now();
    let e = model::find_anywhere("meta-llama/Llama-3.1-8", None, &nobody, &quiet).unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(2));
    let text = format!("{e:?}");
    assert!(
        text.contains("did you mean meta-llama/") && text.contains("127.0.0.1:9"),
        "{text}"
    );
}
