//! What HTTP allows, and what servers and proxies between make of it.

use super::*;

/// A hub that answers requests for parts of tensor files in its own way.
fn parts(change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> TestHub {
    TestHub::start(move |asked| {
        let reply = sharded().answer(asked);
        if asked.range.is_some() {
            change(reply)
        } else {
            reply
        }
    })
}

/// A hub that answers for `config.json` in its own way.
fn configuration(change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> TestHub {
    TestHub::start(move |asked| {
        let reply = sharded().answer(asked);
        if asked.path.ends_with("/config.json") {
            change(reply)
        } else {
            reply
        }
    })
}

#[test]
fn a_file_without_the_bytes_asked_for_is_said_to_end_early() {
    let e = refuses(
        &parts(|_| Reply::new(416, "").with("Content-Range", "bytes */0")),
        "HTTP status 416",
    );
    assert!(e.to_string().contains("model-0000"), "{e}");
    assert!(e.to_string().contains("ends before the bytes"), "{e}");
}

#[test]
fn a_part_that_was_compressed_on_the_way_is_not_taken_for_the_file() {
    let coded = |coding: &'static str| parts(move |reply| reply.with("Content-Encoding", coding));
    let e = refuses(&coded("br"), "compressed");
    assert_eq!(e.kind(), ErrorKind::Io);
    refuses(&coded("gzip"), "decompression failed");
}

#[test]
fn a_time_to_wait_that_is_a_date_or_absurd_ends_in_time() {
    let busy = |wait: &'static str| TestHub::start(move |_| Reply::new(503, "").with("Retry-After", wait));
    let before = Instant::now();
    for date in ["Wed, 21 Oct 2037 07:28:00 GMT", "soon", "-5", ""] {
        let hub = busy(date);
        refuses(&hub, "HTTP status 503");
        assert_eq!(hub.asked().len(), 3, "{date:?}");
    }
    let hub = busy("18446744073709551615");
    refuses(&hub, "asks to wait 18446744073709551615 s");
    assert_eq!(hub.asked().len(), 1);
    assert!(before.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_configuration_that_is_cut_or_lies_about_its_length_is_named() {
    // Less than the file: what came is no JSON.
    let hub = configuration(|mut reply| {
        reply.claimed = Some(10);
        reply
    });
    let e = refuses(&hub, "not valid JSON");
    assert!(e.to_string().contains("config.json"), "{e}");
    // More than the file: the connection ends first, each time.
    let hub = configuration(|mut reply| {
        reply.claimed = Some(1 << 20);
        reply
    });
    let e = refuses(&hub, "broke off");
    assert!(e.to_string().contains("config.json"), "{e}");
    let asked = hub
        .asked()
        .iter()
        .filter(|a| a.path.ends_with("/config.json"))
        .count();
    assert_eq!(asked, 3);
    // More than is ever read: nothing is read at all.
    let hub = configuration(|mut reply| {
        reply.claimed = Some(1 << 40);
        reply
    });
    refuses(&hub, "longer than the 67108864 bytes");
}

#[test]
fn a_connection_that_breaks_once_is_tried_again() {
    let count = AtomicUsize::new(0);
    let hub = TestHub::start(move |asked| {
        let mut reply = sharded().answer(asked);
        if asked.path.ends_with("/config.json") && count.fetch_add(1, Ordering::SeqCst) == 0 {
            reply.claimed = Some(reply.body.len() as u64 + 1);
        }
        reply
    });
    assert_eq!(ask(&hub).unwrap().config.u64("hidden_size").unwrap(), Some(64));
}

#[test]
fn a_mirror_below_a_path_is_asked_there_and_gets_the_token() {
    let hub = TestHub::start(|asked| {
        let Some(path) = asked.path.strip_prefix("/mirrors/hf") else {
            return Reply::new(404, "");
        };
        sharded().answer(&Asked {
            path: path.to_owned(),
            ..asked.clone()
        })
    });
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&format!("{}/mirrors/hf", hub.url), cache.path());
    settings.token = Token::new("hf_secret", "test").unwrap();
    let model = find(&id("org/name"), None, &settings, &quiet).unwrap();
    assert_eq!(model.checkpoint.unwrap().total_bytes().unwrap(), 12 << 30);
    assert!(
        hub.asked()
            .iter()
            .all(|a| a.authorization.as_deref() == Some("Bearer hf_secret"))
    );
}

#[test]
fn the_token_stays_behind_also_where_a_redirect_comes_back_by_another_name() {
    // The same machine under another name is another host.
    let hub = TestHub::start(|asked| sharded().answer(asked));
    let port = hub.url.rsplit(':').next().unwrap().to_owned();
    let front = TestHub::start(move |asked| {
        Reply::new(307, "").with("Location", format!("http://localhost:{port}{}", asked.path))
    });
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&front.url, cache.path());
    settings.token = Token::new("hf_secret", "test").unwrap();
    find(&id("org/name"), None, &settings, &quiet).unwrap();
    assert!(front.asked().iter().all(|a| a.authorization.is_some()));
    assert!(!hub.asked().is_empty() && hub.asked().iter().all(|a| a.authorization.is_none()));
}
