//! Postings: which rules have a key, and the choice of the key that each rule is filed under.
//!
//! Each entry is filed under its rarest way alone, so that ten thousand rules of one path and many hosts are as quick
//! to search as ten thousand paths of one host.

use super::keys::{Key, PathKeys};
use super::patterns::{Pattern, Patterns};
use super::ways::{Of, Way};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

/// Up to so many entries a search asks each: looking up costs as much as asking.
const SMALL: usize = 8;

/// What one rule, or one item of its conditions, can be found by.
pub(super) struct Entry<'a> {
    pub(super) position: u32,
    /// None: only by asking it.
    pub(super) ways: Vec<Way<'a>>,
}

/// Entries, filed.
#[derive(Debug, Default)]
pub(super) struct Filing {
    lists: HashMap<Key, Range<u32>, BuildHasherDefault<KeyHasher>>,
    postings: Box<[u32]>,
    /// Where the list of what must always be asked is.
    always: Range<u32>,
    patterns: Box<[Patterns]>,
    /// Some list is of a path.
    paths: bool,
    /// Some list is of a name of a host.
    names: bool,
}

/// Keys are hashes already.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Filing {
    pub(super) fn new(entries: Vec<Entry<'_>>) -> Self {
        Self::with(entries, SMALL)
    }

    /// Files entries; up to `small` of them, or of expressions, get no key.
    pub(super) fn with(entries: Vec<Entry<'_>>, small: usize) -> Self {
        let mut filed = Filed::default();
        if entries.len() <= small {
            filed.always.extend(entries.iter().map(|entry| entry.position));
            return filed.finish(Vec::new());
        }
        let counts = counts(&entries);
        let mut patterns: Vec<Pattern<'_>> = Vec::new();
        for Entry { position, ways } in entries {
            let cost = |way: &Way<'_>| match way {
                Way::Keys(_, keys) => {
                    keys.iter().map(|key| counts.get(key).copied().unwrap_or(0)).max().unwrap_or(0)
                }
                // A pass over the path costs as much as asking some rules does.
                Way::Pattern { .. } => small,
            };
            match ways.into_iter().min_by_key(cost) {
                None => filed.always.push(position),
                Some(Way::Keys(of, keys)) => {
                    filed.paths |= of == Of::Path;
                    filed.names |= of == Of::Name;
                    for key in keys {
                        filed.lists.entry(key).or_default().push(position);
                    }
                }
                Some(Way::Pattern { regex, target }) => patterns.push(Pattern { position, regex, target }),
            }
        }
        if patterns.len() <= small {
            filed.always.extend(patterns.drain(..).map(|pattern| pattern.position));
        }
        let (patterns, unfit) = Patterns::build(&patterns);
        filed.always.extend(unfit);
        filed.finish(patterns)
    }

    fn list(&self, key: Key) -> &[u32] {
        self.lists.get(&key).map_or(&[], |range| self.at(range))
    }

    fn at(&self, range: &Range<u32>) -> &[u32] {
        self.postings.get(range.start as usize..range.end as usize).unwrap_or_default()
    }

    /// Asks what can be found by these keys alone.
    pub(super) fn by<F: FnMut(usize) -> bool>(&self, keys: &[Key], search: &mut Search<F>) {
        search.scan(self.at(&self.always));
        self.more(keys, search);
    }

    /// Asks what can be found by further keys.
    pub(super) fn more<F: FnMut(usize) -> bool>(&self, keys: &[Key], search: &mut Search<F>) {
        if !self.lists.is_empty() {
            keys.iter().for_each(|key| search.scan(self.list(*key)));
        }
    }

    /// Asks what can be found by a path.
    pub(super) fn by_path<F: FnMut(usize) -> bool>(
        &self,
        keys: &PathKeys,
        path: &str,
        query: Option<&str>,
        search: &mut Search<F>,
    ) {
        self.more(&[keys.exact], search);
        self.more(keys.prefixes(), search);
        self.by_patterns(path, query, search);
    }

    /// Asks what can be found by running patterns over a path.
    pub(super) fn by_patterns<F: FnMut(usize) -> bool>(
        &self,
        path: &str,
        query: Option<&str>,
        search: &mut Search<F>,
    ) {
        for automaton in &self.patterns {
            automaton.each(path.as_bytes(), query.map(str::as_bytes), |position| search.ask(position));
        }
    }

    pub(super) const fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// Whether looking up a path can find anything.
    pub(super) const fn has_paths(&self) -> bool {
        self.paths || self.has_patterns()
    }

    /// Whether looking up a name of a host can find anything.
    pub(super) const fn has_names(&self) -> bool {
        self.names
    }
}

fn counts(entries: &[Entry<'_>]) -> HashMap<Key, usize, BuildHasherDefault<KeyHasher>> {
    let mut counts = HashMap::default();
    for way in entries.iter().flat_map(|entry| &entry.ways) {
        if let Way::Keys(_, keys) = way {
            for key in keys {
                *counts.entry(*key).or_insert(0) += 1;
            }
        }
    }
    counts
}

/// A filing while it is being made.
#[derive(Default)]
struct Filed {
    lists: HashMap<Key, Vec<u32>, BuildHasherDefault<KeyHasher>>,
    always: Vec<u32>,
    paths: bool,
    names: bool,
}

impl Filed {
    fn finish(mut self, patterns: Vec<Patterns>) -> Filing {
        let mut postings = Vec::new();
        let mut add = |list: &mut Vec<u32>| {
            list.sort_unstable();
            list.dedup();
            let start = u32::try_from(postings.len()).unwrap_or(u32::MAX);
            postings.append(list);
            start..u32::try_from(postings.len()).unwrap_or(u32::MAX)
        };
        let always = add(&mut self.always);
        let lists = self.lists.into_iter().map(|(key, mut list)| (key, add(&mut list))).collect();
        let (paths, names) = (self.paths, self.names);
        Filing { lists, postings: postings.into(), always, patterns: patterns.into(), paths, names }
    }
}

/// A search for the first rule that meets a test.
pub(super) struct Search<F> {
    from: u32,
    /// The first that met it so far.
    best: u32,
    test: F,
}

impl<F: FnMut(usize) -> bool> Search<F> {
    /// Among the rules from this position on.
    pub(super) fn new(from: usize, test: F) -> Self {
        Self { from: u32::try_from(from).unwrap_or(u32::MAX), best: u32::MAX, test }
    }

    fn scan(&mut self, list: &[u32]) {
        let skipped = if self.from == 0 { 0 } else { list.partition_point(|position| *position < self.from) };
        for &position in &list[skipped..] {
            if position >= self.best {
                return;
            }
            if (self.test)(position as usize) {
                self.best = position;
                return;
            }
        }
    }

    fn ask(&mut self, position: u32) {
        if position >= self.from && position < self.best && (self.test)(position as usize) {
            self.best = position;
        }
    }

    /// What was found.
    pub(super) fn found(&self) -> Option<usize> {
        (self.best != u32::MAX).then_some(self.best as usize)
    }
}
