//! The facts of one request, as whoever reads it hands them in.
//!
//! Knows nothing of what is asked of them, of sockets or of hyper.

use crate::path::Path;

/// The HTTP version that a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The facts of one request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The version.
    pub version: HttpVersion,
    /// The method, as sent: methods are case-sensitive (RFC 9110 §9.1).
    pub method: &'a str,
    /// The path, without the query.
    pub path: Path<'a>,
    /// The query, without its question mark; `None` where the target has none.
    pub query: Option<&'a str>,
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a str>,
    /// What the request asks to be upgraded to, as sent: HTTP/1.1 `Upgrade` (RFC 9110 §7.8), HTTP/2 `:protocol`
    /// (RFC 8441).
    pub upgrade: Option<&'a str>,
    /// Every header field in order; names in lower case.
    pub headers: &'a [(&'a str, &'a [u8])],
}

impl Request<'_> {
    /// The values of a header.
    pub(crate) fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        self.headers.iter().filter(move |(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Values of every header that some server takes for this one: `_` beside `-`.
    pub(crate) fn loose_values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        let same = move |other: &str| {
            other.len() == name.len()
                && other.bytes().zip(name.bytes()).all(|(a, b)| {
                    let fold = |c: u8| if c == b'_' { b'-' } else { c.to_ascii_lowercase() };
                    fold(a) == fold(b)
                })
        };
        self.headers.iter().filter(move |(n, _)| same(n)).map(|(_, value)| *value)
    }

    /// The method that a rule names: over HTTP/2 an upgrade is asked for by CONNECT, where HTTP/1.1 has GET
    /// (RFC 8441 §5).
    pub(crate) fn effective_method(&self) -> &str {
        match (self.version, self.upgrade) {
            (HttpVersion::Http2, Some(_)) if self.method == "CONNECT" => "GET",
            _ => self.method,
        }
    }

    /// The media type without its parameters, if there is exactly one content type.
    pub(crate) fn media_type(&self) -> Option<&str> {
        let mut types = self.values("content-type");
        let (Some(value), None) = (types.next(), types.next()) else { return None };
        let text = std::str::from_utf8(value).ok()?;
        Some(text.split(';').next().unwrap_or_default())
    }
}
