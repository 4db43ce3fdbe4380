//! The facts of one request, as whoever reads it hands them in.
//!
//! Knows nothing of what is asked of them, of sockets or of hyper.

use crate::path::{Path, decode_once};
use std::borrow::Cow;

/// Headers by which a client asks for another path than that of the request, where a server obeys them: IIS and its
/// modules, and frameworks that took over from them (CVE-2018-14773).
const PATH_HEADERS: [&str; 2] = ["x-original-url", "x-rewrite-url"];
/// Headers by which a client asks for another method: Rails, Laravel, Symfony, `Express` and others obey them.
const METHOD_HEADERS: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
/// The query parameter that some of those obey.
const METHOD_PARAMETER: &str = "_method";

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

    /// Values of every header that some server takes for this one: `_` beside `-`, and, as CGI's environment has it
    /// with some, whatever is no letter and no digit.
    pub(crate) fn loose_values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s [u8]> {
        let same = move |other: &str| {
            other.len() == name.len()
                && other.bytes().zip(name.bytes()).all(|(a, b)| {
                    let fold = |c: u8| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { b'-' };
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

    /// Whether any reading of any path that the request may have to a server satisfies `test`. Only denies ask this.
    pub(crate) fn any_path(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        self.path.any_reading(&mut test) || self.any_other_path(test)
    }

    /// The same for a test that does not mind the case.
    pub(crate) fn any_path_in_any_case(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        self.path.any_reading_in_any_case(&mut test) || self.any_other_path(test)
    }

    fn any_other_path(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        PATH_HEADERS.into_iter().flat_map(|name| self.loose_values(name)).any(|value| {
            let target = String::from_utf8_lossy(value);
            let path = target.split('?').next().unwrap_or_default();
            Path::new(path).any_reading(&mut test)
        })
    }

    /// The path, if it is [plain](Path::is_plain) and no header asks for another.
    pub(crate) fn plain_path(&self) -> Option<&str> {
        let others = || PATH_HEADERS.into_iter().any(|name| self.loose_values(name).next().is_some());
        (self.path.is_plain() && !others()).then_some(self.path.raw())
    }

    /// The methods that are asked for beside the request's own.
    pub(crate) fn method_overrides(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let headers = METHOD_HEADERS.into_iter().flat_map(|name| self.loose_values(name));
        let parameters = self.query.unwrap_or_default().split(['&', ';']).filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            // The parameter's name is plain enough that most queries are passed over.
            (name.contains(METHOD_PARAMETER) || name.contains('%'))
                .then(|| (decode_once(name), decode_once(value)))
                .filter(|(name, _)| name == METHOD_PARAMETER)
                .map(|(_, value)| value)
        });
        headers.map(|value| String::from_utf8_lossy(value.trim_ascii())).chain(parameters)
    }

    /// The media type without its parameters, if there is exactly one content type.
    pub(crate) fn media_type(&self) -> Option<&str> {
        let mut types = self.values("content-type");
        let (Some(value), None) = (types.next(), types.next()) else { return None };
        let text = std::str::from_utf8(value).ok()?;
        Some(text.split(';').next().unwrap_or_default())
    }
}
