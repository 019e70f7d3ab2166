use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kvwise_io::kv_events::content::Content;
use kvwise_io::kv_events::subscribe::{Arrival, Subscription};
use kvwise_io::kv_events::zmtp::{Connection, parse_endpoint};

/// The server's half of a ZMTP 3.0 handshake, then the first frame that the client sends.
fn accept(listener: &TcpListener, kind: &[u8]) -> TcpStream {
    let (mut stream, _) = listener.accept().expect("a client");
    let mut greeting = [0_u8; 64];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!((greeting[0], greeting[9], greeting[10]), (0xff, 0x7f, 3));
    stream.write_all(&greeting).expect("sent");
    let ready = read_frame(&mut stream);
    assert!(ready.starts_with(b"\x05READY"));
    let mut body = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    body.push(u8::try_from(kind.len()).expect("short"));
    body.extend_from_slice(kind);
    let mut frame = vec![4, u8::try_from(body.len()).expect("short")];
    frame.extend_from_slice(&body);
    stream.write_all(&frame).expect("sent");
    stream
}

fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0_u8; 2];
    stream.read_exact(&mut head).expect("a frame");
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body).expect("a body");
    body
}

fn message(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let more = u8::from(i + 1 < parts.len());
        // the long form for every frame: as legal as the short one, and the harder one to read in pieces
        out.push(more | 2);
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// `[1.0, [{"type": "BlockStored", "block_hashes": [hash], "block_size": 16}]]` in msgpack.
fn stored(hash: u8) -> Vec<u8> {
    let mut out = b"\x92\xcb\x3f\xf0\0\0\0\0\0\0\x91\x83\xa4type\xabBlockStored\xacblock_hashes\x91".to_vec();
    out.push(hash);
    out.extend_from_slice(b"\xaablock_size\x10");
    out
}

fn published(seq: u64, hash: u8) -> Vec<u8> {
    message(&[b"", &seq.to_be_bytes(), &stored(hash)])
}

fn wait(subscription: &mut Subscription) -> Arrival {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        match subscription.poll() {
            Ok(Arrival::Nothing) | Err(_) => {}
            Ok(arrival) => return arrival,
        }
    }
    panic!("no batch in 10 s");
}

#[test]
fn missed_batches_are_replayed_in_order_and_the_connection_comes_back() {
    let live = TcpListener::bind("127.0.0.1:0").expect("bind");
    let replay = TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = format!("tcp://{}", live.local_addr().expect("address"));
    let replay_endpoint = format!("tcp://{}", replay.local_addr().expect("address"));
    let publisher = std::thread::spawn(move || {
        let mut stream = accept(&live, b"PUB");
        assert_eq!(read_frame(&mut stream), [1], "a subscription to everything");
        // in pieces, with pauses longer than one poll: a frame may arrive in parts
        let first = published(0, 1);
        stream.write_all(&first[..20]).expect("sent");
        std::thread::sleep(Duration::from_millis(300));
        stream.write_all(&first[20..]).expect("sent");
        // batches 1 and 2 are lost
        stream.write_all(&published(3, 4)).expect("sent");
        let mut asked = accept(&replay, b"ROUTER");
        assert_eq!(read_frame(&mut asked), b"");
        assert_eq!(read_frame(&mut asked), 1_u64.to_be_bytes());
        for (seq, hash) in [(1_u64, 2), (2, 3), (3, 4)] {
            let part = stored(hash);
            asked
                .write_all(&message(&[b"", b"", &seq.to_be_bytes(), &part]))
                .expect("sent");
        }
        asked
            .write_all(&message(&[b"", b"", &[0xff; 8], b""]))
            .expect("sent");
        drop(stream);
        // the subscriber comes back by itself, and the publisher counts anew
        let mut again = accept(&live, b"PUB");
        read_frame(&mut again);
        again.write_all(&published(0, 9)).expect("sent");
        std::thread::sleep(Duration::from_millis(500));
    });
    let mut subscription = Subscription::new(&endpoint, Some(&replay_endpoint)).expect("connected");
    let mut content = Content::default();
    let Arrival::Batches(first) = wait(&mut subscription) else {
        panic!("the first batch")
    };
    assert_eq!(first.len(), 1);
    let Arrival::Batches(rest) = wait(&mut subscription) else {
        panic!("replayed batches")
    };
    assert_eq!(rest.len(), 3);
    for batch in first.iter().chain(&rest) {
        content.follow(batch);
    }
    assert_eq!((content.cached(), content.totals.stored), (4, 4));
    assert!(matches!(wait(&mut subscription), Arrival::Restarted(_)));
    publisher.join().expect("the publisher's assertions");
}

#[test]
fn batches_that_nobody_keeps_are_counted_as_lost() {
    let live = TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = format!("tcp://{}", live.local_addr().expect("address"));
    std::thread::spawn(move || {
        let mut stream = accept(&live, b"PUB");
        read_frame(&mut stream);
        stream.write_all(&published(5, 1)).expect("sent");
        stream.write_all(&published(9, 2)).expect("sent");
        std::thread::sleep(Duration::from_secs(2));
    });
    let mut subscription = Subscription::new(&endpoint, None).expect("connected");
    assert!(
        matches!(wait(&mut subscription), Arrival::Batches(b) if b.len() == 1),
        "what was before is no loss"
    );
    assert!(matches!(wait(&mut subscription), Arrival::AfterLoss(3, b) if b.len() == 1));
}

#[test]
fn other_servers_and_endpoints_are_refused_by_name() {
    assert!(parse_endpoint("tcp://*:5557").is_err());
    assert!(parse_endpoint("ipc:///tmp/x").is_err());
    assert_eq!(parse_endpoint("tcp://h:5557").expect("valid"), "h:5557");
    let web = TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = format!("tcp://{}", web.local_addr().expect("address"));
    std::thread::spawn(move || {
        let (mut stream, _) = web.accept().expect("a client");
        let _ = stream.write_all(&[b'x'; 200]);
    });
    let error = Connection::open(&endpoint, "SUB", Duration::from_secs(2)).expect_err("must refuse");
    assert!(error.to_string().contains("ZeroMQ"), "{error}");
}
