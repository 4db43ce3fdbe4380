//! Header conditions: exactly one occurrence for an allow, every suspicious one for a deny.

use crate::regex::Regex;
use crate::request::Request;
use std::fmt;
use std::sync::Arc;

/// A header condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// The field name, in lower case.
    pub name: Arc<str>,
    /// What of it.
    pub test: HeaderTest,
}

/// What the value of a header or of a query parameter must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderTest {
    /// Exactly this value.
    Exact(Arc<str>),
    /// The whole value matches.
    Regex(Regex),
    /// Present, with any value.
    Present,
    /// Not present.
    Absent,
}

impl fmt::Display for HeaderTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "Exact {value}"),
            Self::Regex(regex) => write!(f, "RegularExpression {}", regex.source()),
            Self::Present => write!(f, "Present"),
            Self::Absent => write!(f, "Absent"),
        }
    }
}

impl HeaderTest {
    /// Whether a value that is there is what it must be.
    pub(crate) fn is_met_by(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(expected) => value == expected.as_bytes(),
            Self::Regex(regex) => regex.is_match(value),
            Self::Present => true,
            Self::Absent => false,
        }
    }
}

impl HeaderMatch {
    /// What an allow sees of the header, `Ok` if it is what it must be. `_` beside `-` is the same header to
    /// CGI-like servers: seen beside the name, it is ambiguous.
    pub(crate) fn allows(&self, request: &Request<'_>) -> Result<(), &'static str> {
        let mut values = request.loose_values(&self.name);
        match (values.next(), values.next()) {
            (None, _) if self.test == HeaderTest::Absent => Ok(()),
            (None, _) => Err("absent"),
            (Some(_), Some(_)) => Err("given more than once"),
            (Some(_), None) => match request.values(&self.name).next() {
                None => Err("spelt with _"),
                Some(value) if self.test.is_met_by(value) => Ok(()),
                Some(_) if self.test == HeaderTest::Absent => Err("present"),
                Some(_) => Err("different"),
            },
        }
    }

    pub(crate) fn denies(&self, request: &Request<'_>) -> bool {
        let mut values = request.loose_values(&self.name).peekable();
        match self.test {
            HeaderTest::Absent => values.peek().is_none() || request.values(&self.name).next().is_none(),
            _ => values.any(|value| self.test_readings(value)),
        }
    }

    /// Whether any reading of the value satisfies the test: decoded, each item of a list, without blanks and quotes,
    /// and with bytes that are no UTF-8 taken for some character, which no regular expression would.
    fn test_readings(&self, value: &[u8]) -> bool {
        let plain = decoded(value);
        std::iter::once(value).chain(plain.as_deref()).any(|reading| {
            let text = String::from_utf8_lossy(reading);
            [reading, text.as_bytes()].into_iter().any(|reading| {
                let items = reading.split(|b| *b == b',').map(<[u8]>::trim_ascii);
                self.test.is_met_by(reading)
                    || self.test.is_met_by(reading.trim_ascii())
                    || items.flat_map(|item| [item, unquoted(item)]).any(|item| self.test.is_met_by(item))
            })
        })
    }
}

fn unquoted(item: &[u8]) -> &[u8] {
    item.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(item)
}

/// The value with its percent-escapes decoded, if it has any.
fn decoded(value: &[u8]) -> Option<Vec<u8>> {
    if !value.contains(&b'%') {
        return None;
    }
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        match (byte, hex(value.get(at + 1)), hex(value.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Some(out)
}
