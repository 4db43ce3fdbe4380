//! A bounded regular expression that matches whole strings in linear time.
//!
//! Wraps `regex-automata` so that no pattern can be built without its bounds.

use regex_automata::meta;
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::util::syntax;
use std::fmt;
use std::sync::Arc;

/// Compiled size of one pattern, in bytes. A pattern beyond it is a problem on its object, not a stall:
/// `(a{1000}){1000}` would otherwise take gigabytes.
pub const REGEX_SIZE_LIMIT: usize = 256 * 1024;
/// Longest pattern, in bytes: what the CRD admits.
pub const REGEX_LENGTH_LIMIT: usize = 4096;

/// A pattern that must match the whole text.
#[derive(Clone)]
pub struct Regex {
    source: Arc<str>,
    compiled: meta::Regex,
}

impl Regex {
    /// Compiles a pattern. Syntax is that of the `regex` crate (RE2-like: no look-around, no references).
    ///
    /// # Errors
    /// Says what is wrong with the pattern.
    pub fn new(source: &str) -> Result<Self, String> {
        if source.len() > REGEX_LENGTH_LIMIT {
            return Err(format!(
                "the regular expression has {} bytes; at most {REGEX_LENGTH_LIMIT} are taken: split it into several rules",
                source.len()
            ));
        }
        let wrong = |detail: &dyn fmt::Display| {
            format!("the regular expression \"{source}\" does not compile: {detail}")
        };
        // A line feed is a byte like any other: `/admin/.*` must not be left by `%0a`.
        let syntax = syntax::Config::new().dot_matches_new_line(true);
        // The pattern is parsed alone first, so that "a)|(b" cannot close our group.
        syntax::parse_with(source, &syntax).map_err(|error| wrong(&error))?;
        // Nobody asks what a group captured.
        let bounds =
            meta::Config::new().nfa_size_limit(Some(REGEX_SIZE_LIMIT)).which_captures(WhichCaptures::None);
        match meta::Regex::builder().configure(bounds).syntax(syntax).build(&format!(r"\A(?:{source})\z")) {
            Ok(compiled) => Ok(Self { source: source.into(), compiled }),
            Err(error) if error.size_limit().is_some() => Err(format!(
                "the regular expression \"{source}\" compiles to more than {REGEX_SIZE_LIMIT} bytes: \
                 use smaller repetitions"
            )),
            Err(error) => Err(match error.syntax_error() {
                Some(error) => wrong(error),
                None => wrong(&error),
            }),
        }
    }

    /// The pattern as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.compiled.is_match(text)
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Regex").field(&self.source).finish()
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Regex {}

impl std::hash::Hash for Regex {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_whole_text() {
        let regex = Regex::new("a|ab").expect("compiles");
        assert!(regex.is_match(b"ab") && regex.is_match(b"a"));
        assert!(!regex.is_match(b"abc") && !regex.is_match(b"xa") && !regex.is_match(b"a\n"));
    }

    #[test]
    fn a_pattern_cannot_leave_its_group() {
        assert!(Regex::new("a)|(?:.*").is_err());
    }

    #[test]
    fn a_bomb_is_an_error_and_not_a_stall() {
        let error = Regex::new("(?:a{1000}){1000}").expect_err("too big");
        assert!(error.contains("smaller repetitions"), "{error}");
        assert!(Regex::new(&"a".repeat(REGEX_LENGTH_LIMIT + 1)).is_err());
    }
}
