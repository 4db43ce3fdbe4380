//! How a path is read: one way for allows, every way for denies.
//!
//! Source: DESIGN §5.8 and RFC 3986 (§5.2.4 dot segments, §6.2.2 normalisation).

use std::collections::BTreeSet;

/// "Allow rules match only the strict reading (RFC 3986 normalised; `%2f`, `%5c`, backslash, NUL, `//`, dot segments
/// that survive and `;` parameters in segments match no allow)." `None`: there is no such reading.
pub(crate) fn strict(path: &str) -> Option<String> {
    let mut normal = String::new();
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        if c == '%' {
            let byte = hex(rest.as_bytes())?;
            if matches!(byte, b'/' | b'\\' | 0) {
                return None;
            }
            // §6.2.2.2: what needs no escape loses it; §6.2.2.1: the others are written in upper case.
            let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            normal += &if unreserved { char::from(byte).to_string() } else { format!("%{byte:02X}") };
            rest = &rest[3..];
        } else {
            normal.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    // "Dot segments that survive": an escape that is there once the path is decoded is one to who decodes twice.
    let hex = |at: usize| normal.as_bytes().get(at).is_some_and(u8::is_ascii_hexdigit);
    if normal.match_indices("%25").any(|(at, _)| hex(at + 3) && hex(at + 4)) {
        return None;
    }
    // And those that survive in a decoder which takes overlong forms: two bytes that are no UTF-8 (Unicode 15 §3.9).
    if lenient_utf8(&decoded(&normal)) != decoded(&normal) {
        return None;
    }
    // Looked for before dot segments go: `/a//../b` is `/a/b` to one server and `/b` to another.
    let odd = normal.contains(['\\', '\0', ';']) || normal.contains("//") || !normal.starts_with('/');
    (!odd && !climbs(&normal)).then(|| without_dots(&normal))
}

/// Whether a `..` finds nothing to take away. DESIGN §5.8: "dot segments that survive … match no allow", and these do
/// where a server does not follow RFC 3986 §5.4.2 ("abnormal examples"), which asks for them to be dropped.
fn climbs(path: &str) -> bool {
    let mut depth = 0_i32;
    path.split('/').skip(1).any(|segment| {
        depth += match segment {
            ".." => -1,
            "." => 0,
            _ => 1,
        };
        depth < 0
    })
}

/// RFC 3986 §5.2.4 on an absolute path.
fn without_dots(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    out.pop();
                }
                // `/a/.` is the directory `/a/`.
                if last {
                    out.push("");
                }
            }
            other => out.push(other),
        }
    }
    format!("/{}", out.join("/"))
}

/// "Deny rules match if any reading matches." Every text that some server may make of this path: each step is
/// what some of them do, in whatever order and however often. The steps of `far` are rarer: that a deny considers
/// them is welcome, that it does not is no fault.
pub(crate) fn readings(path: &str, far: bool) -> BTreeSet<String> {
    /// More than any path of the generators has.
    const MOST: usize = 4_000;
    let near_steps: [fn(&str) -> String; 5] = [decoded, no_dots, merged, slashed, without_parameters];
    let far_steps: [fn(&str) -> String; 9] = [
        lenient_utf8,
        cut,
        trimmed,
        lower,
        no_trailing_slash,
        normal,
        rooted,
        without_authority,
        without_dots_at_end,
    ];
    let steps: Vec<_> = near_steps.into_iter().chain(far_steps.into_iter().filter(|_| far)).collect();
    let mut found = BTreeSet::from([path.to_owned()]);
    let mut new = vec![path.to_owned()];
    while let Some(text) = new.pop() {
        for step in &steps {
            let read = step(&text);
            if found.len() < MOST && found.insert(read.clone()) {
                new.push(read);
            }
        }
    }
    found
}

/// Percent-decoded once. Bytes that are no ASCII stand as Latin-1, which keeps them apart.
pub(crate) fn decoded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match hex(rest.as_bytes()).filter(|_| c == '%') {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[3..];
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

/// The byte that `%XX` at the front stands for.
fn hex(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| text.get(at).and_then(|c| char::from(*c).to_digit(16));
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

fn no_dots(path: &str) -> String {
    if path.starts_with('/') { without_dots(path) } else { path.to_owned() }
}

fn merged(path: &str) -> String {
    path.replace("//", "/")
}

fn slashed(path: &str) -> String {
    path.replace('\\', "/")
}

fn without_parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

/// Two-byte forms of `.`, `/` and `\` that no encoder may write and old decoders read.
fn lenient_utf8(path: &str) -> String {
    path.replace("\u{c0}\u{ae}", ".").replace("\u{c0}\u{af}", "/").replace("\u{c1}\u{9c}", "\\")
}

fn trimmed(path: &str) -> String {
    path.trim_end_matches(|c: char| c.is_ascii_whitespace() || c.is_control()).to_owned()
}

fn cut(path: &str) -> String {
    path.split(['\0', '?', '#']).next().unwrap_or_default().to_owned()
}

fn lower(path: &str) -> String {
    path.to_ascii_lowercase()
}

/// A path that is empty is `/` (RFC 9110 §4.2.3), and one without its first slash gets it.
fn rooted(path: &str) -> String {
    if path.starts_with('/') || path == "*" { path.to_owned() } else { format!("/{path}") }
}

/// `http://host/path` (RFC 9112 §3.2.2), and `//host/path` to who resolves a reference.
fn without_authority(path: &str) -> String {
    let rest = ["http://", "https://", "//"].iter().find_map(|before| path.strip_prefix(before));
    rest.map_or_else(
        || path.to_owned(),
        |rest| rest.split_once('/').map_or("/".to_owned(), |(_, path)| format!("/{path}")),
    )
}

/// Dots and blanks at the end of a name are dropped by some file systems, and three dots are two to some.
fn without_dots_at_end(path: &str) -> String {
    let name = |name: &str| {
        let bare = name.trim_end_matches(' ');
        if bare.chars().all(|c| c == '.') {
            return bare.chars().take(2).collect();
        }
        bare.trim_end_matches(['.', ' ']).to_owned()
    };
    path.split('/').map(name).collect::<Vec<String>>().join("/")
}

fn no_trailing_slash(path: &str) -> String {
    path.strip_suffix('/').filter(|shorter| !shorter.is_empty()).unwrap_or(path).to_owned()
}

fn normal(path: &str) -> String {
    strict(path).unwrap_or_else(|| path.to_owned())
}

/// `PathPrefix` is "by segment": `/a` is a prefix of `/a` and `/a/b`, not of `/ab`.
pub(crate) fn has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `RegularExpression` is "full match".
pub(crate) fn full_match(pattern: &str, text: &str) -> bool {
    let regex = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).expect("a regular expression");
    regex.is_match(text)
}
