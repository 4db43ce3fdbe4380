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
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a str>,
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

    /// Whether this is a gRPC request by all its marks: HTTP/2, POST, `application/grpc` or
    /// `application/grpc+…`.
    pub(crate) fn is_grpc(&self) -> bool {
        let mut types = self.values("content-type");
        let grpc = types.next().is_some_and(|value| {
            value
                .strip_prefix(b"application/grpc")
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'+' || rest[0] == b';')
        });
        grpc && types.next().is_none() && self.version == HttpVersion::Http2 && self.method == "POST"
    }
}
