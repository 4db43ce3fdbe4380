//! Every plausible reading of a path: what denies look through.
//!
//! Servers decode once, twice or never, resolve dots before or after they decode, merge slashes, drop parameters, cut
//! at what ends a text in C, and route without regard to case. A deny matches if any of that makes the request what
//! it names. Knows nothing of what a rule names.

use super::lenient;
use super::{decode_bytes, escaped, pattern};
use std::borrow::Cow;
use std::collections::HashSet;

/// Rounds of percent-decoding that denies look through. Servers behind gateways decode once or twice; a third
/// round costs little and ends the game.
const DECODE_ROUNDS: usize = 3;

/// Bytes that the readings of one path may have: some hundred readings of an honest one, of which most have two or
/// three. Nobody honest writes a path that has more, and each of them costs time.
const MOST_BYTES: usize = 512 * 1024;

/// Every plausible reading of a path.
#[derive(Clone, Debug, Default)]
pub(super) struct Readings {
    pub(super) texts: HashSet<String>,
    /// There are more readings than are looked at: any deny takes the path.
    pub(super) bottomless: bool,
    bytes: usize,
}

impl Readings {
    pub(super) fn of(raw: &str) -> Self {
        let mut readings = Self::default();
        readings.decode(raw.as_bytes().to_vec(), |bytes| bytes);
        // The same with a decoder that checks nothing, where it finds something else.
        readings.decode(raw.as_bytes().to_vec(), |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            let bytes = lenient::without_percent_u(&text).map_or_else(|| bytes.clone(), String::into_bytes);
            lenient::text(&bytes).map_or(bytes, String::into_bytes)
        });
        readings
    }

    /// Adds the readings of each round of decoding.
    fn decode(&mut self, mut bytes: Vec<u8>, read: impl Fn(Vec<u8>) -> Vec<u8>) {
        for _ in 0..=DECODE_ROUNDS {
            bytes = read(bytes);
            self.fold(&String::from_utf8_lossy(&bytes));
            if std::str::from_utf8(&bytes).is_err() {
                // Whoever decodes only what is text leaves those bytes escaped.
                self.fold(&escaped(&bytes));
            }
            let next = decode_bytes(&bytes);
            if next == bytes || self.bottomless {
                return;
            }
            bytes = next;
        }
        self.bottomless = true;
    }

    /// Adds the spellings a server may fold a path to, with an authority before it and without, whole and up to where
    /// a text ends in C or a line in a head.
    fn fold(&mut self, path: &str) {
        self.fold_on(path.to_owned());
        if let Some((before, _)) = path.split_once(char::is_control) {
            self.fold_on(before.to_owned());
        }
        for form in [path.to_owned(), slashed(path)] {
            if let Some(rest) = after_authority(&form) {
                self.fold_on(rest.to_owned());
            }
        }
    }

    /// Slashes, parameters, blanks and dot segments, each and together.
    fn fold_on(&mut self, path: String) {
        // One after the other: whoever does the later does not mind that an earlier is done.
        let steps: [fn(&str) -> String; 6] =
            [str::to_owned, slashed, without_controls, to_query, trimmed, without_dots_at_end];
        let mut base = path;
        for (number, step) in steps.into_iter().enumerate() {
            let next = step(&base);
            if (number > 0 && next == base) || self.bottomless {
                continue;
            }
            for form in [next.clone(), strip_parameters(&next)] {
                let merged = merge_slashes(&form);
                self.add(remove_dot_segments(&form));
                self.add(remove_dot_segments(&merged));
                self.add(merged);
                self.add(form);
            }
            base = next;
        }
    }

    /// Adds a reading, and what routers take for the same: as a pattern spells it too, since a regular expression is
    /// written against that.
    fn add(&mut self, reading: String) {
        if self.bottomless || self.texts.contains(&reading) {
            return;
        }
        let spelt = pattern(&reading);
        for text in alike(&reading).chain(alike(&spelt)) {
            self.insert(text.into_owned());
        }
        self.insert(spelt);
        self.insert(reading);
    }

    fn insert(&mut self, text: String) {
        self.bytes += text.len();
        self.bottomless |= self.bytes > MOST_BYTES;
        if !self.bottomless {
            self.texts.insert(text);
        }
    }
}

/// What many routers take for the same path: in another case, with a slash at its end.
pub(super) fn alike(path: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let lower = |path: &str| path.bytes().any(|b| b.is_ascii_uppercase()).then(|| path.to_ascii_lowercase());
    let shorter = shorter(path);
    let lower = [lower(path), shorter.and_then(lower)].into_iter().flatten().map(Cow::Owned);
    shorter.map(Cow::Borrowed).into_iter().chain(lower)
}

/// A path without the slash at its end, if it has one and more than that.
pub(super) fn shorter(path: &str) -> Option<&str> {
    path.strip_suffix('/').filter(|shorter| !shorter.is_empty())
}

/// The path of `http://host/path`, and of `//host/path` to those that resolve a reference (RFC 3986 §5.2.2).
fn after_authority(path: &str) -> Option<&str> {
    let (before, rest) = path.split_once("//")?;
    let is_scheme = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let authority = before.is_empty() || before.strip_suffix(':').is_some_and(is_scheme);
    authority.then(|| rest.find('/').map_or("/", |at| &rest[at..]))
}

fn slashed(path: &str) -> String {
    path.replace('\\', "/")
}

fn to_query(path: &str) -> String {
    path.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Blanks and control bytes at the end are cut off by some.
fn trimmed(path: &str) -> String {
    path.trim_end_matches(|c: char| c.is_ascii_whitespace() || c.is_control()).to_owned()
}

/// Tabs and line ends are taken out of the middle by parsers of the WHATWG's kind.
fn without_controls(path: &str) -> String {
    path.replace(char::is_control, "")
}

/// File systems that ignore dots and blanks at the end of a name, and to which three dots are two.
fn without_dots_at_end(path: &str) -> String {
    let segment = |segment: &str| -> String {
        let name = segment.trim_end_matches(' ');
        let dots = name.bytes().all(|b| b == b'.');
        if dots { name.chars().take(2).collect() } else { name.trim_end_matches(['.', ' ']).to_owned() }
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let body = path.strip_prefix('/').unwrap_or(path);
    let mut directory = false;
    for segment in body.split('/') {
        directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let mut out = format!("/{}", kept.join("/"));
    if directory && !out.ends_with('/') {
        out.push('/');
    }
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

fn strip_parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}
