//! W3C Trace Context: reads `traceparent`, writes it again under our span.
//!
//! Knows nothing of HTTP types or of export. An invalid header is taken as absent and goes on as it came.

use std::fmt::Write as _;

/// A valid `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub span_id: [u8; 8],
    /// The flags; bit 0 is `sampled`.
    pub flags: u8,
}

/// Bit 0 of the flags.
pub const SAMPLED: u8 = 1;

/// The flags that version 00 defines; others are not passed on (§3.2.2.5.2).
const KNOWN_FLAGS: u8 = 0b11;

impl Context {
    /// Reads every `traceparent` of a request: exactly one, and valid, or there is none.
    pub fn of<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value)
    }

    /// Reads one value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let version = byte(value.get(..2)?)?;
        let (length_fits, dashes) = match version {
            0xff => return None,
            0 => (value.len() == 55, [2, 35, 52]),
            // A later version may append fields; what is before them stays.
            _ => (value.len() == 55 || value.get(55) == Some(&b'-'), [2, 35, 52]),
        };
        if !length_fits || dashes.iter().any(|at| value.get(*at) != Some(&b'-')) {
            return None;
        }
        let mut trace_id = [0; 16];
        let mut span_id = [0; 8];
        for (index, out) in trace_id.iter_mut().enumerate() {
            *out = byte(value.get(3 + index * 2..5 + index * 2)?)?;
        }
        for (index, out) in span_id.iter_mut().enumerate() {
            *out = byte(value.get(36 + index * 2..38 + index * 2)?)?;
        }
        let flags = byte(value.get(53..55)?)? & KNOWN_FLAGS;
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, flags })
    }

    /// Whether the caller records.
    #[must_use]
    pub const fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The header value that names `span_id` as parent.
    #[must_use]
    pub fn header(&self, span_id: [u8; 8]) -> String {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        for byte in self.trace_id {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('-');
        for byte in span_id {
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, "-{:02x}", self.flags | SAMPLED);
        text
    }
}

/// Two lower-case hexadecimal digits: upper case is invalid (§3.2.2.3).
fn byte(digits: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    match digits {
        [high, low] => Some(digit(high)? * 16 + digit(low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_and_writes() {
        let context = Context::parse(VALID.as_bytes()).expect("valid");
        assert!(context.sampled());
        assert_eq!(context.header([1; 8]), "00-4bf92f3577b34da6a3ce929d0e0e4736-0101010101010101-01");
        assert_eq!(context.header(context.span_id), VALID);
    }

    #[test]
    fn refuses_what_the_standard_refuses() {
        for value in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(value.as_bytes()), None, "{value}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        assert!(Context::parse(later.as_bytes()).is_some());
        assert_eq!(Context::of([VALID.as_bytes(), VALID.as_bytes()].into_iter()), None, "doubled");
    }
}
