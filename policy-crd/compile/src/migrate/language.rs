//! What a regular expression can match, as far as migrating asks: whether it names few texts, whether a byte can be in
//! one of them, whether what follows a `?` can change its mind.
//!
//! Every answer is on the safe side: "it may" where the expression is not understood. Knows nothing of policies.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Most texts that an expression is written out as: methods and hosts come in short lists.
const MAX_TEXTS: usize = 32;
/// Longest of them, so that `a{1000}` is left an expression.
const MAX_TEXT: usize = 1024;

/// An expression that must match a whole text.
pub(super) struct Language(Option<Hir>);

impl Language {
    /// Reads an expression with the syntax that conditions have.
    pub(super) fn new(source: &str) -> Self {
        let parsed = ParserBuilder::new().dot_matches_new_line(true).build().parse(source);
        Self(parsed.ok().and_then(|hir| plain(&hir, true, true)))
    }

    /// Every text that it matches, if they are few.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        let mut texts = texts(self.0.as_ref()?)?;
        texts.sort_unstable();
        texts.dedup();
        Some(texts)
    }

    /// The text that it matches, if it is one.
    pub(super) fn text(&self) -> Option<String> {
        self.texts().filter(|texts| texts.len() == 1)?.pop()
    }

    /// Whether it matches every text, the empty one perhaps left out.
    pub(super) fn is_everything(&self) -> bool {
        let any = |min: u32, hir: &Hir| match hir.kind() {
            HirKind::Repetition(one) => one.min <= min && one.max.is_none() && is_any_character(&one.sub),
            _ => false,
        };
        self.0.as_ref().is_some_and(|hir| any(1, hir))
    }

    /// Whether a text that it matches may have one of these characters.
    pub(super) fn may_have(&self, wanted: impl Fn(char) -> bool) -> bool {
        self.0.as_ref().is_none_or(|hir| may_have(hir, &wanted))
    }

    /// Whether every text that it matches has this character.
    pub(super) fn must_have(&self, wanted: char) -> bool {
        self.0.as_ref().is_some_and(|hir| must_have(hir, wanted))
    }

    /// Whether a text that it matches may end in this character.
    pub(super) fn may_end(&self, last: char) -> bool {
        self.0.as_ref().is_none_or(|hir| may_end(hir, last))
    }

    /// Whether it makes up its mind before the first `mark`: of a text with one, what stands before it is matched if
    /// and only if the whole is.
    pub(super) fn ends_before(&self, mark: char) -> bool {
        self.0.as_ref().is_some_and(|hir| ends_before(hir, mark))
    }
}

/// The expression without groups, and without anchors where they say nothing. `None`: with other assertions.
fn plain(hir: &Hir, start: bool, end: bool) -> Option<Hir> {
    Some(match hir.kind() {
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => hir.clone(),
        HirKind::Look(Look::Start) if start => Hir::empty(),
        HirKind::Look(Look::End) if end => Hir::empty(),
        HirKind::Look(_) => return None,
        HirKind::Capture(group) => plain(&group.sub, start, end)?,
        HirKind::Repetition(one) => {
            let sub = plain(&one.sub, false, false)?;
            Hir::repetition(regex_syntax::hir::Repetition { sub: Box::new(sub), ..one.clone() })
        }
        HirKind::Concat(items) => {
            let is_anchor = |item: &Hir| matches!(item.kind(), HirKind::Look(_));
            let first = items.iter().take_while(|item| is_anchor(item)).count();
            let last = items.len() - items.iter().rev().take_while(|item| is_anchor(item)).count();
            let one = |(at, item): (usize, &Hir)| plain(item, start && at <= first, end && at + 1 >= last);
            Hir::concat(items.iter().enumerate().map(one).collect::<Option<Vec<_>>>()?)
        }
        HirKind::Alternation(items) => {
            Hir::alternation(items.iter().map(|item| plain(item, start, end)).collect::<Option<Vec<_>>>()?)
        }
    })
}

fn is_any_character(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            matches!(class.ranges(), [all] if all.start() == '\0' && all.end() == char::MAX)
        }
        _ => false,
    }
}

fn texts(hir: &Hir) -> Option<Vec<String>> {
    let fits =
        |texts: &Vec<String>| texts.len() <= MAX_TEXTS && texts.iter().all(|text| text.len() <= MAX_TEXT);
    Some(match hir.kind() {
        HirKind::Empty => vec![String::new()],
        HirKind::Literal(literal) => vec![std::str::from_utf8(&literal.0).ok()?.to_owned()],
        HirKind::Class(Class::Unicode(class)) => {
            let all = class.ranges().iter().flat_map(|range| range.start()..=range.end());
            let texts: Vec<String> = all.take(MAX_TEXTS + 1).map(String::from).collect();
            Some(texts).filter(fits)?
        }
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => return None,
        HirKind::Capture(group) => texts(&group.sub)?,
        HirKind::Repetition(one) => {
            let max = one.max.filter(|max| *max as usize <= MAX_TEXT)?;
            let sub = texts(&one.sub)?;
            let mut power = vec![String::new()];
            let mut out = if one.min == 0 { power.clone() } else { Vec::new() };
            for count in 1..=max {
                power = Some(product(&power, &sub)).filter(fits)?;
                if count >= one.min {
                    out.extend(power.iter().cloned());
                }
                if !fits(&out) {
                    return None;
                }
            }
            out
        }
        HirKind::Concat(items) => {
            let mut out = vec![String::new()];
            for item in items {
                out = Some(product(&out, &texts(item)?)).filter(fits)?;
            }
            out
        }
        HirKind::Alternation(items) => {
            let mut out = Vec::new();
            for item in items {
                out.extend(texts(item)?);
            }
            Some(out).filter(fits)?
        }
    })
}

fn product(heads: &[String], tails: &[String]) -> Vec<String> {
    heads.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect()
}

fn may_have(hir: &Hir, wanted: &impl Fn(char) -> bool) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => String::from_utf8_lossy(&literal.0).chars().any(wanted),
        HirKind::Class(Class::Unicode(class)) => {
            // What is asked for is ASCII; a class of other characters is looked at no further.
            let ascii = |range: &regex_syntax::hir::ClassUnicodeRange| {
                (range.start()..=range.end()).take_while(char::is_ascii).any(wanted)
            };
            class.ranges().iter().any(ascii)
        }
        HirKind::Class(Class::Bytes(_)) => true,
        HirKind::Capture(group) => may_have(&group.sub, wanted),
        HirKind::Repetition(one) => one.max != Some(0) && may_have(&one.sub, wanted),
        HirKind::Concat(items) | HirKind::Alternation(items) => {
            items.iter().any(|item| may_have(item, wanted))
        }
    }
}

fn must_have(hir: &Hir, wanted: char) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => false,
        HirKind::Literal(literal) => String::from_utf8_lossy(&literal.0).contains(wanted),
        HirKind::Class(Class::Unicode(class)) => {
            matches!(class.ranges(), [one] if one.start() == wanted && one.end() == wanted)
        }
        HirKind::Capture(group) => must_have(&group.sub, wanted),
        HirKind::Repetition(one) => one.min > 0 && must_have(&one.sub, wanted),
        HirKind::Concat(items) => items.iter().any(|item| must_have(item, wanted)),
        HirKind::Alternation(items) => items.iter().all(|item| must_have(item, wanted)),
    }
}

fn may_end(hir: &Hir, last: char) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => String::from_utf8_lossy(&literal.0).ends_with(last),
        HirKind::Class(_) => may_have(hir, &|c| c == last),
        HirKind::Capture(group) => may_end(&group.sub, last),
        HirKind::Repetition(one) => may_end(&one.sub, last),
        HirKind::Alternation(items) => items.iter().any(|item| may_end(item, last)),
        HirKind::Concat(items) => {
            // An item that can be nothing leaves the end to the one before it.
            let empty = |item: &&Hir| item.properties().minimum_len() == Some(0);
            let optional = items.iter().rev().take_while(empty).count();
            items.iter().rev().take(optional + 1).any(|item| may_end(item, last))
        }
    }
}

/// An expression that ends in "and anything" and cannot match the mark before.
fn ends_before(hir: &Hir, mark: char) -> bool {
    let without = |item: &Hir| !may_have(item, &|c| c == mark);
    match hir.kind() {
        HirKind::Repetition(one) => one.min == 0 && one.max.is_none() && is_any_character(&one.sub),
        HirKind::Concat(items) => items
            .split_last()
            .is_some_and(|(last, before)| before.iter().all(without) && ends_before(last, mark)),
        HirKind::Alternation(items) => items.iter().all(|item| ends_before(item, mark)),
        HirKind::Capture(group) => ends_before(&group.sub, mark),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_texts_are_written_out() {
        for (source, expected) in [
            ("GET", &["GET"][..]),
            ("^GET$", &["GET"]),
            ("GET|HEAD", &["GET", "HEAD"]),
            ("^(GET|HEAD)$", &["GET", "HEAD"]),
            ("(?:P(OST|UT))", &["POST", "PUT"]),
            ("[GP]ET?", &["GE", "GET", "PE", "PET"]),
            ("(?i)ab", &["AB", "Ab", "aB", "ab"]),
            (r"/v1\.0", &["/v1.0"]),
            ("a{2}", &["aa"]),
            ("", &[""]),
        ] {
            assert_eq!(
                Language::new(source).texts().as_deref(),
                Some(expected.map_owned().as_slice()),
                "{source}"
            );
        }
        for source in [".*", "[a-z]+", r"\w", "a{2000}", "(?:a|b){9}", r"a\b", "(", "a^b"] {
            assert_eq!(Language::new(source).texts(), None, "{source}");
        }
    }

    trait MapOwned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl MapOwned for [&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn what_follows_the_mark_may_matter() {
        for source in
            [".*", "/a.*", "^/a/.*$", "/a/??.*$", "/a.*|/b/.*", "(/a|/b).*", "/[a-z]+/.*", "/[^?]*.*"]
        {
            assert!(Language::new(source).ends_before('?'), "{source}");
        }
        for source in [
            "/a",
            "/a.+",
            "/a.*b",
            "/a.*b.*",
            "/a(/.*)?",
            "/a|/b.*",
            r"/a\?.*",
            "/[^/]*",
            "/(?-s:.)*",
            r"/a\b.*",
        ] {
            assert!(!Language::new(source).ends_before('?'), "{source}");
        }
    }

    #[test]
    fn characters() {
        let has = |source: &str, c: char| Language::new(source).may_have(|other| other == c);
        assert!(has("a.b", '?') && has("[^/]*", '?') && has(r"a\?", '?') && has("(", '?'));
        assert!(!has("/[a-z]+", '?') && !has("/a?", '?'));
        assert!(Language::new(r"/a\?v=.*").must_have('?') && !Language::new(r"/a(\?.*)?").must_have('?'));
        let ends = |source: &str| Language::new(source).may_end('.');
        assert!(ends(r"a\.") && ends(r"a\.b?") && ends("[a-z.]+") && ends(r"a(?:b|c\.)") && !ends(r"a\.b"));
        assert!(Language::new(".*").is_everything() && Language::new(".+").is_everything());
        assert!(!Language::new("[a-z]*").is_everything() && !Language::new("..+").is_everything());
    }
}
