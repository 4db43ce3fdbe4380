//! What a header block says: the request as it is judged, or what matters of an answer (RFC 9113 §8).
//!
//! Strict: whatever two servers could read differently is no message. The same library reads methods, authorities and
//! targets as on the rewriting path, and the same rules hold for hosts. Knows nothing of streams or of policy.

use crate::answer::Refusal;
use crate::detect::is_token;
use crate::http1::body::is_no_trailer;
use crate::http1::head::{is_authority, is_shadow};
use crate::http2::hpack::{Encoder, Line, Name, Pseudo};
use crate::judge;
use crate::limits::TARGET_BYTES;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use sluice_policy::HttpVersion;

/// The block is no message: an error of its stream (§8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http2) struct Malformed;

/// Pseudo-header fields by name.
#[derive(Default)]
struct Pseudos<'a> {
    authority: Option<&'a HeaderValue>,
    method: Option<&'a HeaderValue>,
    path: Option<&'a HeaderValue>,
    protocol: Option<&'a HeaderValue>,
    scheme: Option<&'a HeaderValue>,
    status: Option<&'a HeaderValue>,
}

/// The pseudo-header fields, each once and before all others, and the ordinary ones: none that is about the connection
/// (§8.2.2).
fn split(lines: &[Line]) -> Result<(Pseudos<'_>, Vec<judge::Field>), Malformed> {
    let mut pseudos = Pseudos::default();
    let mut fields = Vec::with_capacity(lines.len());
    for line in lines {
        match &line.name {
            Name::Bad => return Err(Malformed),
            Name::Pseudo(pseudo) => {
                let place = match pseudo {
                    Pseudo::Authority => &mut pseudos.authority,
                    Pseudo::Method => &mut pseudos.method,
                    Pseudo::Path => &mut pseudos.path,
                    Pseudo::Protocol => &mut pseudos.protocol,
                    Pseudo::Scheme => &mut pseudos.scheme,
                    Pseudo::Status => &mut pseudos.status,
                };
                if !fields.is_empty() || place.replace(&line.value).is_some() {
                    return Err(Malformed);
                }
            }
            Name::Field(name) if is_of_the_connection(name, &line.value) => return Err(Malformed),
            Name::Field(name) => fields.push((name.clone(), line.value.clone())),
        }
    }
    Ok((pseudos, fields))
}

fn is_of_the_connection(name: &HeaderName, value: &HeaderValue) -> bool {
    let named = [CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name);
    named || name == "keep-alive" || name == "proxy-connection" || (name == TE && value != "trailers")
}

/// How long the body is said to be. Whoever says it twice has to say the same.
fn length(fields: &[judge::Field]) -> Result<Option<u64>, Malformed> {
    let mut said = None;
    for (_, value) in fields.iter().filter(|(name, _)| name == CONTENT_LENGTH) {
        let text = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length: u64 = text.and_then(|text| text.parse().ok()).ok_or(Malformed)?;
        if said.is_some_and(|said| said != length) {
            return Err(Malformed);
        }
        said = Some(length);
    }
    Ok(said)
}

/// Why a field of a request is read differently by different servers, if one is. The first ones are of those who put
/// requests into HTTP/1.1: blanks at either end (RFC 9113 §8.2.1), two lengths, and names that CGI takes for framing's.
pub(in crate::http2) fn odd_field<'a>(
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) -> Option<Refusal> {
    let mut lengths = 0;
    for (name, value) in fields {
        if has_blank_ends(value) {
            return Some(Refusal::Malformed("a value that begins or ends with a blank"));
        }
        if is_shadow(name.as_str().as_bytes()) {
            return Some(Refusal::Malformed("an underscore where a framing header has a hyphen"));
        }
        lengths += usize::from(name == CONTENT_LENGTH);
        if lengths > 1 {
            return Some(Refusal::Malformed("several Content-Length"));
        }
    }
    None
}

/// Whether it is a scheme that is served here: what else it may be, gateways have put into URLs as it came.
pub(in crate::http2) fn is_scheme(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
}

fn has_blank_ends(value: &HeaderValue) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    blank(value.as_bytes().first()) || blank(value.as_bytes().last())
}

/// Why a request for a tunnel is read differently by different servers, if it is: CONNECT has no body (RFC 9110
/// §9.3.6), and what it asks for is one name.
pub(in crate::http2) fn odd_tunnel<'a>(
    protocol: Option<&str>,
    mut fields: impl Iterator<Item = &'a HeaderName>,
) -> Option<Refusal> {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_token);
    if !protocol.is_none_or(is_name) {
        return Some(Refusal::Malformed(":protocol"));
    }
    fields.any(|name| name == CONTENT_LENGTH).then_some(Refusal::Malformed("Content-Length in CONNECT"))
}

/// The path as it is judged: of a CONNECT its target, as in HTTP/1 (RFC 9112 §3.2.3).
pub(in crate::http2) fn path_of(uri: &Uri, connect: bool) -> String {
    match uri.authority().filter(|_| connect) {
        Some(authority) => authority.as_str().to_owned(),
        None => uri.path().to_owned(),
    }
}

/// Whether a field may come after a request's body.
pub(in crate::http2) fn is_trailer(name: &HeaderName, value: &HeaderValue) -> bool {
    !is_no_trailer(name.as_str()) && !has_blank_ends(value)
}

/// A request.
#[derive(Debug)]
pub(in crate::http2) struct Asked {
    pub(in crate::http2) said: judge::Said,
    /// It is HTTP, but servers would read it differently.
    pub(in crate::http2) odd: Option<Refusal>,
    pub(super) method: Method,
    pub(super) length: Option<u64>,
    /// What has to be said otherwise.
    pub(super) rewrite: Rewrite,
}

/// Fields that do not go on as they came.
#[derive(Debug, Default)]
pub(super) struct Rewrite {
    /// `:path`.
    pub(super) path: Option<String>,
    /// `:authority`, which was not sent.
    pub(super) authority: Option<HeaderValue>,
    /// `traceparent`.
    pub(super) traceparent: Option<String>,
}

impl Rewrite {
    pub(super) fn is_none(&self) -> bool {
        self.path.is_none() && self.authority.is_none() && self.traceparent.is_none()
    }

    /// The block with it, such that it needs no table.
    pub(super) fn encode(&self, lines: &[Line], block: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        if let Some(authority) = &self.authority {
            encoder.field(&Name::Pseudo(Pseudo::Authority), authority.as_bytes(), false);
        }
        for line in lines {
            let other = match &line.name {
                Name::Pseudo(Pseudo::Path) => self.path.as_deref(),
                Name::Field(name) if name == "traceparent" => self.traceparent.as_deref(),
                _ => None,
            };
            match other {
                Some(value) => encoder.field(&line.name, value.as_bytes(), false),
                None => encoder.line(line, block),
            }
        }
        encoder.finish()
    }
}

fn shared(value: &HeaderValue) -> Bytes {
    // A copy: the library's types take bytes, and a value does not give its own away.
    Bytes::copy_from_slice(value.as_bytes())
}

/// Reads a request. `offered`: the client was told that it may extend CONNECT.
pub(in crate::http2) fn request(lines: &[Line], end: bool, offered: bool) -> Result<Asked, Malformed> {
    let (pseudos, mut fields) = split(lines)?;
    let method =
        pseudos.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok()).ok_or(Malformed)?;
    let connect = method == Method::CONNECT;
    // What extends CONNECT is of CONNECT alone, and of those who were offered it (RFC 8441 §3, §4).
    if pseudos.status.is_some() || (pseudos.protocol.is_some() && !(connect && offered)) {
        return Err(Malformed);
    }
    let extended = pseudos.protocol.is_some();
    let sent = pseudos.path;
    // CONNECT alone has neither, any other has both (RFC 9113 §8.3.1, §8.5, RFC 8441 §4).
    let there = [pseudos.scheme.is_some(), sent.is_some()];
    if there != [!connect || extended; 2] {
        return Err(Malformed);
    }
    let protocol = pseudos
        .protocol
        .map(|name| std::str::from_utf8(name.as_bytes()).map_err(|_| Malformed))
        .transpose()?;
    let uri = uri(&pseudos)?;
    let length = length(&fields)?;
    if end && length.is_some_and(|length| length > 0) {
        return Err(Malformed);
    }
    let mut rewrite = Rewrite::default();
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
    if sent.is_some_and(|sent| sent.as_bytes() != target.as_bytes()) {
        // The library has left something out that is no part of a target: a fragment.
        rewrite.path = Some(target.to_owned());
    }
    let hosts: Vec<HeaderValue> =
        fields.iter().filter(|(name, _)| name == HOST).map(|(_, value)| value.clone()).collect();
    let odd_scheme =
        pseudos.scheme.filter(|scheme| !is_scheme(scheme.as_bytes())).map(|_| Refusal::Malformed(":scheme"));
    let odd_tunnel = || connect.then(|| odd_tunnel(protocol, fields.iter().map(|(name, _)| name))).flatten();
    let plain = odd_field(fields.iter().map(|(name, value)| (name, value)))
        .or(odd_scheme)
        .or_else(odd_tunnel)
        .map_or(Ok(()), Err);
    let odd = match plain.and_then(|()| settle(&uri, &hosts, connect && !extended)) {
        Ok(authority) => {
            rewrite.authority = authority;
            None
        }
        Err(refusal) => Some(refusal),
    };
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let authority = pseudos.authority.filter(|authority| !authority.is_empty());
    // A condition on `host` holds in HTTP/2 as well.
    if let (true, Some(authority)) = (hosts.is_empty(), authority) {
        fields.push((HOST, authority.clone()));
    }
    let host = authority.or(hosts.first()).map(text);
    let said = judge::Said {
        version: HttpVersion::Http2,
        method: method.as_str().to_owned(),
        path: path_of(&uri, connect && !extended),
        query: uri.query().map(str::to_owned),
        host,
        headers: fields,
        protocol: protocol.map(str::to_owned),
    };
    Ok(Asked { said, odd, method, length, rewrite })
}

/// The target, as the library reads it.
fn uri(pseudos: &Pseudos<'_>) -> Result<Uri, Malformed> {
    let mut parts = http::uri::Parts::default();
    if let Some(authority) = pseudos.authority {
        parts.authority = Some(Authority::from_maybe_shared(shared(authority)).map_err(|_| Malformed)?);
    }
    if let Some(scheme) = pseudos.scheme {
        let scheme = Scheme::try_from(scheme.as_bytes()).map_err(|_| Malformed)?;
        parts.scheme = parts.authority.is_some().then_some(scheme);
    }
    if let Some(path) = pseudos.path {
        if path.is_empty() {
            return Err(Malformed);
        }
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(shared(path)).map_err(|_| Malformed)?);
    }
    Uri::from_parts(parts).map_err(|_| Malformed)
}

/// Makes sure that there is one host: `:authority` and `Host` must agree, and `Host` alone becomes `:authority`, which
/// is returned (§8.3.1).
fn settle(uri: &Uri, hosts: &[HeaderValue], connect: bool) -> Result<Option<HeaderValue>, Refusal> {
    if uri.path_and_query().map_or(0, |target| target.as_str().len()) > TARGET_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    let host = match hosts {
        [] => None,
        [host] => Some(host),
        _ => return Err(Refusal::Malformed("several Host")),
    };
    if let Some(authority) = uri.authority() {
        if !is_authority(authority.as_str().as_bytes()) {
            return Err(Refusal::Malformed(":authority"));
        }
        let differs =
            |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
        return if host.is_some_and(differs) {
            Err(Refusal::Malformed("Host is not :authority"))
        } else {
            Ok(None)
        };
    }
    let host =
        host.filter(|host| is_authority(host.as_bytes())).ok_or(Refusal::Malformed("no :authority"))?;
    Authority::try_from(host.as_bytes()).map_err(|_| Refusal::Malformed("Host"))?;
    // CONNECT has its target in `:authority` alone (§8.5).
    if connect {
        return Err(Refusal::Malformed("the target"));
    }
    Ok(Some(host.clone()))
}

/// An answer's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) grpc_status: Option<u32>,
    pub(super) length: Option<u64>,
}

/// Reads an answer's head. `bare`: it answers HEAD.
pub(super) fn answer(lines: &[Line], end: bool, bare: bool) -> Result<Answered, Malformed> {
    let (pseudos, fields) = split(lines)?;
    let others = [pseudos.authority, pseudos.method, pseudos.path, pseudos.protocol, pseudos.scheme];
    if others.iter().any(Option::is_some) {
        return Err(Malformed);
    }
    let status =
        pseudos.status.and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok()).ok_or(Malformed)?;
    // An interim answer has no body, and HTTP/2 no 101 (§8.6).
    if status.is_informational() && (end || status == StatusCode::SWITCHING_PROTOCOLS) {
        return Err(Malformed);
    }
    let bodiless = bare || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    let said = length(&fields)?;
    // Whatever is said there is the length of a body that does not come (RFC 9110 §8.6).
    let length = if bodiless { Some(0) } else { said.filter(|_| !status.is_informational()) };
    if end && length.is_some_and(|length| length > 0) {
        return Err(Malformed);
    }
    Ok(Answered { status, grpc_status: grpc_status(&fields), length })
}

/// Reads trailers.
pub(super) fn trailers(lines: &[Line]) -> Result<Vec<judge::Field>, Malformed> {
    match split(lines)? {
        (
            Pseudos { authority: None, method: None, path: None, protocol: None, scheme: None, status: None },
            fields,
        ) => Ok(fields),
        _ => Err(Malformed),
    }
}

/// What a gRPC call came to.
pub(super) fn grpc_status(fields: &[judge::Field]) -> Option<u32> {
    let (_, value) = fields.iter().find(|(name, _)| name == "grpc-status")?;
    value.to_str().ok()?.parse().ok()
}

/// A block of ours: an answer's head, or trailers.
pub(super) fn encode(status: Option<StatusCode>, fields: &http::HeaderMap) -> Vec<u8> {
    let mut encoder = Encoder::default();
    if let Some(status) = status {
        encoder.field(&Name::Pseudo(Pseudo::Status), status.as_str().as_bytes(), false);
    }
    for (name, value) in fields {
        encoder.field(&Name::Field(name.clone()), value.as_bytes(), value.is_sensitive());
    }
    encoder.finish()
}
