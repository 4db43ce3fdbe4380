//! Many regular expressions in one pass over a path.
//!
//! A lazy DFA over all of them: linear time, and bounds on the compiled size and on what running it keeps. Says which
//! expressions match; where it gives up, that any may. The expressions themselves decide.

use crate::regex::{REGEX_SIZE_LIMIT, Regex};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::pool::Pool;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

/// Most expressions of one automaton. Of more, one that begins with `.*` would make every state so large that
/// building states costs more than asking expressions one by one.
const MAX_PATTERNS: usize = 512;
/// Compiled size of one automaton, in bytes: a few of the largest single expressions, thousands of usual ones.
const SIZE_LIMIT: usize = 8 * REGEX_SIZE_LIMIT;
/// States kept by one automaton on one thread, in bytes.
const STATES_LIMIT: usize = 512 * 1024;
/// How often one pass may throw all states away before it gives up: a path that makes new states with each byte was
/// made for that.
const CLEARS: usize = 1;

type NewCache = Box<dyn Fn() -> Cache + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// One expression, and where its rule is.
#[derive(Clone, Copy)]
pub(super) struct Pattern<'a> {
    pub(super) position: u32,
    pub(super) regex: &'a Regex,
    /// The query counts.
    pub(super) target: bool,
}

/// An automaton over some expressions.
pub(super) struct Patterns {
    dfa: DFA,
    caches: Pool<Cache, NewCache>,
    /// By expression.
    positions: Box<[u32]>,
    /// Some expression sees the query.
    target: bool,
}

impl Patterns {
    /// Automata over all of these, and the positions of those that fit none.
    pub(super) fn build(patterns: &[Pattern<'_>]) -> (Vec<Self>, Vec<u32>) {
        let (mut built, mut rest) = (Vec::new(), Vec::new());
        let mut open: Vec<&[Pattern<'_>]> = patterns.chunks(MAX_PATTERNS).rev().collect();
        while let Some(chunk) = open.pop() {
            match Self::new(chunk) {
                Some(automaton) => built.push(automaton),
                None if chunk.len() == 1 => rest.push(chunk[0].position),
                None => {
                    let (head, tail) = chunk.split_at(chunk.len() / 2);
                    open.extend([tail, head]);
                }
            }
        }
        (built, rest)
    }

    fn new(patterns: &[Pattern<'_>]) -> Option<Self> {
        let sources: Vec<&str> = patterns.iter().map(|pattern| pattern.regex.source()).collect();
        let dfa = DFA::builder()
            // As `Regex` compiles them.
            .syntax(syntax::Config::new().dot_matches_new_line(true))
            .thompson(
                thompson::Config::new().nfa_size_limit(Some(SIZE_LIMIT)).which_captures(WhichCaptures::None),
            )
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .unicode_word_boundary(true)
                    .cache_capacity(STATES_LIMIT),
            )
            .build_many(&sources)
            .ok()?;
        let own = dfa.clone();
        let caches: NewCache = Box::new(move || own.create_cache());
        Some(Self {
            dfa,
            caches: Pool::new(caches),
            positions: patterns.iter().map(|pattern| pattern.position).collect(),
            target: patterns.iter().any(|pattern| pattern.target),
        })
    }

    /// Tells the rule of every expression that matches the whole path, or the path with its query.
    pub(super) fn each(&self, path: &[u8], query: Option<&[u8]>, mut found: impl FnMut(u32)) {
        let with_query = query.filter(|_| self.target);
        let mut cache = self.caches.get();
        let whole = self.run(&mut cache, path, None, &mut found);
        let whole = whole.and_then(|()| match with_query {
            None => Some(()),
            query => self.run(&mut cache, path, query, &mut found),
        });
        if whole.is_none() {
            self.positions.iter().for_each(|position| found(*position));
        }
    }

    /// `None` if it gave up.
    fn run(
        &self,
        cache: &mut Cache,
        path: &[u8],
        query: Option<&[u8]>,
        found: &mut impl FnMut(u32),
    ) -> Option<()> {
        let start = Input::new(path).anchored(Anchored::Yes);
        let mut state = self.dfa.start_state_forward(cache, &start).ok()?;
        let cleared = cache.clear_count();
        let joined = query.map_or([path, b"", b""], |query| [path, b"?", query]);
        for byte in joined.into_iter().flatten() {
            state = self.dfa.next_state(cache, state, *byte).ok()?;
            if state.is_dead() {
                return Some(());
            }
            if state.is_quit() || cache.clear_count() - cleared > CLEARS {
                return None;
            }
        }
        let end = self.dfa.next_eoi_state(cache, state).ok()?;
        if end.is_match() {
            for at in 0..self.dfa.match_len(cache, end) {
                found(self.positions[self.dfa.match_pattern(cache, end, at).as_usize()]);
            }
        }
        Some(())
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Patterns").field(&self.positions).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(built: &(Vec<Patterns>, Vec<u32>), path: &[u8], query: Option<&[u8]>) -> Vec<u32> {
        let mut out = built.1.clone();
        for automaton in &built.0 {
            automaton.each(path, query, |position| out.push(position));
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    fn all(regexes: &[Regex], target: bool) -> (Vec<Patterns>, Vec<u32>) {
        let pattern = |(position, regex)| Pattern { position, regex, target };
        Patterns::build(&(0..).zip(regexes).map(pattern).collect::<Vec<_>>())
    }

    #[test]
    fn one_pass_says_what_each_expression_says() {
        let sources = ["/a|/ab", "/[0-9]+", "/.*", "", "(?i)/A", "/a$", "^/a", "/\\ba\\b", "/é", "/[^/]+/b"];
        let regexes: Vec<Regex> = sources.iter().map(|source| Regex::new(source).expect(source)).collect();
        let built = all(&regexes, false);
        for path in ["/a", "/ab", "/abc", "/1", "/A", "", "/", "x/a", "/a/b", "/a\n", "/a/b/b"] {
            let expected: Vec<u32> = (0..)
                .zip(&regexes)
                .filter(|(_, regex)| regex.is_match(path.as_bytes()))
                .map(|(at, _)| at)
                .collect();
            assert_eq!(matches(&built, path.as_bytes(), None), expected, "{path:?}");
        }
        // What is no ASCII beside a word boundary is too much for it: any may match.
        assert_eq!(matches(&built, "/é".as_bytes(), None).len(), sources.len());
    }

    #[test]
    fn the_query_is_seen_by_those_that_ask_for_it() {
        let regexes = [Regex::new("/a\\?b=.*").expect("compiles"), Regex::new("/a").expect("compiles")];
        let built = all(&regexes, true);
        assert_eq!(matches(&built, b"/a", Some(b"b=1")), [0, 1]);
        assert_eq!(matches(&built, b"/a", None), [1]);
        assert_eq!(matches(&built, b"/x", Some(b"b=1")), [0; 0]);
    }

    #[test]
    fn what_fits_no_automaton_is_asked_one_by_one() {
        // Each of some 100 KB: they share automata as far as the bound goes.
        let bombs: Vec<Regex> =
            (0..64).map(|n| Regex::new(&format!("(?:a{{60}}b{n}){{20}}.*")).expect("compiles")).collect();
        let built = all(&bombs, false);
        assert!(built.0.len() > 1, "{}", built.0.len());
        let path = format!("{}x", format!("{}b7", "a".repeat(60)).repeat(20));
        assert_eq!(matches(&built, path.as_bytes(), None), [7]);
    }

    #[test]
    fn a_path_made_to_need_new_states_costs_no_more_than_asking_one_by_one() {
        let regexes: Vec<Regex> =
            (0..200).map(|n| Regex::new(&format!(".*[ab]c[ab]{{{n}}}")).expect("compiles")).collect();
        let built = all(&regexes, false);
        let mut path = Vec::new();
        let mut state = 1_u32;
        for _ in 0..4000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            path.push(b"abc"[(state >> 24) as usize % 3]);
        }
        let said = matches(&built, &path, None);
        for (at, regex) in (0..).zip(&regexes) {
            assert!(!regex.is_match(&path) || said.contains(&at), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_match_is_left_out(
            sources in prop::collection::vec("(/[ab]{1,2}|\\.\\*|\\[ab\\]|a\\?|\\(a\\|b\\)\\+){0,4}", 1..20),
            path in "(/[ab]{0,3}){0,3}",
        ) {
            let regexes: Vec<Regex> = sources.iter().map(|source| Regex::new(source).expect("compiles")).collect();
            let said = matches(&all(&regexes, false), path.as_bytes(), None);
            let expected: Vec<u32> =
                (0..).zip(&regexes).filter(|(_, regex)| regex.is_match(path.as_bytes())).map(|(at, _)| at).collect();
            prop_assert_eq!(said, expected);
        }
    }
}
