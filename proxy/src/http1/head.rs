//! HTTP/1 heads: found, checked more strictly than any server has to, and written on.
//!
//! The grammar is httparse's; what it lets through and servers read differently is refused here, because request
//! smuggling lives on such differences. A head goes on byte for byte unless something of it must change. Knows
//! nothing of sockets or of policy.

use crate::judge;
use crate::limits::{HEAD_BYTES, HEAD_FIELDS, TARGET_BYTES};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use memchr::memchr;
use sluice_policy::HttpVersion;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::Arc;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Servers would read it differently, or it is no HTTP at all.
    Malformed(&'static str),
    /// More than [`TARGET_BYTES`].
    TargetTooLong,
    /// More than [`HEAD_BYTES`] or [`HEAD_FIELDS`].
    TooLarge,
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// To the end of the connection; answers alone.
    UntilClose,
}

/// What a request wants the connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// Nothing.
    No,
    /// HTTP/2, which some clients offer with every first request: the offer is not passed on.
    H2c,
    /// A WebSocket (RFC 6455), and nothing else.
    WebSocket,
    /// Anything else.
    Other,
}

/// One field line.
#[derive(Clone, Debug)]
struct Field {
    line: Range<usize>,
    name: Range<usize>,
    value: Range<usize>,
}

/// A request head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    raw: Bytes,
    fields: Vec<Field>,
    target: Range<usize>,
    path: Range<usize>,
    /// The request as it is judged. What is not passed on is not judged.
    pub said: Arc<judge::Said>,
    /// HTTP/1.0 is 0, HTTP/1.1 is 1.
    pub minor: u8,
    /// The body.
    pub framing: Framing,
    /// The client wants no other request on this connection.
    pub close: bool,
    /// The client waits for `100 Continue`.
    pub expects: bool,
    /// What it wants the connection to become.
    pub upgrade: Upgrade,
}

/// What must change before a request goes on.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The path, normalised.
    pub path: Option<String>,
    /// The value of `traceparent`.
    pub traceparent: Option<String>,
}

/// Looks for the end of a head, starting at `from`, which was looked at before. `Ok(None)`: not there yet.
///
/// # Errors
/// A line feed alone, which some servers take for a line end and others for a byte.
pub fn find_end(buf: &[u8], from: usize) -> Result<Option<usize>, Bad> {
    let start = leading_lines(buf);
    let mut at = from.max(start);
    while let Some(found) = memchr(b'\n', &buf[at..]).map(|p| at + p) {
        if found == 0 || buf[found - 1] != b'\r' {
            return Err(Bad::Malformed("a line feed without carriage return"));
        }
        if found >= start + 3 && buf[found - 3..=found] == *b"\r\n\r\n" {
            return Ok(Some(found + 1));
        }
        at = found + 1;
    }
    if buf.len() >= HEAD_BYTES { Err(Bad::TooLarge) } else { Ok(None) }
}

/// Empty lines before a message, which are skipped (RFC 9112 §2.2).
fn leading_lines(buf: &[u8]) -> usize {
    let mut start = 0;
    while start < 4 && buf[start..].starts_with(b"\r\n") {
        start += 2;
    }
    start
}

/// The field lines between `start` and the empty line. The grammar has been checked: no folding, no bare CR.
fn split_fields(raw: &[u8], start: usize) -> Vec<Field> {
    let mut fields = Vec::with_capacity(16);
    let mut at = start;
    // Each carriage return ends a line: that has been checked.
    while let Some(length) = memchr(b'\r', &raw[at..]) {
        if length == 0 {
            break;
        }
        let line = &raw[at..at + length];
        let colon = memchr(b':', line).unwrap_or(length);
        let blank = |b: &&u8| matches!(**b, b' ' | b'\t');
        let value = line.get(colon + 1..).unwrap_or_default();
        let skip = value.iter().take_while(blank).count();
        let trail = value[skip..].iter().rev().take_while(blank).count();
        let first = at + (colon + 1).min(length) + skip;
        fields.push(Field {
            line: at..at + length + 2,
            name: at..at + colon,
            value: first..(at + length - trail).max(first),
        });
        at += length + 2;
    }
    fields
}

fn grammar(error: httparse::Error) -> Bad {
    match error {
        httparse::Error::TooManyHeaders => Bad::TooLarge,
        httparse::Error::HeaderName => Bad::Malformed("a header name"),
        httparse::Error::HeaderValue => Bad::Malformed("a header value"),
        httparse::Error::NewLine => Bad::Malformed("a line end"),
        httparse::Error::Version => Bad::Malformed("the version"),
        httparse::Error::Status => Bad::Malformed("the status"),
        httparse::Error::Token => Bad::Malformed("the start line"),
    }
}

/// A carriage return that ends no line, or a NUL: read as a line end, a space or nothing, by whom it reaches.
fn has_stray_control(raw: &[u8]) -> bool {
    let ends_no_line = |at: usize| raw.get(at + 1).is_none_or(|next| *next != b'\n');
    memchr(0, raw).is_some() || memchr::memchr_iter(b'\r', raw).any(ends_no_line)
}

/// A field as it is judged: it shares the head's bytes.
fn field(raw: &Bytes, place: &Field) -> Option<judge::Field> {
    let name = HeaderName::from_bytes(&raw[place.name.clone()]).ok()?;
    Some((name, HeaderValue::from_maybe_shared(raw.slice(place.value.clone())).ok()?))
}

/// The fields as they are judged; `count`: as many as the grammar has found. What cannot be judged must not go on.
fn judged(raw: &Bytes, fields: &[Field], count: usize) -> Result<Vec<judge::Field>, Bad> {
    let all = fields.iter().map(|place| field(raw, place)).collect::<Option<Vec<_>>>();
    all.filter(|all| all.len() == count).ok_or(Bad::Malformed("the header section"))
}

/// What the fields of a message say about its framing and connection.
#[derive(Debug, Default)]
struct Said<'a> {
    length: Option<u64>,
    chunked: bool,
    host: Option<&'a [u8]>,
    hosts: usize,
    close: bool,
    keep_alive: bool,
    upgrade_offered: bool,
    upgrades: Vec<&'a [u8]>,
    expects: bool,
    odd_expect: bool,
    /// See [`is_shadow`].
    shadowed: bool,
}

/// Whether the name is one of framing to who reads `_` as `-`, as CGI and what came of it do.
pub(crate) fn is_shadow(name: &[u8]) -> bool {
    const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];
    let same = |a: &u8, b: &u8| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
    let reads_as =
        |known: &&[u8]| name.len() == known.len() && name.iter().zip(*known).all(|(a, b)| same(a, b));
    name.contains(&b'_') && FRAMING.iter().any(reads_as)
}

/// Whether nothing but spaces before it surrounds a value: who does not take a tab for a blank, or a blank at the end,
/// reads another one.
fn is_plainly_set(raw: &[u8], field: &Field) -> bool {
    let before = &raw[(field.name.end + 1).min(field.value.start)..field.value.start];
    before.iter().all(|b| *b == b' ') && field.value.end + 2 == field.line.end
}

/// The options of `Connection` that mean what they say. Any other names a header to be dropped on the way, which
/// would let a client take away what was judged.
const CONNECTION_OPTIONS: [&str; 6] = ["close", "keep-alive", "upgrade", "te", "trailers", "http2-settings"];

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn read_fields<'a>(raw: &'a [u8], fields: impl IntoIterator<Item = &'a Field>) -> Result<Said<'a>, Bad> {
    let mut said = Said::default();
    let (mut lengths, mut encodings) = (0, 0);
    for field in fields {
        let name = &raw[field.name.clone()];
        let value = &raw[field.value.clone()];
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("content-length") {
            lengths += 1;
            // Digits alone: no sign, no list, no space, and no zero before them, which some take for octal. 19 of them
            // fit.
            let plain = (1..=19).contains(&value.len())
                && value.iter().all(u8::is_ascii_digit)
                && (value.len() == 1 || value[0] != b'0')
                && is_plainly_set(raw, field);
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            said.length = Some(number.filter(|_| plain).ok_or(Bad::Malformed("Content-Length"))?);
        } else if is("transfer-encoding") {
            encodings += 1;
            // In the letters that everybody knows: who compares bytes would see no body where others see one.
            said.chunked = value == b"chunked" && is_plainly_set(raw, field);
            if !said.chunked {
                return Err(Bad::Malformed("Transfer-Encoding is not chunked alone"));
            }
        } else if is("host") {
            said.host = Some(value);
            said.hosts += 1;
        } else if is("connection") {
            for token in tokens(value) {
                if !CONNECTION_OPTIONS.iter().any(|known| token.eq_ignore_ascii_case(known.as_bytes())) {
                    return Err(Bad::Malformed("Connection names another header"));
                }
                said.close |= token.eq_ignore_ascii_case(b"close");
                said.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                said.upgrade_offered |= token.eq_ignore_ascii_case(b"upgrade");
            }
        } else if is("upgrade") {
            said.upgrades.extend(tokens(value));
        } else if is("expect") {
            said.odd_expect |= said.expects || !value.eq_ignore_ascii_case(b"100-continue");
            said.expects = true;
        } else if is_shadow(name) {
            said.shadowed = true;
        }
    }
    match (lengths, encodings) {
        (0 | 1, 0) | (0, 1) => Ok(said),
        (0, _) => Err(Bad::Malformed("several Transfer-Encoding")),
        (_, 0) => Err(Bad::Malformed("several Content-Length")),
        _ => Err(Bad::Malformed("Content-Length beside Transfer-Encoding")),
    }
}

/// `uri-host [":" port]` (RFC 3986 §3.2), and nothing that could carry a path, user information, a second host or a
/// second port.
#[must_use]
pub fn is_authority(value: &[u8]) -> bool {
    let port = |rest: &[u8]| match rest {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if let [b'[', literal @ ..] = value {
        // An address alone: what other literals there may be (`IPvFuture`, zones), no two servers agree on.
        let Some(end) = literal.iter().position(|b| *b == b']') else { return false };
        let text = std::str::from_utf8(&literal[..end]).unwrap_or_default();
        return text.parse::<Ipv6Addr>().is_ok() && port(&literal[end + 1..]);
    }
    let end = value.iter().position(|b| *b == b':').unwrap_or(value.len());
    value[..end].iter().all(is_name_byte) && port(&value[end..])
}

/// What a registered name is made of, but for the comma, at which some part a list.
const fn is_name_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b';'
                | b'='
        )
}

fn text(raw: &[u8], range: Range<usize>) -> String {
    String::from_utf8_lossy(&raw[range]).into_owned()
}

/// What the connection is to become.
fn upgrade(said: &Said<'_>, asked: (&str, u8, Framing)) -> Upgrade {
    match said.upgrades.as_slice() {
        [] if !said.upgrade_offered => Upgrade::No,
        offers if !offers.is_empty() && offers.iter().all(|o| o.eq_ignore_ascii_case(b"h2c")) => Upgrade::H2c,
        // RFC 6455 §4.1: by GET, in HTTP/1.1, without a body.
        [offer]
            if offer.eq_ignore_ascii_case(b"websocket")
                && said.upgrade_offered
                && asked == ("GET", 1, Framing::Empty)
                && !said.expects =>
        {
            Upgrade::WebSocket
        }
        _ => Upgrade::Other,
    }
}

impl RequestHead {
    /// Reads and checks a head that [`find_end`] has found to be whole.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn parse(whole: &[u8]) -> Result<Self, Bad> {
        let raw = Bytes::copy_from_slice(&whole[leading_lines(whole)..]);
        if has_stray_control(&raw) {
            return Err(Bad::Malformed("a control character"));
        }
        let mut slots = [httparse::EMPTY_HEADER; HEAD_FIELDS];
        let mut request = httparse::Request::new(&mut slots);
        match request.parse(&raw).map_err(grammar)? {
            httparse::Status::Complete(length) if length == raw.len() => {}
            _ => return Err(Bad::Malformed("the head")),
        }
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
        else {
            return Err(Bad::Malformed("the request line"));
        };
        if target.len() > TARGET_BYTES {
            return Err(Bad::TargetTooLong);
        }
        let line_end = memchr(b'\r', &raw).unwrap_or(0) + 2;
        let fields = split_fields(&raw, line_end);
        let mut judged = judged(&raw, &fields, request.headers.len())?;
        let said = read_fields(&raw, &fields)?;
        let host = one_host(said.host, said.hosts, minor)?;
        let target_at = method.len() + 1..method.len() + 1 + target.len();
        let path = path_of(method, target, host.as_deref())?;
        let path = target_at.start + path.start..target_at.start + path.end;
        if said.chunked && minor == 0 {
            return Err(Bad::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        if said.shadowed {
            return Err(Bad::Malformed("an underscore where a framing header has a hyphen"));
        }
        let framing = match (said.chunked, said.length) {
            (true, _) => Framing::Chunked,
            (_, Some(length)) if length > 0 => Framing::Length(length),
            _ => Framing::Empty,
        };
        // RFC 9110 §10.1.1: one expectation there is, of requests with a body, and none in HTTP/1.0. Servers that are
        // asked otherwise have been seen to forget the body.
        let baseless = said.expects && (framing == Framing::Empty || minor == 0);
        if said.odd_expect || baseless {
            return Err(Bad::Malformed("Expect"));
        }
        let upgrade = upgrade(&said, (method, minor, framing));
        if upgrade == Upgrade::H2c {
            judged.retain(|(name, _)| name != http::header::UPGRADE && name != "http2-settings");
        }
        let query = (raw.get(path.end) == Some(&b'?')).then(|| text(&raw, path.end + 1..target_at.end));
        let asked = judge::Said {
            version: HttpVersion::Http1,
            protocol: None,
            method: method.to_owned(),
            path: text(&raw, path.clone()),
            query,
            host,
            headers: judged,
        };
        Ok(Self {
            said: Arc::new(asked),
            target: target_at,
            path,
            minor,
            framing,
            close: said.close || (minor == 0 && !said.keep_alive),
            expects: said.expects,
            upgrade,
            fields,
            raw,
        })
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.said.method
    }

    /// The values of a field, by its name in lower case.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        self.fields
            .iter()
            .filter(move |field| self.raw[field.name.clone()].eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| &self.raw[field.value.clone()])
    }

    /// The bytes that go on: the very bytes that came, unless something must change.
    #[must_use]
    pub fn forward(&self, changes: &Changes) -> Bytes {
        if changes.path.is_none() && changes.traceparent.is_none() && self.upgrade != Upgrade::H2c {
            return self.raw.clone();
        }
        let mut out = BytesMut::with_capacity(self.raw.len() + 64);
        match &changes.path {
            None => out.extend_from_slice(&self.raw[..self.target.end]),
            Some(path) => {
                out.extend_from_slice(&self.raw[..self.path.start]);
                out.extend_from_slice(path.as_bytes());
                out.extend_from_slice(&self.raw[self.path.end..self.target.end]);
            }
        }
        let fields_start = self.fields.first().map_or(self.raw.len() - 2, |field| field.line.start);
        out.extend_from_slice(&self.raw[self.target.end..fields_start]);
        for field in &self.fields {
            let name = &self.raw[field.name.clone()];
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            match &changes.traceparent {
                Some(value) if is("traceparent") => {
                    out.extend_from_slice(&self.raw[field.line.start..field.value.start]);
                    out.extend_from_slice(value.as_bytes());
                    out.extend_from_slice(b"\r\n");
                }
                _ if self.upgrade == Upgrade::H2c && (is("upgrade") || is("http2-settings")) => {}
                _ if self.upgrade == Upgrade::H2c && is("connection") => {
                    self.without_upgrade(field, &mut out);
                }
                _ => out.extend_from_slice(&self.raw[field.line.clone()]),
            }
        }
        out.extend_from_slice(b"\r\n");
        out.freeze()
    }

    /// A `Connection` line without the options of an upgrade that is not passed on.
    fn without_upgrade(&self, field: &Field, out: &mut BytesMut) {
        let kept: Vec<&[u8]> = tokens(&self.raw[field.value.clone()])
            .filter(|t| !t.eq_ignore_ascii_case(b"upgrade") && !t.eq_ignore_ascii_case(b"http2-settings"))
            .collect();
        if !kept.is_empty() {
            out.extend_from_slice(&self.raw[field.line.start..field.value.start]);
            out.extend_from_slice(&kept.join(&b", "[..]));
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn one_host(host: Option<&[u8]>, count: usize, minor: u8) -> Result<Option<String>, Bad> {
    match (host, count) {
        (None, _) if minor == 0 => Ok(None),
        (None, _) => Err(Bad::Malformed("no Host")),
        (Some(host), 1) if is_authority(host) => Ok(Some(String::from_utf8_lossy(host).into_owned())),
        (Some(_), 1) => Err(Bad::Malformed("Host")),
        _ => Err(Bad::Malformed("several Host")),
    }
}

/// Where the path is in the target. An absolute target must name the host that `Host` names: a server goes by one
/// or the other.
fn path_of(method: &str, target: &str, host: Option<&str>) -> Result<Range<usize>, Bad> {
    // RFC 9112 §3.2: no form has a fragment; some cut it off, to others it is a part of the path.
    if target.contains('#') {
        return Err(Bad::Malformed("a fragment in the target"));
    }
    if method == "CONNECT" {
        // RFC 9112 §3.2.3: the target is where to, and Host says the same.
        return match host.is_some_and(|host| host.eq_ignore_ascii_case(target)) {
            true => Ok(0..target.len()),
            false => Err(Bad::Malformed("the target is not Host")),
        };
    }
    let start = if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        0
    } else {
        let rest = ["http://", "https://"].iter().find_map(|scheme| {
            let head = target.get(..scheme.len())?;
            head.eq_ignore_ascii_case(scheme).then_some(scheme.len())
        });
        let authority_at = rest.ok_or(Bad::Malformed("the target"))?;
        let length = target[authority_at..].find(['/', '?']).unwrap_or(target.len() - authority_at);
        let authority = &target[authority_at..authority_at + length];
        if length == 0 || !host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) {
            return Err(Bad::Malformed("the target's host is not Host"));
        }
        authority_at + length
    };
    let end = target[start..].find('?').map_or(target.len(), |query| start + query);
    Ok(start..end)
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    raw: Bytes,
    fields: Vec<Field>,
    /// The status.
    pub status: u16,
    /// The body.
    pub framing: Framing,
    /// The server wants no other request on this connection.
    pub close: bool,
}

impl ResponseHead {
    /// Reads and checks a head that [`find_end`] has found to be whole.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn parse(whole: &[u8], to_head: bool) -> Result<Self, Bad> {
        let raw = Bytes::copy_from_slice(&whole[leading_lines(whole)..]);
        if has_stray_control(&raw) {
            return Err(Bad::Malformed("a control character"));
        }
        let mut slots = [httparse::EMPTY_HEADER; HEAD_FIELDS];
        let mut response = httparse::Response::new(&mut slots);
        match response.parse(&raw).map_err(grammar)? {
            httparse::Status::Complete(length) if length == raw.len() => {}
            _ => return Err(Bad::Malformed("the head")),
        }
        let (Some(status), Some(minor)) = (response.code, response.version) else {
            return Err(Bad::Malformed("the status line"));
        };
        let line_end = memchr(b'\r', &raw).unwrap_or(0) + 2;
        let fields = split_fields(&raw, line_end);
        if fields.len() != response.headers.len() {
            return Err(Bad::Malformed("the header section"));
        }
        // A server's Connection may name what it likes: nothing of it was judged.
        let without_connection =
            fields.iter().filter(|f| !raw[f.name.clone()].eq_ignore_ascii_case(b"connection"));
        let said = read_fields(&raw, without_connection)?;
        if said.chunked && minor == 0 {
            return Err(Bad::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let option = |wanted: &[u8]| {
            let lines = fields.iter().filter(|f| raw[f.name.clone()].eq_ignore_ascii_case(b"connection"));
            lines.flat_map(|f| tokens(&raw[f.value.clone()])).any(|token| token.eq_ignore_ascii_case(wanted))
        };
        let close = option(b"close") || (minor == 0 && !option(b"keep-alive"));
        let framing = match (said.chunked, said.length) {
            _ if to_head || matches!(status, 100..=199 | 204 | 304) => Framing::Empty,
            (true, _) => Framing::Chunked,
            (_, Some(0)) => Framing::Empty,
            (_, Some(length)) => Framing::Length(length),
            _ => Framing::UntilClose,
        };
        Ok(Self { status, framing, close: close || framing == Framing::UntilClose, fields, raw })
    }

    /// Whether the server switches to a WebSocket, and to nothing else (RFC 9110 §7.8).
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        let named = |field: &&Field| self.raw[field.name.clone()].eq_ignore_ascii_case(b"upgrade");
        let mut offers =
            self.fields.iter().filter(named).flat_map(|field| tokens(&self.raw[field.value.clone()]));
        self.status == 101
            && offers.next().is_some_and(|token| token.eq_ignore_ascii_case(b"websocket"))
            && offers.next().is_none()
    }

    /// The bytes that go on; with `Connection: close` in place of any other where the connection is to end.
    #[must_use]
    pub fn forward(&self, closing: bool) -> Bytes {
        if !closing {
            return self.raw.clone();
        }
        let mut out = BytesMut::with_capacity(self.raw.len() + 24);
        let fields_start = self.fields.first().map_or(self.raw.len() - 2, |field| field.line.start);
        out.extend_from_slice(&self.raw[..fields_start]);
        for field in &self.fields {
            if !self.raw[field.name.clone()].eq_ignore_ascii_case(b"connection") {
                out.extend_from_slice(&self.raw[field.line.clone()]);
            }
        }
        out.extend_from_slice(b"connection: close\r\n\r\n");
        out.freeze()
    }
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
