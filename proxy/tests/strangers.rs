//! Whatever a stranger sends: nothing panics, and what is let through is read the same way by another parser.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use sluice_proxy::detect;
use sluice_proxy::http1::body::Pump;
use sluice_proxy::http1::head::{Changes, Framing, RequestHead, ResponseHead, find_end};
use std::sync::atomic::AtomicU64;

/// Pieces that requests are made of, and that smugglers make them of.
const PIECES: [&str; 34] = [
    "GET ",
    "POST ",
    "/",
    "/a",
    "*",
    "http://a/",
    "?q",
    " HTTP/1.1",
    " HTTP/1.0",
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "Host: a",
    "host:b",
    "Content-Length: 5",
    "Content-Length: 0",
    "content-length:7",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Connection: close",
    "Connection: Upgrade",
    "Upgrade: h2c",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "traceparent: x",
    " ",
    "\t",
    ":",
    ",",
    "\0",
    "5\r\nhello\r\n",
    "0\r\n",
    "HTTP/1.1 200 OK",
];

fn message() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        20 => prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    let noise = prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat());
    let request = prop::collection::vec(prop::sample::select(&PIECES[13..26]), 0..6).prop_map(|fields| {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        format!("POST /a/../b?q HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    });
    prop_oneof![noise, request]
}

/// The body's length as a second reader finds it in the bytes that go on.
fn second_reading(head: &[u8]) -> Option<Framing> {
    let mut slots = [httparse::EMPTY_HEADER; 200];
    let mut request = httparse::Request::new(&mut slots);
    if !request.parse(head).ok()?.is_complete() {
        return None;
    }
    let mut framing = Framing::Empty;
    for field in request.headers {
        let value = std::str::from_utf8(field.value).ok()?;
        if field.name.eq_ignore_ascii_case("content-length") {
            // Two of them, or one beside the other header: no two readers need agree.
            if framing != Framing::Empty {
                return None;
            }
            framing = Framing::Length(value.parse().ok()?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if framing != Framing::Empty || !value.eq_ignore_ascii_case("chunked") {
                return None;
            }
            framing = Framing::Chunked;
        }
    }
    Some(if framing == Framing::Length(0) { Framing::Empty } else { framing })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_on_has_one_reading(bytes in message()) {
        let _ = detect::detect(&bytes);
        if let Ok(Some(end)) = find_end(&bytes, 0)
            && let Ok(head) = RequestHead::parse(&bytes[..end])
        {
            let changed = Changes { path: Some("/new".to_owned()), traceparent: Some("t".to_owned()) };
            for changes in [Changes::default(), changed] {
                let on = head.forward(&changes);
                prop_assert_eq!(second_reading(&on), Some(head.framing), "{:?}", on);
                let again = RequestHead::parse(&on).expect("what goes on is fit to go on");
                prop_assert_eq!(&again.said.host, &head.said.host);
                prop_assert_eq!(&again.said.method, &head.said.method);
                let path = if changes.path.is_some() { "/new" } else { &head.said.path };
                prop_assert_eq!(&again.said.path, path);
            }
        }
    }

    #[test]
    fn an_answer_is_read_or_refused(bytes in message(), to_head in any::<bool>()) {
        if let Ok(Some(end)) = find_end(&bytes, 0)
            && let Ok(head) = ResponseHead::parse(&bytes[..end], to_head)
        {
            let closing = head.forward(true);
            let again = ResponseHead::parse(&closing, to_head).expect("what goes on is fit to go on");
            prop_assert!(again.close);
            prop_assert_eq!(again.status, head.status);
        }
    }

    #[test]
    fn a_body_of_chunks_is_written_so_that_it_reads_the_same(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut sent = Vec::new();
        for chunk in &chunks {
            sent.extend_from_slice(format!("{:X};e=\"x\"\r\n", chunk.len()).as_bytes());
            sent.extend_from_slice(chunk);
            sent.extend_from_slice(b"\r\n");
        }
        sent.extend_from_slice(b"0\r\n\r\n");
        if let Some((at, byte)) = noise {
            let at = at.index(sent.len());
            sent[at] = byte;
        }
        let (ok, out) = pump(&sent);
        if noise.is_none() {
            prop_assert!(ok);
        }
        if ok {
            let (again, twice) = pump(&out);
            prop_assert!(again, "what goes on is whole: {:?}", out);
            prop_assert_eq!(twice, out, "and is its own canonical form");
        } else {
            prop_assert!(!out.ends_with(b"0\r\n\r\n") || !pump(&out).0, "a broken body must not look whole");
        }
    }
}

fn pump(mut bytes: &[u8]) -> (bool, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut out = Vec::new();
    let (mut buf, count) = (BytesMut::new(), AtomicU64::new(0));
    let mut pump = Pump::new(&mut bytes, &mut buf, &mut out, &count, Bytes::new());
    let ok = runtime.block_on(pump.run(Framing::Chunked)).is_ok();
    (ok, out)
}
