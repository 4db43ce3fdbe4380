//! What a ClientHello says, in whatever pieces it comes, and what is no ClientHello.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use super::*;
use proptest::prelude::*;

fn vector(length_bytes: usize, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_be_bytes();
    [&length[8 - length_bytes..], body].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, body)].concat()
}

fn names(list: &[(u8, &str)]) -> Vec<u8> {
    let entries: Vec<u8> =
        list.iter().flat_map(|(kind, name)| [vec![*kind], vector(2, name.as_bytes())].concat()).collect();
    extension(SERVER_NAME, &vector(2, &entries))
}

fn named(name: &str) -> Vec<u8> {
    names(&[(0, name)])
}

/// A ClientHello message with these extensions; `None` for none at all.
fn message(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(vector(1, &[9; 32]));
    body.extend(vector(2, &[0x13, 0x01, 0xc0, 0x2f]));
    body.extend(vector(1, &[0]));
    if let Some(extensions) = extensions {
        body.extend(vector(2, &extensions.concat()));
    }
    [vec![CLIENT_HELLO], vector(3, &body)].concat()
}

/// Cut into records of this many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|piece| [vec![HANDSHAKE, 3, 1], vector(2, piece)].concat()).collect()
}

fn record(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(Some(extensions)), RECORD_BYTES)
}

fn name(text: &str) -> Hello {
    Hello::Name(Some(text.to_owned()))
}

#[test]
fn the_name_is_read_as_it_is_compared() {
    let other = extension(43, &[2, 3, 4]);
    assert_eq!(client_hello(&record(&[other.clone(), named("api.example.com")])), name("api.example.com"));
    assert_eq!(client_hello(&record(&[named("API.Example.COM."), other])), name("api.example.com"));
    assert_eq!(client_hello(&record(&[named("_dmarc.a-b.example")])), name("_dmarc.a-b.example"));
    assert_eq!(client_hello(&record(&[])), Hello::Name(None));
    assert_eq!(client_hello(&records(&message(None), 100)), Hello::Name(None));
}

#[test]
fn an_encrypted_hello_names_nobody() {
    for kind in ENCRYPTED {
        let encrypted = extension(kind, &[0, 1, 2, 3]);
        for order in [[encrypted.clone(), named("a.example")], [named("a.example"), encrypted]] {
            assert_eq!(client_hello(&record(&order)), Hello::Name(None));
        }
    }
}

#[test]
fn what_servers_could_read_differently_is_unreadable() {
    let long = format!("{}.example", "a".repeat(64));
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("two extensions", vec![named("a.example"), named("b.example")]),
        ("two of another", vec![extension(43, &[]), named("a.example"), extension(43, &[])]),
        ("two names", vec![names(&[(0, "a.example"), (0, "b.example")])]),
        ("a name of another type", vec![names(&[(1, "a.example")])]),
        ("no name in the list", vec![names(&[])]),
        ("an empty name", vec![named("")]),
        ("a dot", vec![named(".")]),
        ("an empty label", vec![named("a..example")]),
        ("a leading dot", vec![named(".example")]),
        ("two trailing dots", vec![named("a.example..")]),
        ("a NUL", vec![named("a.example\0.b.example")]),
        ("a blank", vec![named("a.example b")]),
        ("a star", vec![named("*.example")]),
        ("a colon", vec![named("a.example:443")]),
        ("no ASCII", vec![named("ä.example")]),
        ("a long label", vec![named(&long)]),
        ("an extension that breaks off", vec![vec![0, 0, 0, 9, 1]]),
        ("bytes after the list", vec![extension(SERVER_NAME, &[0, 4, 0, 0, 1, b'a', 0])]),
    ];
    for (what, extensions) in cases {
        assert_eq!(client_hello(&record(&extensions)), Hello::Unreadable, "{what}");
    }
}

#[test]
fn what_is_no_client_hello_is_known_at_once() {
    let good = record(&[named("a.example")]);
    let mut server_hello = good.clone();
    server_hello[5] = 2;
    assert_eq!(client_hello(&server_hello[..6]), Hello::Unreadable);
    let mut trailing = message(Some(&[named("a.example")]));
    trailing.push(0);
    assert_eq!(client_hello(&records(&trailing, 1000)), Hello::Unreadable);
    let alert_between = [&records(&message(Some(&[])), 20)[..25], &[21, 3, 1, 0, 2, 1, 0]].concat();
    assert_eq!(client_hello(&alert_between), Hello::Unreadable);
    let empty_record = [&[HANDSHAKE, 3, 1, 0, 0][..], &good].concat();
    assert_eq!(client_hello(&empty_record), Hello::Unreadable);
    assert_eq!(client_hello(&[HANDSHAKE, 3, 1, 0x40, 1]), Hello::Unreadable);
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0x80, 0x2e, 1, 3, 1], &[HANDSHAKE, 2], &[0]] {
        assert_eq!(begins(bytes), Some(false));
    }
    assert_eq!((begins(&[]), begins(&[HANDSHAKE]), begins(&good)), (None, None, Some(true)));
}

#[test]
fn the_longest_hello_is_read_and_a_longer_one_is_not() {
    let around = message(Some(&[named("a.example"), extension(21, &[])])).len() - 4;
    let padded = |length: usize| message(Some(&[named("a.example"), extension(21, &vec![0; length])]));
    let most = CLIENT_HELLO_BYTES - around;
    assert_eq!(client_hello(&records(&padded(most), RECORD_BYTES)), name("a.example"));
    assert_eq!(client_hello(&records(&padded(most + 1), RECORD_BYTES)), Hello::Unreadable);
    // One byte a record would make a hello of hundreds of kilobytes.
    assert_eq!(client_hello(&records(&padded(100), 1)), Hello::Unreadable);
}

proptest! {
    /// However it is cut into records, and wherever reading stops.
    #[test]
    fn every_prefix_waits_and_the_whole_agrees(size in 8usize..400, padding in 0usize..300) {
        let message = message(Some(&[extension(21, &vec![0; padding]), named("a.example")]));
        let bytes = records(&message, size);
        for end in 0..bytes.len() {
            prop_assert_eq!(client_hello(&bytes[..end]), Hello::More, "{}", end);
        }
        prop_assert_eq!(client_hello(&bytes), name("a.example"));
    }

    /// No byte of a stranger's makes it panic, and none of a name's is taken for another.
    #[test]
    fn strange_bytes_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200, flip: u8) {
        let _ = client_hello(&bytes);
        let mut hello = record(&[named("a.example")]);
        let place = at % hello.len();
        hello[place] ^= flip;
        if let Hello::Name(Some(read)) = client_hello(&hello) {
            // One letter may have become a trailing dot.
            prop_assert!(matches!(read.len(), 8 | 9), "{}", read);
        }
        bytes.splice(0..0, hello);
        let _ = client_hello(&bytes);
    }
}
