//! Tells HTTP/1, HTTP/2, TLS and everything else apart by a client's first bytes.
//!
//! Pure: takes bytes, gives an opinion. What is not sure to be HTTP is not judged as HTTP.

use crate::limits::{HEAD_BYTES, METHOD_BYTES};
use crate::tls;

/// The client connection preface of HTTP/2 (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// An HTTP/1.0 or HTTP/1.1 request line.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS: what is said inside is not known.
    Tls,
    /// Something else: a database, anything.
    Other,
}

/// Looks at what has come so far. `None`: more is needed to tell.
#[must_use]
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    if PREFACE.starts_with(&bytes[..bytes.len().min(PREFACE.len())]) {
        return (bytes.len() >= PREFACE.len()).then_some(Protocol::Http2);
    }
    match tls::begins(bytes) {
        None => return None,
        Some(true) => return Some(Protocol::Tls),
        Some(false) => {}
    }
    // RFC 9112 §2.2: an empty line before the request line is ignored.
    let start = bytes.iter().take(4).take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let line = &bytes[start..];
    let method = line.iter().take_while(|b| is_token(**b)).count();
    if method > METHOD_BYTES {
        return Some(Protocol::Other);
    }
    match line.get(method) {
        None => return None,
        Some(b' ') if method > 0 => {}
        Some(_) => return Some(Protocol::Other),
    }
    let Some(end) = line.iter().position(|b| *b == b'\n') else {
        // A line without an end: HTTP's own limits answer it.
        return (line.len() >= HEAD_BYTES).then_some(Protocol::Http1);
    };
    let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
    let http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    Some(if http { Protocol::Http1 } else { Protocol::Other })
}

/// RFC 9110 §5.6.2 `tchar`.
#[must_use]
pub const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_protocols_apart() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"\r\nGET / HTTP/1.0\r\n", Some(Protocol::Http1)),
            (PREFACE, Some(Protocol::Http2)),
            (b"PRI * HTT", None),
            (b"P", None),
            (b"", None),
            (b"POST /x", None),
            (b"GET key\r\n", Some(Protocol::Other)),
            (b"EHLO there\r\n", Some(Protocol::Other)),
            (b"GET / HTTP/2.0\r\n", Some(Protocol::Other)),
            (b"GET / HTTP/1.1x\r\n", Some(Protocol::Other)),
            (b"\x16\x03\x01\x02\x00", Some(Protocol::Tls)),
            (b"\x16", None),
            (b"\x16\x02", Some(Protocol::Other)),
            (b"\x00\x00", Some(Protocol::Other)),
            (b" GET / HTTP/1.1\r\n", Some(Protocol::Other)),
        ] {
            assert_eq!(detect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(detect(&[b'A'; METHOD_BYTES + 1]), Some(Protocol::Other));
    }

    #[test]
    fn every_prefix_of_a_request_line_waits_or_agrees() {
        let line = b"DELETE /a/b?c=d HTTP/1.1\r\n";
        for end in 0..line.len() {
            assert_eq!(detect(&line[..end]), None, "{end}");
        }
        assert_eq!(detect(line), Some(Protocol::Http1));
    }
}
