//! Conditions on query parameters: exactly one occurrence for an allow, every suspicious one for a deny.
//!
//! A query is read as `application/x-www-form-urlencoded` (WHATWG URL §5.1), as most servers read it. Knows nothing
//! of paths or headers.

use crate::header::HeaderTest;
use crate::path::decode_once;
use crate::request::Request;
use std::borrow::Cow;
use std::sync::Arc;

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryMatch {
    /// The parameter's name, decoded; names are case-sensitive.
    pub name: Arc<str>,
    /// What of it.
    pub test: HeaderTest,
}

impl QueryMatch {
    /// What an allow sees of the parameter, `Ok` if it is what it must be.
    pub(crate) fn allows(&self, request: &Request<'_>) -> Result<(), &'static str> {
        let mut alike = pairs(request.query).filter(|(name, _)| self.is_alike(&decode_once(name)));
        match (alike.next(), alike.next()) {
            // Servers that split at `;` too, or decode twice, would see something else.
            _ if is_ambiguous(request.query) => Err("ambiguous"),
            (None, _) if self.test == HeaderTest::Absent => Ok(()),
            (None, _) => Err("absent"),
            (Some(_), Some(_)) => Err("given more than once"),
            (Some(_), None) if self.test == HeaderTest::Absent => Err("present"),
            (Some((name, _)), None) if name != &*self.name => Err("spelt in another way"),
            // A blank to some, a plus to others.
            (Some((_, value)), None) if value.contains('+') => Err("ambiguous"),
            (Some((_, value)), None) => {
                let value = decode_once(value);
                // Bytes that are no UTF-8 have no one reading.
                let readable = !value.contains(char::REPLACEMENT_CHARACTER);
                if readable && self.test.is_met_by(value.as_bytes()) { Ok(()) } else { Err("different") }
            }
        }
    }

    /// Whether a deny takes the query in any reading of it.
    pub(crate) fn denies(&self, request: &Request<'_>) -> bool {
        let query = request.query.unwrap_or_default();
        // An escaped `&` parts for whoever decodes before parting.
        let decoded = query.contains('%').then(|| decode_once(query));
        let mut pairs = loose_pairs(query).chain(decoded.iter().flat_map(|text| loose_pairs(text)));
        let meets = |value: &str| {
            // A fragment is no part of the query, and a NUL ends a text to some.
            let cut = value.split(['#', '\0']).next().unwrap_or_default();
            let members = value.split(',').map(str::trim);
            members.chain([value, cut]).any(|member| self.test.is_met_by(member.as_bytes()))
        };
        if self.test == HeaderTest::Absent {
            return loose_pairs(query).all(|(name, _)| name != &*self.name);
        }
        pairs.any(|(name, value)| {
            let named = readings(name).any(|reading| self.is_alike(&reading));
            named && (self.test == HeaderTest::Present || readings(value).any(|reading| meets(&reading)))
        })
    }

    /// Whether some server takes this name for the parameter's: in any case, `_` beside `-` (and `.` and a blank, as
    /// PHP has it), and `name[]` and `name[key]`, which make a list or a map of it.
    fn is_alike(&self, name: &str) -> bool {
        let fold = |byte: u8| match byte {
            b'_' | b'.' | b' ' | b'+' => b'-',
            other => other.to_ascii_lowercase(),
        };
        let same = |name: &str| {
            name.len() == self.name.len() && name.bytes().map(fold).eq(self.name.bytes().map(fold))
        };
        // Blanks before a name are dropped, and a NUL ends it.
        let bare = name.trim_start_matches([' ', '+']).split('\0').next().unwrap_or_default();
        same(name) || same(bare) || bare.split_once('[').is_some_and(|(head, _)| same(head))
    }
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Parted at `;` as well.
fn loose_pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split(['&', ';']).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Whether some servers would split or decode the query in another way.
fn is_ambiguous(query: Option<&str>) -> bool {
    const ESCAPES: [&str; 4] = ["%25", "%00", "%3b", "%26"];
    query.is_some_and(|query| {
        query.contains([';', '#'])
            || (query.contains('%') && {
                let lower = query.to_ascii_lowercase();
                ESCAPES.iter().any(|escape| lower.contains(escape))
            })
    })
}

/// As sent, decoded once and decoded twice, with a plus for a plus and for a blank.
fn readings(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let others = text.contains(['%', '+']).then(|| {
        let once = decode_once(text).into_owned();
        let blank = text.replace('+', " ");
        let blank_once = decode_once(&blank).into_owned();
        let [twice, blank_twice] = [&once, &blank_once].map(|text| decode_once(text).into_owned());
        [twice, once, blank_twice, blank_once].map(Cow::Owned)
    });
    std::iter::once(Cow::Borrowed(text)).chain(others.into_iter().flatten())
}
