//! Tests of the heads: what is refused, what goes on, and how.

use super::*;

fn request(text: &str) -> Result<RequestHead, Bad> {
    let end = find_end(text.as_bytes(), 0)?.ok_or(Bad::Malformed("not whole"))?;
    assert_eq!(end, text.len());
    RequestHead::parse(text.as_bytes())
}

/// The smuggling table: each is a request that two servers are known to read differently.
#[test]
fn refuses_what_servers_read_differently() {
    let head = |lines: &str| format!("POST /x HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 6\r\n",
        "Content-Length:\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length : 5\r\n",
        "Content Length: 5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "X: a\r\n folded: b\r\n",
        "X: a\rY: b\r\n",
        "X: a\0b\r\n",
        "X\r\n",
        ": x\r\n",
        "Host: b\r\n",
        "Connection: x-tenant\r\n",
    ] {
        assert!(matches!(request(&head(lines)), Err(Bad::Malformed(_))), "{lines:?}");
    }
    for text in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert!(matches!(request(text), Err(Bad::Malformed(_))), "{text:?}");
    }
    assert!(matches!(find_end(b"GET / HTTP/1.1\nHost: a\n\n", 0), Err(Bad::Malformed(_))), "bare line feeds");
    assert!(matches!(find_end(b"GET / HTTP/1.1\r\nX: a\nHost: a\r\n\r\n", 0), Err(Bad::Malformed(_))));
}

#[test]
fn bounds_what_it_reads() {
    assert_eq!(find_end(&vec![b'a'; HEAD_BYTES], 0), Err(Bad::TooLarge));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(TARGET_BYTES));
    assert_eq!(request(&long).map(|_| ()), Err(Bad::TargetTooLong));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(HEAD_FIELDS));
    assert_eq!(request(&many).map(|_| ()), Err(Bad::TooLarge));
}

#[test]
fn goes_on_byte_for_byte() {
    let text =
        "GET /a/../b?x=/../y HTTP/1.1\r\nhOsT: a\r\nX-Odd-CASE:  two  spaces \r\ntraceparent: old\r\n\r\n";
    let head = request(text).expect("fine");
    assert_eq!(head.said.path, "/a/../b");
    assert_eq!(head.forward(&Changes::default()), text);
    let changes = Changes { path: Some("/b".to_owned()), traceparent: Some("new".to_owned()) };
    let expected =
        "GET /b?x=/../y HTTP/1.1\r\nhOsT: a\r\nX-Odd-CASE:  two  spaces \r\ntraceparent: new\r\n\r\n";
    assert_eq!(head.forward(&changes), expected);
    let absolute = request("GET http://A:80/p?q HTTP/1.1\r\nHost: a:80\r\n\r\n").expect("fine");
    assert_eq!(absolute.said.path, "/p");
    let bare = request("GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n").expect("fine");
    assert_eq!(bare.said.path, "", "no path at all: no allow matches it");
}

#[test]
fn an_offer_of_http2_is_not_passed_on() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nX: y\r\n\r\n";
    let head = request(text).expect("fine");
    assert_eq!(head.upgrade, Upgrade::H2c);
    assert_eq!(head.forward(&Changes::default()), "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n");
    for offer in ["websocket2", "h2c, websocket", "websocket, h2c", "TLS/1.0"] {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {offer}\r\n\r\n");
        assert_eq!(request(&text).expect("fine").upgrade, Upgrade::Other, "{offer}");
    }
}

#[test]
fn knows_bodies_and_connections() {
    let framing = |lines: &str| {
        let head = request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")).expect("fine");
        (head.framing, head.close)
    };
    assert_eq!(framing(""), (Framing::Empty, false));
    assert_eq!(framing("Content-Length: 12\r\n"), (Framing::Length(12), false));
    assert_eq!(framing("transfer-encoding: chunked\r\nconnection: Close\r\n"), (Framing::Chunked, true));
    assert!(request("GET / HTTP/1.0\r\n\r\n").expect("fine").close);
    assert!(!request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("fine").close);

    let answer = |text: &str, to_head| ResponseHead::parse(text.as_bytes(), to_head).expect("fine");
    assert_eq!(answer("HTTP/1.1 204 No\r\n\r\n", false).framing, Framing::Empty);
    assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true).framing, Framing::Empty);
    let open = answer("HTTP/1.1 200 OK\r\n\r\n", false);
    assert_eq!((open.framing, open.close), (Framing::UntilClose, true));
    let kept = answer("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n", false);
    assert_eq!(kept.forward(true), "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nconnection: close\r\n\r\n");
    let both = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(ResponseHead::parse(both, false).is_err(), "answers are smuggled too");
}
