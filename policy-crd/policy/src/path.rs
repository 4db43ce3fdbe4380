//! The readings of a request path: one strict reading for allows, every plausible one for denies.
//!
//! An allow must know exactly what the server will serve; a deny must not be walked round by a spelling. So an
//! allow matches only a path on which all servers agree after RFC 3986 normalisation (§6.2.2: case of escapes,
//! decoding of unreserved characters, dot segments), and a deny matches if any reading of it does.

mod lenient;
mod readings;

use readings::Readings;
use std::borrow::Cow;
use std::sync::OnceLock;

/// A request path, read in the ways that matter.
#[derive(Clone, Debug)]
pub struct Path<'a> {
    raw: &'a str,
    strict: Option<Cow<'a, str>>,
    /// Read once, when the first deny asks.
    readings: OnceLock<Readings>,
}

impl<'a> Path<'a> {
    /// Reads the path of a request target, without its query.
    #[must_use]
    pub fn new(raw: &'a str) -> Self {
        Self { raw, strict: strict(raw), readings: OnceLock::new() }
    }

    /// The bytes as they came.
    #[must_use]
    pub const fn raw(&self) -> &'a str {
        self.raw
    }

    /// The one reading that allows match, or `None` where readers could differ.
    #[must_use]
    pub fn strict(&self) -> Option<&str> {
        self.strict.as_deref()
    }

    /// Whether what was judged differs from what was sent, so that the strict reading must go on.
    #[must_use]
    pub fn rewritten(&self) -> Option<&str> {
        match &self.strict {
            Some(Cow::Owned(strict)) if strict != self.raw => Some(strict),
            _ => None,
        }
    }

    /// Whether the path has no readings but itself and those that are [alike](Self::alike); most paths are so.
    pub(crate) fn is_plain(&self) -> bool {
        let dots_at_end = || self.raw.ends_with('.') || self.raw.contains("./");
        matches!(self.strict, Some(Cow::Borrowed(_))) && !self.raw.contains('%') && !dots_at_end()
    }

    /// What routers take for a plain path: in lower case, without the slash at its end.
    pub(crate) fn alike(&self) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
        readings::alike(self.raw)
    }

    /// As [`any_reading`](Self::any_reading), for a test that does not mind the case: no other case is tried.
    pub(crate) fn any_reading_in_any_case(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        if self.is_plain() {
            return test(self.raw) || readings::shorter(self.raw).is_some_and(test);
        }
        self.any_reading(test)
    }

    /// Whether any reading satisfies `test`. Only denies ask this. With a reading those are among them that routers
    /// take for the same path: in lower case, without the slash at its end.
    pub fn any_reading(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        if test(self.raw) || self.strict.as_deref().is_some_and(&mut test) {
            return true;
        }
        if self.is_plain() {
            return self.alike().any(|reading| test(&reading));
        }
        let readings = self.readings.get_or_init(|| Readings::of(self.raw));
        readings.bottomless || readings.texts.iter().any(|reading| test(reading))
    }
}

/// A path of a policy, spelt as the strict reading of a request spells it. One without a strict reading stays as
/// written: it can still be met by a deny's other readings.
pub(crate) fn pattern(value: &str) -> String {
    strict(&escaped(value.as_bytes())).map_or_else(|| value.to_owned(), Cow::into_owned)
}

/// Bytes with an escape for each that no path may have.
fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if is_path_byte(byte) || byte == b'%' || byte == b'\\' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The strict reading, or `None` where two servers could serve different things.
fn strict(raw: &str) -> Option<Cow<'_, str>> {
    if raw == "*" {
        return Some(Cow::Borrowed(raw)); // OPTIONS * (RFC 9112 §3.2.4)
    }
    if !raw.starts_with('/') {
        return None;
    }
    let plain = raw.bytes().all(|b| is_path_byte(b) && b != b'%')
        && !raw.contains("//")
        && !raw.contains(';')
        && !raw.contains("/.");
    if plain {
        return Some(Cow::Borrowed(raw));
    }
    let normalised = normalise_escapes(raw)?;
    if normalised.contains(';') || normalised.contains("//") {
        return None;
    }
    // A slash or a dot to a decoder that does not check: overlong UTF-8, full-width forms.
    if normalised.contains('%') && lenient::hides_structure(&decode_bytes(normalised.as_bytes())) {
        return None;
    }
    let resolved = resolve_strictly(&normalised)?;
    // `/a/.%2e/b` decodes to dot segments too, which is why they are resolved after the escapes.
    Some(if resolved == raw { Cow::Borrowed(raw) } else { Cow::Owned(resolved) })
}

/// RFC 3986 §6.2.2.1 and §6.2.2.2: upper-case escapes, unreserved characters decoded.
fn normalise_escapes(raw: &str) -> Option<String> {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let value = escape(bytes, at)?;
            match value {
                // A slash, a backslash, a NUL or another control byte in disguise.
                b'/' | b'\\' | b';' | 0..=0x1f | 0x7f => return None,
                _ if is_unreserved(value) => out.push(char::from(value)),
                _ => out.push_str(&format!("%{value:02X}")),
            }
            at += 3;
        } else if is_path_byte(byte) {
            out.push(char::from(byte));
            at += 1;
        } else {
            return None;
        }
    }
    // `/100%25` is a percent sign to everybody, `/%252e` an escape to whoever decodes twice.
    let twice = out.match_indices("%25").any(|(at, found)| {
        let mut rest = out.bytes().skip(at + found.len());
        let mut hex = || rest.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        hex() && hex()
    });
    (!twice).then_some(out)
}

/// RFC 3986 §5.2.4, but `..` at the root has nowhere to go and is refused.
fn resolve_strictly(path: &str) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path[1..].split('/').collect();
    let last = segments.len() - 1;
    let mut directory = false;
    for (index, segment) in segments.iter().enumerate() {
        directory = false;
        match *segment {
            "." => directory = index == last,
            ".." => {
                kept.pop()?;
                directory = index == last;
            }
            // Three and more dots mean a parent to some servers.
            dots if dots.len() > 2 && dots.bytes().all(|b| b == b'.') => return None,
            other if is_dots_to_some(other) => return None,
            other => kept.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if directory || out.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// Whether what is behind the dots of a segment is dropped by some: a blank at the end of a name, or what begins a
/// query or a fragment to who decodes first.
fn is_dots_to_some(segment: &str) -> bool {
    segment.split_once('%').is_some_and(|(dots, rest)| {
        let dropped = ["20", "23", "3F"].iter().any(|escape| rest.starts_with(escape));
        dropped && !dots.is_empty() && dots.bytes().all(|b| b == b'.')
    })
}

/// A text with its percent-escapes decoded once.
pub(crate) fn decode_once(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(String::from_utf8_lossy(&decode_bytes(text.as_bytes())).into_owned())
}

/// Bytes with their percent-escapes decoded once.
fn decode_bytes(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%'
            && let Some(value) = escape(bytes, at)
        {
            out.push(value);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    out
}

fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let value = hex(*bytes.get(at + 1)?)? * 16 + hex(*bytes.get(at + 2)?)?;
    u8::try_from(value).ok()
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §3.3 `pchar` without escapes, and the slash.
const fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' | b'/'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_reading_normalises_what_all_servers_agree_on() {
        for (raw, strict) in [
            ("/", "/"),
            ("*", "*"),
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/%61%2D", "/a-"),
            ("/a%2e%2e/b", "/a../b"),
            ("/a/%2e%2E/b", "/b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%20b", "/a%20b"),
            ("/100%25", "/100%25"),
            ("/a%25%7eb", "/a%25~b"),
        ] {
            assert_eq!(Path::new(raw).strict(), Some(strict), "{raw}");
        }
    }

    #[test]
    fn strict_reading_refuses_what_servers_read_differently() {
        for raw in [
            "",
            "a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "//a",
            "/a//b",
            "/a;x",
            "/a/..;/b",
            "/..",
            "/../a",
            "/a/../../b",
            "/%",
            "/%4",
            "/%zz",
            "/a%252fb",
            "/a%25%32f",
            "/%252e%252e/b",
            "/.../a",
            "/a%3bx",
            "/a b",
            "/é",
            "/a/%2e%2e/%2e%2e/b",
            "/a/%c0%ae%c0%ae/b",
            "/a%c0%afb",
            "/a%e0%80%afb",
            "/a%ef%bc%8fb",
            "/a%e2%80%a5/b",
            "/a/%c0%2e/b",
            "/a%u002fb",
            "/a/..%20/b",
            "/a/..%3fb",
            "/a/.%23",
        ] {
            assert_eq!(Path::new(raw).strict(), None, "{raw}");
        }
    }

    #[test]
    fn denies_see_through_spellings() {
        for raw in [
            "/admin",
            "//admin",
            "/x/../admin",
            "/%61dmin",
            "/x%2f..%2fadmin",
            "/admin;a=b",
            "/x/..;/admin",
            "/%2561dmin",
            "/\\admin",
            "/x\\..\\admin",
            "/./admin",
            "/admin%00.png",
            "/x/%252e%252e/admin",
            "/admin%3fx",
            "/%25252561dmin",
            "/..;x=y/admin",
            "/admin%20",
            "/admin%0a",
            "/ADMIN",
            "/Admin/x",
            "/admin.",
            "/x/.../admin",
            "/x/%c0%ae%c0%ae/admin",
            "/x%c0%af..%c0%afadmin",
            "/%c1%a1dmin",
            "/x/%u002e%u002e/admin",
            "/x/%ef%bc%8e%ef%bc%8e/admin",
            "/%ef%bd%81dmin",
            "/x/%25c0%25ae%25c0%25ae/admin",
            "http://cart/admin",
            "//evil/admin",
            "\\\\evil\\admin",
            "admin",
            "/ad%09min",
            "/admin/",
        ] {
            assert!(Path::new(raw).any_reading(|p| p == "/admin" || p.starts_with("/admin/")), "{raw}");
        }
        assert!(Path::new("/Admin/").any_reading(|p| p == "/admin"));
        assert!(!Path::new("/public").any_reading(|p| p == "/admin"));
        assert!(!Path::new("/administrator").any_reading(|p| p == "/admin" || p.starts_with("/admin/")));
        assert!(!Path::new("/x/%c3%a9/admins").any_reading(|p| p == "/admin" || p.starts_with("/admin/")));
        assert!(!Path::new("/a%20b").any_reading(|p| p == "/admin"));
    }

    #[test]
    fn what_was_judged_goes_on() {
        assert_eq!(Path::new("/a/../b").rewritten(), Some("/b"));
        assert_eq!(Path::new("/b").rewritten(), None);
        assert_eq!(Path::new("/.well-known").rewritten(), None);
    }
}
