//! Every published class of request smuggling, as bytes, with what becomes of it and where it was published.
//!
//! A head that two servers could read differently is answered with one 400 and reaches nobody; a body whose end two
//! servers could see at different places never ends at the server. What is good HTTP goes on, and what a bad server might
//! make of it is kept from it where that can be.

mod common;

use common::http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, first, frame, raw_http2, server,
};
use common::{OK, Recorder, Rules, World, http, shop, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Watchfire, "HTTP Request Smuggling" (2005).
const WATCHFIRE: &str = "Linhart, Klein, Heled, Orrin 2005";
/// Kettle, "HTTP Desync Attacks: Request Smuggling Reborn" (2019).
const REBORN: &str = "Kettle 2019";
/// Klein, "HTTP Request Smuggling in 2020".
const KLEIN: &str = "Klein 2020";
/// Kettle, "HTTP/2: The Sequel is Always Worse" (2021).
const SEQUEL: &str = "Kettle 2021";
/// Lerner, http2smugl (2021).
const HTTP2SMUGL: &str = "Lerner 2021";
/// Jabiyev and others, "T-Reqs: HTTP Request Smuggling with Differential Fuzzing" (2021).
const T_REQS: &str = "Jabiyev et al. 2021";
/// Kettle, "Browser-Powered Desync Attacks" (2022).
const BROWSER: &str = "Kettle 2022";
/// Kettle, "HTTP/1.1 must die: the desync endgame" (2025).
const ENDGAME: &str = "Kettle 2025";
/// Weikop, "Funky chunks" (2025) and its addendum.
const CHUNKS: &str = "Weikop 2025";

/// Class, field lines and body after `POST /api/v1/checkout HTTP/1.1` and `Host: cart`, and the source.
const HEADS: &[(&str, &str, &str)] = &[
    ("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", WATCHFIRE),
    (
        "TE.CL",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1e\r\nGET /admin HTTP/1.1\r\nX: \r\n0\r\n\r\n",
        REBORN,
    ),
    ("CL.CL", "Content-Length: 0\r\nContent-Length: 44\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", WATCHFIRE),
    ("CL.CL, the same twice", "Content-Length: 6\r\nContent-Length: 6\r\n\r\nGET / ", "RFC 9112 §6.3"),
    ("CL.CL, a list", "Content-Length: 6, 6\r\n\r\nGET / ", "RFC 9112 §6.3"),
    ("CL with a sign", "Content-Length: +6\r\n\r\nGET / ", KLEIN),
    ("CL below zero", "Content-Length: -6\r\n\r\n", T_REQS),
    ("CL in hexadecimal", "Content-Length: 0x6\r\n\r\nGET / ", T_REQS),
    ("CL octal to some", "Content-Length: 010\r\n\r\n12345678", T_REQS),
    ("CL with more behind it", "Content-Length: 6 6\r\n\r\nGET / ", KLEIN),
    ("CL with a letter", "Content-Length: 6abcde\r\n\r\nGET / ", KLEIN),
    ("CL in quotes", "Content-Length: \"6\"\r\n\r\nGET / ", T_REQS),
    ("CL empty", "Content-Length:\r\n\r\nGET / ", T_REQS),
    ("CL too large to count", "Content-Length: 18446744073709551622\r\n\r\nGET / ", T_REQS),
    ("CL behind a tab", "Content-Length:\t6\r\n\r\nGET / ", T_REQS),
    ("CL before a blank", "Content-Length: 6 \r\n\r\nGET / ", T_REQS),
    ("CL in another script's digits", "Content-Length: \u{666}\r\n\r\nGET / ", T_REQS),
    ("0.CL, a blank before the colon", "Content-Length : 6\r\n\r\nGET / ", KLEIN),
    ("0.CL, a blank before the name", " Content-Length: 6\r\n\r\nGET / ", ENDGAME),
    ("0.CL, folded away", "X: y\r\n Content-Length: 6\r\n\r\nGET / ", ENDGAME),
    ("0.CL, the value folded", "Content-Length:\r\n 6\r\n\r\nGET / ", ENDGAME),
    ("0.CL, an underscore", "Content_Length: 6\r\n\r\nGET / ", ENDGAME),
    ("0.CL, a blank inside", "Content Length: 6\r\n\r\nGET / ", T_REQS),
    ("0.CL, a control byte behind the name", "Content-Length\x0b: 6\r\n\r\nGET / ", ENDGAME),
    ("0.CL, hidden behind a carriage return", "X: y\rContent-Length: 6\r\n\r\nGET / ", KLEIN),
    ("0.CL, hidden behind a line feed", "X: y\nContent-Length: 6\r\n\r\nGET / ", KLEIN),
    ("0.CL, hidden behind NUL", "X: y\0Content-Length: 6\r\n\r\nGET / ", KLEIN),
    ("TE.TE, another word", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, a blank before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", REBORN),
    (
        "TE.TE, twice the same",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REBORN,
    ),
    ("TE.TE, a tab", "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, a vertical tab", "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, a blank before the name", " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, behind a bare line feed", "X: X\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, a line end in the name", "Transfer-Encoding\n: chunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, quoted", "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, chunked is not the last", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, chunked is not the first", "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, an empty member", "Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n", T_REQS),
    ("TE.TE, a parameter", "Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", T_REQS),
    ("TE.TE, other letters", "Transfer-Encoding: cHunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, a blank behind it", "Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n", T_REQS),
    ("TE.TE, a carriage return behind it", "Transfer-Encoding: chunked\r\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, NUL inside", "Transfer-Encoding: chun\0ked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, a byte of 8 bits before it", "Transfer-Encoding: \u{e9}chunked\r\n\r\n0\r\n\r\n", T_REQS),
    ("TE.TE, folded", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", REBORN),
    ("TE.TE, an underscore", "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n", T_REQS),
    (
        "TE.0 and TE.CL, identity",
        "Transfer-Encoding: identity\r\nContent-Length: 6\r\n\r\nGET / ",
        "Arnolfo et al. 2024",
    ),
    ("TE.0, nothing", "Transfer-Encoding:\r\n\r\n0\r\n\r\n", "Arnolfo et al. 2024"),
    ("Expect, obscured", "Expect: y 100-continue\r\nContent-Length: 6\r\n\r\nGET / ", ENDGAME),
    ("Expect, something else", "Expect: 200-ok\r\nContent-Length: 6\r\n\r\nGET / ", ENDGAME),
    (
        "Expect, twice",
        "Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\nGET / ",
        ENDGAME,
    ),
    ("Expect, a list", "Expect: 100-continue, 100-continue\r\nContent-Length: 6\r\n\r\nGET / ", ENDGAME),
    ("Expect, empty", "Expect:\r\nContent-Length: 6\r\n\r\nGET / ", ENDGAME),
    ("Expect, of no body", "Expect: 100-continue\r\n\r\n", ENDGAME),
    ("Expect, of a body of nothing", "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", ENDGAME),
    ("Host, twice", "Host: admin\r\n\r\n", "Kettle 2017"),
    ("Host, hidden by a blank", " Host: admin\r\n\r\n", "Kettle 2017"),
    ("hop by hop, Host", "Connection: close, Host\r\n\r\n", "Davison 2019"),
    ("hop by hop, what was judged", "Connection: close, X-Tenant\r\n\r\n", "Davison 2019"),
    ("hop by hop, Authorization", "Connection: keep-alive, Authorization\r\n\r\n", "Davison 2019"),
    (
        "hop by hop, the length",
        "Connection: content-length\r\nContent-Length: 6\r\n\r\nGET / ",
        "Davison 2019",
    ),
    ("a line without a colon", "X\r\n\r\n", T_REQS),
    ("no name", ": x\r\n\r\n", T_REQS),
    ("an end of line that is one to some", "\r\r\n\r\n", "RFC 9112 §2.2"),
];

/// Class, request line, other lines, and the source.
const LINES: &[(&str, &str, &str, &str)] = &[
    ("two blanks", "GET  /api HTTP/1.1", "Host: cart", T_REQS),
    ("a version in the path", "GET /api HTTP/1.1/admin HTTP/1.1", "Host: cart", T_REQS),
    ("no slash", "GET api HTTP/1.1", "Host: cart", SEQUEL),
    ("a star", "GET * HTTP/1.1", "Host: cart", "RFC 9112 §3.2.4"),
    ("a fragment", "GET /api#/../admin HTTP/1.1", "Host: cart", "RFC 9112 §3.2"),
    ("absolute, another host", "GET http://admin/api HTTP/1.1", "Host: cart", "Kettle 2017"),
    ("absolute, another port", "GET http://cart:81/api HTTP/1.1", "Host: cart", "Kettle 2017"),
    ("absolute, a user", "GET http://cart@admin/api HTTP/1.1", "Host: cart", "Kettle 2017"),
    ("absolute, no host", "GET http:///api HTTP/1.1", "Host: cart", "RFC 9112 §3.2.2"),
    ("absolute, another scheme", "GET ftp://cart/api HTTP/1.1", "Host: cart", "RFC 9112 §3.2.2"),
    ("no Host", "GET /api HTTP/1.1", "X: y", "RFC 9112 §3.2"),
    ("Host with a path", "GET /api HTTP/1.1", "Host: cart/admin", "Kettle 2017"),
    ("Host with a user", "GET /api HTTP/1.1", "Host: cart@admin", "Kettle 2017"),
    ("Host with two ports", "GET /api HTTP/1.1", "Host: cart:80:admin", "Kettle 2017"),
    ("Host with a port of letters", "GET /api HTTP/1.1", "Host: cart:admin", "Kettle 2017"),
    ("Host, a list", "GET /api HTTP/1.1", "Host: cart, admin", "Kettle 2017"),
    ("Host, a bracket alone", "GET /api HTTP/1.1", "Host: [::1", "RFC 3986 §3.2.2"),
    ("Host, an address and more", "GET /api HTTP/1.1", "Host: [::1]admin", "RFC 3986 §3.2.2"),
    (
        "chunked in HTTP/1.0",
        "POST /api/v1/checkout HTTP/1.0",
        "Host: cart\r\nTransfer-Encoding: chunked",
        "RFC 9112 §6.1",
    ),
    (
        "Expect in HTTP/1.0",
        "POST /api/v1/checkout HTTP/1.0",
        "Host: cart\r\nExpect: 100-continue\r\nContent-Length: 6",
        ENDGAME,
    ),
    ("CONNECT to another", "CONNECT admin:80 HTTP/1.1", "Host: cart:80", "RFC 9112 §3.2.3"),
];

/// First lines that are no HTTP/1 to anybody strict: the connection is reset.
const NO_HTTP: &[(&str, &str, &str)] = &[
    ("HTTP/0.9", "GET /api\r\n", WATCHFIRE),
    ("HTTP/1.2", "GET /api HTTP/1.2\r\nHost: cart\r\n\r\n", KLEIN),
    ("HTTP/2.0 in HTTP/1's form", "GET /api HTTP/2.0\r\nHost: cart\r\n\r\n", T_REQS),
    ("small letters", "GET /api http/1.1\r\nHost: cart\r\n\r\n", T_REQS),
    ("zeros", "GET /api HTTP/01.1\r\nHost: cart\r\n\r\n", T_REQS),
    ("a tab for a blank", "GET\t/api HTTP/1.1\r\nHost: cart\r\n\r\n", T_REQS),
    ("a blank behind it", "GET /api HTTP/1.1 \r\nHost: cart\r\n\r\n", T_REQS),
    ("a blank before it", " GET /api HTTP/1.1\r\nHost: cart\r\n\r\n", T_REQS),
];

/// Class, chunked body, and the source. Each hides `GET /admin` from one of two readers.
const BODIES: &[(&str, &str, &str)] = &[
    ("TERM.EXT", "5;\nAAAAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("EXT.TERM", "2;\rxx\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("TERM.SPILL", "5\r\nAAAAA\nf\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("SPILL.TERM", "5\r\nAAAAAX\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    (
        "EXT.TERM, a line feed in quotes",
        "5;a=\"\n\"\r\nAAAAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
        CHUNKS,
    ),
    ("ONE.TWO", "2\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("TWO.ONE", "2\r\nAA\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("ZERO.TWO", "2\r\nAA0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("TWO.ZERO", "2\r\nAAxx0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("a carriage return for a line end", "2\rAA\r0\r\rGET /admin HTTP/1.1\r\n\r\n", CHUNKS),
    ("a last chunk with a bare line feed", "0\n\nGET /admin HTTP/1.1\r\n\r\n", "RFC 9112 §2.2"),
    ("the end with a bare line feed", "0\r\n\nGET /admin HTTP/1.1\r\n\r\n", "RFC 9112 §2.2"),
    ("a size with 0x", "0x2\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    ("a size with a sign", "+2\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    ("a size below zero", "-1\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    ("a size behind a blank", " 2\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    ("a size with an underscore", "1_0\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    ("a size that overflows", "10000000000000002\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    ("no size", "\r\nAA\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", T_REQS),
    (
        "a length among the trailers",
        "0\r\nContent-Length: 60\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
        "RFC 9110 §6.5.1",
    ),
    (
        "the same with an underscore",
        "0\r\nContent_Length: 60\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
        "RFC 9110 §6.5.1",
    ),
    (
        "chunked among the trailers",
        "0\r\nTransfer-Encoding: chunked\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
        "RFC 9110 §6.5.1",
    ),
    ("a trailer that hides", "0\r\nX: y\nGET /admin HTTP/1.1\r\n\r\n", "RFC 9112 §7.1.2"),
    ("a folded trailer", "0\r\nX: y\r\n z\r\n\r\nGET /admin HTTP/1.1\r\n\r\n", "RFC 9112 §5.2"),
];

/// One answer, then the end; or a reset.
async fn one_answer(world: &World, bytes: &str) -> Option<String> {
    let mut client = world.connect().await;
    client.send(bytes).await;
    let answer = String::from_utf8(client.rest().await.ok()?).expect("text");
    assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{bytes:?}: {answer}");
    Some(answer)
}

#[tokio::test]
async fn heads_that_two_servers_read_differently_reach_nobody() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    let heads = HEADS.iter().map(|(class, rest, source)| {
        (*class, format!("POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\n{rest}"), *source)
    });
    let lines = LINES
        .iter()
        .map(|(class, line, more, source)| (*class, format!("{line}\r\n{more}\r\n\r\n"), *source));
    let mut wrong = Vec::new();
    for (class, bytes, source) in heads.chain(lines) {
        let answer = one_answer(&world, &bytes).await.unwrap_or_default();
        let record = world.record().await;
        let told = (record.verdict.as_str(), record.reason.as_str()) == ("deny", "parse_error");
        let closes = answer.contains("\r\nconnection: close\r\n");
        if !answer.starts_with("HTTP/1.1 400 ") || !closes || !told {
            wrong.push(format!("{class} ({source}): {bytes:?}: {answer:?}, {}", record.reason));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (class, bytes, source) in NO_HTTP {
        assert_eq!(one_answer(&world, bytes).await, None, "{class} ({source})");
        assert_eq!(world.record().await.reason, "parse_error", "{class}");
    }
    assert!(server.peers().is_empty(), "nobody was dialled");
}

#[tokio::test]
async fn bodies_whose_end_two_servers_see_at_different_places_never_end() {
    let head = "POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (class, body, source) in BODIES {
        // Says nothing, so that what is answered is the proxy's.
        let server = Recorder::start("").await;
        let world = World::start(&shop(), server.at).await;
        let answer = one_answer(&world, &format!("{head}{body}")).await;
        assert!(
            answer.as_ref().is_none_or(|answer| answer.starts_with("HTTP/1.1 400 ")),
            "{class} ({source}): {answer:?}"
        );
        let seen = server.seen();
        assert!(!seen.contains("\r\n0\r\n") && !seen.contains("admin"), "{class} ({source}): {seen:?}");
    }
}

/// What is good HTTP goes on to the byte, and what follows a body is a request of its own, judged.
#[tokio::test]
async fn what_follows_a_body_is_judged() {
    let (post, inner) =
        ("POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\n", "GET /admin HTTP/1.1\r\nHost: cart\r\n\r\n");
    for (class, bytes, seen, source) in [
        (
            "CL.0: no body is a request",
            format!("{post}Content-Length: 4\r\n\r\nbody{inner}"),
            format!("{post}Content-Length: 4\r\n\r\nbody"),
            BROWSER,
        ),
        (
            "a GET with a body",
            format!("GET /api HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\n\r\nbody{inner}"),
            "GET /api HTTP/1.1\r\nHost: cart\r\nContent-Length: 4\r\n\r\nbody".to_owned(),
            KLEIN,
        ),
        (
            "empty lines between requests",
            format!("GET /api HTTP/1.1\r\nHost: cart\r\n\r\n\r\n{inner}"),
            "GET /api HTTP/1.1\r\nHost: cart\r\n\r\n".to_owned(),
            "RFC 9112 §2.2",
        ),
        (
            "an extension of a chunk goes no further",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n2 ;a=\"b;c\"\r\nAA\r\n000\r\n\r\n{inner}"),
            format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\nAA\r\n0\r\n\r\n"),
            CHUNKS,
        ),
    ] {
        let server = Recorder::start(OK).await;
        let world = World::start(&shop(), server.at).await;
        let mut client = world.connect().await;
        client.send(bytes).await;
        let first = client.answer().await;
        assert_eq!(first, OK, "{class} ({source})");
        // More heads than one may be seen in a chunked body by the recorder, which is no parser.
        let second = client.try_answer().await;
        assert!(second.is_err() || second.is_ok_and(|second| second.starts_with("HTTP/1.1 403 ")), "{class}");
        assert_eq!(server.seen(), seen, "{class} ({source})");
    }
}

/// Expect (Kettle 2025): a server that refuses a body unseen gets nothing that it could take for a request.
#[tokio::test]
async fn a_body_that_was_not_wanted_is_not_sent() {
    let head =
        "POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\nExpect: 100-continue\r\nContent-Length: 39\r\n\r\n";
    let inner = "GET /admin HTTP/1.1\r\nHost: cart\r\nX: y\r\n\r\n";
    let server = Recorder::start("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    // All at once, as an attacker does who does not wait.
    client.send(format!("{head}{inner}")).await;
    let answers = String::from_utf8(client.rest().await.expect("an answer, then the end")).expect("text");
    assert!(answers.starts_with("HTTP/1.1 417 ") && answers.matches("HTTP/1.1").count() == 1, "{answers}");
    assert_eq!(server.seen(), head);
}

/// A server that never says that it wants the body gets it all the same.
#[tokio::test]
async fn a_server_that_knows_no_expectations_gets_the_body() {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the proxy");
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello") {
            assert_ne!(stream.read_buf(&mut seen).await.expect("no reset"), 0, "no body came");
        }
        stream.write_all(OK.as_bytes()).await.expect("sent");
    });
    let world = World::start(&shop(), at).await;
    let mut client = world.connect().await;
    let head =
        "POST /api/v1/checkout HTTP/1.1\r\nHost: c\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(client.ask(format!("{head}hello")).await, OK);
}

/// h2c upgrade smuggling (Brown 2020): the offer is not passed on, so that no server takes it up behind our back.
#[tokio::test]
async fn an_offer_of_http2_is_answered_in_http1() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    let offers =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
    let plain = "GET /api HTTP/1.1\r\nHost: cart\r\n";
    assert_eq!(client.ask(format!("{plain}{offers}\r\n")).await, OK);
    assert_eq!(server.seen(), format!("{plain}\r\n"));
    assert!(client.ask("GET /admin HTTP/1.1\r\nHost: cart\r\n\r\n").await.starts_with("HTTP/1.1 403 "));
    assert_eq!(server.seen(), format!("{plain}\r\n"));
}

/// Answers are smuggled too: each of these is a 502, and nothing of it goes on.
#[tokio::test]
async fn answers_that_two_clients_read_differently_go_no_further() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nX: y\r\n folded: z\r\n\r\nok",
    ] {
        let server = Recorder::start(answer).await;
        let world = World::start(&shop(), server.at).await;
        let got = one_answer(&world, "GET /api HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap_or_default();
        assert!(got.starts_with("HTTP/1.1 502 "), "{answer:?}: {got}");
    }
}

/// Class, fields, source.
type Downgrade = (&'static str, &'static [(&'static str, &'static str)], &'static str);

/// Requests that a gateway behind us would put into HTTP/1.1: class, fields beside the usual four, source.
const DOWNGRADES: &[Downgrade] = &[
    ("H2.CL, twice", &[("content-length", "0"), ("content-length", "6")], SEQUEL),
    ("H2.CL, the same twice", &[("content-length", "6"), ("content-length", "6")], SEQUEL),
    ("H2.CL, a sign", &[("content-length", "+6")], SEQUEL),
    ("H2.CL, a blank", &[("content-length", " 6")], "RFC 9113 §8.2.1"),
    ("H2.CL, an underscore", &[("content_length", "6")], HTTP2SMUGL),
    ("H2.TE", &[("transfer-encoding", "chunked")], SEQUEL),
    ("H2.TE, a blank", &[("transfer-encoding", " chunked")], HTTP2SMUGL),
    ("H2.TE, an underscore", &[("transfer_encoding", "chunked")], HTTP2SMUGL),
    ("H2.TE, a blank in the name", &[("transfer-encoding ", "chunked")], HTTP2SMUGL),
    ("H2.TE, upper case", &[("Transfer-Encoding", "chunked")], "RFC 9113 §8.2.1"),
    ("H2.TE by a name with a line in it", &[("x: y\r\ntransfer-encoding", "chunked")], SEQUEL),
    ("H2.TE by a name with a colon in it", &[("transfer-encoding: chunked\r\nx", "y")], SEQUEL),
    ("H2.TE by a value", &[("x", "y\r\ntransfer-encoding: chunked")], SEQUEL),
    ("a line feed in a value", &[("x", "y\nz: 1")], SEQUEL),
    ("a carriage return in a value", &[("x", "y\rz: 1")], SEQUEL),
    ("NUL in a value", &[("x", "y\0z")], "RFC 9113 §8.2.1"),
    ("a request in a value", &[("x", "y\r\n\r\nGET /admin HTTP/1.1\r\nhost: cart")], SEQUEL),
    ("a blank before a value", &[("x", " y")], "RFC 9113 §8.2.1"),
    ("a tab behind a value", &[("x", "y\t")], "RFC 9113 §8.2.1"),
    ("a colon in a name", &[("x:y", "z")], SEQUEL),
    ("no name", &[("", "y")], "RFC 9113 §8.2.1"),
    ("hop by hop", &[("connection", "x-tenant")], "RFC 9113 §8.2.2"),
    ("hop by hop, upgrade", &[("upgrade", "h2c")], "RFC 9113 §8.2.2"),
    ("hop by hop, keep-alive", &[("keep-alive", "1")], "RFC 9113 §8.2.2"),
    ("hop by hop, proxy-connection", &[("proxy-connection", "close")], "RFC 9113 §8.2.2"),
    ("te", &[("te", "trailers, chunked")], "RFC 9113 §8.2.2"),
    ("two hosts", &[("host", "admin")], SEQUEL),
    ("the same host twice", &[("host", "cart"), ("host", "cart")], SEQUEL),
    (":path twice", &[(":path", "/admin")], SEQUEL),
    (":method twice", &[(":method", "GET")], SEQUEL),
    (":authority behind the fields", &[("x", "y"), (":authority", "admin")], SEQUEL),
    ("an unknown pseudo-header field", &[(":x", "y")], "RFC 9113 §8.3"),
    ("an answer's", &[(":status", "200")], "RFC 9113 §8.3.1"),
];

/// The usual four, one of them as no request has it.
const PSEUDOS: &[(&str, &str, &str, &str)] = &[
    ("a line in :method", ":method", "POST / HTTP/1.1\r\nhost: admin\r\n\r\nGET", SEQUEL),
    ("a blank in :method", ":method", "POST /admin", SEQUEL),
    ("no method", ":method", "", "RFC 9113 §8.3.1"),
    ("a line in :path", ":path", "/api HTTP/1.1\r\nhost: admin\r\n\r\nGET /", SEQUEL),
    ("a blank in :path", ":path", "/admin HTTP/1.1", SEQUEL),
    ("no path", ":path", "", "RFC 9113 §8.3.1"),
    ("a path without a slash", ":path", "api", SEQUEL),
    ("an absolute path", ":path", "http://admin/", SEQUEL),
    ("a line in :authority", ":authority", "cart\r\nx: y", SEQUEL),
    ("a path in :authority", ":authority", "cart/admin", SEQUEL),
    ("a user in :authority", ":authority", "cart@admin", "RFC 9113 §8.3.1"),
    ("two ports in :authority", ":authority", "cart:80:80", SEQUEL),
    ("a line in :scheme", ":scheme", "http\r\nx: y", SEQUEL),
    ("a host in :scheme", ":scheme", "http://admin/?", SEQUEL),
    ("no scheme", ":scheme", "", "RFC 9113 §8.3.1"),
    ("a scheme of nothing here", ":scheme", "gopher", SEQUEL),
];

const USUAL: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/api/v1/checkout"), (":authority", "cart")];

/// HPACK's literals, of any length.
fn long_block(fields: &[(&str, &str)]) -> Vec<u8> {
    assert!(fields.iter().all(|(name, value)| name.len() < 127 && value.len() < 127));
    block(fields)
}

#[tokio::test]
async fn http2_that_becomes_two_requests_elsewhere_reaches_nobody() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let downgrades = DOWNGRADES.iter().map(|(class, more, source)| {
        (*class, USUAL.iter().chain(*more).copied().collect::<Vec<_>>(), *source)
    });
    let pseudos = PSEUDOS.iter().map(|(class, name, value, source)| {
        let other =
            |(usual, was): &(&'static str, &'static str)| (*usual, if usual == name { *value } else { *was });
        (*class, USUAL.iter().map(other).collect::<Vec<_>>(), *source)
    });
    let mut wrong = Vec::new();
    for (class, fields, source) in downgrades.chain(pseudos) {
        let mut stream = raw_http2(&world).await;
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &long_block(&fields));
        bytes.extend(frame(DATA, END_STREAM, 1, b"GET / "));
        stream.write_all(&bytes).await.expect("the proxy reads");
        // An answer of ours or a reset: the server, which answers nothing, did not have it before.
        tokio::select! {
            said = first(&mut stream, &[HEADERS, RST_STREAM, GOAWAY]) => {
                if said.is_none() {
                    wrong.push(format!("{class} ({source}): the connection ended without a word"));
                }
            }
            got = served.recv() => wrong.push(format!("{class} ({source}): {:?}", got.map(|got| got.request))),
        }
    }
    assert!(wrong.is_empty() && served.try_recv().is_err(), "{wrong:#?}");
}

/// Without `:path`, and without `:authority`, which some libraries forgive.
#[tokio::test]
async fn a_request_without_a_path_reaches_nobody() {
    let (at, mut served) = server().await;
    let anything = Rules { http: vec![http(&[], None)], ..shop() };
    let world = World::start(&anything, at).await;
    for fields in [
        &[(":method", "GET"), (":scheme", "http"), ("host", "cart")][..],
        &[(":method", "GET"), (":path", "/api"), ("host", "cart")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "cart")],
        &[(":scheme", "http"), (":path", "/api"), (":authority", "cart")],
    ] {
        let mut stream = raw_http2(&world).await;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
        stream.write_all(&head).await.expect("the proxy reads");
        tokio::select! {
            said = first(&mut stream, &[HEADERS, RST_STREAM, GOAWAY]) => assert!(said.is_some(), "{fields:?}"),
            got = served.recv() => panic!("{fields:?}: {:?}", got.map(|got| got.request)),
        }
    }
}

/// H2.CL proper: a length that the body is not of never ends at the server.
#[tokio::test]
async fn a_length_that_the_body_is_not_of_ends_nothing() {
    for (length, body) in [("0", &b"GET / "[..]), ("3", b"GET / "), ("60", b"GET / ")] {
        let (at, mut served) = server().await;
        let world = World::start(&shop(), at).await;
        let mut stream = raw_http2(&world).await;
        let fields: Vec<_> = USUAL.iter().copied().chain([("content-length", length)]).collect();
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        bytes.extend(frame(DATA, END_STREAM, 1, body));
        stream.write_all(&bytes).await.expect("the proxy reads");
        assert_eq!(first(&mut stream, &[RST_STREAM, GOAWAY]).await, Some(RST_STREAM), "{length}");
        if let Ok(mut got) = served.try_recv() {
            let ended = soon("the end", async {
                loop {
                    match got.request.body_mut().data().await {
                        Some(Ok(_)) => {}
                        other => return other.map(|data| data.map(|_| ())),
                    }
                }
            })
            .await;
            assert!(matches!(ended, Some(Err(_))), "{length}: {ended:?}");
        }
    }
}
