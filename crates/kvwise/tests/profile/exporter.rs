use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvwise::usecase::exporter::{Export, run};
use kvwise_io::prometheus::text::{self, Page};

use crate::fake_engine::FakeEngine;

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the exporter listens");
    stream.write_all(request.as_bytes()).expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

fn metrics(address: &str) -> String {
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

fn value(page: &str, name: &str, server: &str) -> Option<f64> {
    let parsed: Page = text::parse(page).expect("a page");
    let sample = parsed
        .samples
        .iter()
        .find(|s| s.name == name && parsed.label(s, "server").is_some_and(|l| l.starts_with(server)))?;
    Some(sample.value)
}

/// Asks until the page says so.
fn wait_for(address: &str, what: &str, holds: impl Fn(&str) -> bool) -> String {
    let begin = Instant::now();
    loop {
        let page = metrics(address);
        if holds(&page) {
            return page;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{what} never came:\n{page}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_fleet_is_one_page_and_totals_go_on_over_restarts_and_failures() {
    let (good, bad) = (FakeEngine::start(), FakeEngine::start());
    bad.set(|s| s.broken = true);
    let plan = Export {
        urls: vec![good.url.clone(), bad.url.clone(), "http://127.0.0.1:9".to_owned()],
        listen: "127.0.0.1:0".to_owned(),
        duration: None,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(2),
    };
    let stop = AtomicBool::new(false);
    let (send, receive) = channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            run(&plan, &stop, &mut |address| {
                send.send(address.to_owned()).expect("told");
            })
        });
        let address = receive.recv_timeout(Duration::from_secs(10)).expect("it listens");
        let total = "kvwise_generation_tokens_total";
        let page = wait_for(&address, "a first scrape", |p| {
            value(p, total, &good.url) == Some(1000.0)
        });
        assert_eq!(value(&page, "kvwise_server_up", &good.url), Some(1.0));
        assert_eq!(value(&page, "kvwise_kv_usage_peak_ratio", &good.url), Some(0.5));
        wait_for(&address, "a failure", |p| {
            value(p, "kvwise_server_up", &bad.url) == Some(0.0)
        });
        wait_for(&address, "nobody", |p| {
            value(p, "kvwise_server_up", "http://127.0.0.1:9") == Some(0.0)
        });
        assert_eq!(
            value(&page, "kvwise_kv_usage_ratio", &bad.url),
            None,
            "a broken server has no figures"
        );

        good.set(|s| {
            s.start_s = 4e9;
            s.generation_tokens = 5;
        });
        let page = wait_for(&address, "the restart", |p| {
            value(p, "kvwise_restarts_total", &good.url) == Some(1.0)
        });
        assert_eq!(value(&page, total, &good.url), Some(1005.0));
        bad.set(|s| s.broken = false);
        wait_for(&address, "the recovery", |p| {
            value(p, total, &bad.url) == Some(1000.0)
        });

        assert!(ask(&address, "GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(&address, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        let head = ask(&address, "HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(
            head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        // one who connects and says nothing holds nobody up
        let silent = TcpStream::connect(&address).expect("connected");
        metrics(&address);
        drop(silent);
        stop.store(true, Ordering::SeqCst);
        worker.join().expect("no panic").expect("ends well");
    });
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named() {
    for listen in ["nonsense", "127.0.0.1:99999", "203.0.113.1:1"] {
        let plan = Export {
            urls: vec!["http://127.0.0.1:9".to_owned()],
            listen: listen.to_owned(),
            duration: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
        };
        let e = run(&plan, &AtomicBool::new(false), &mut |_| {}).expect_err("must fail");
        assert!(e.to_string().contains(listen), "{e}");
    }
}
