//! The ways in which a rule can be found: for each, keys of which whoever matches the rule looks up at least one.
//!
//! Everything here must be complete and need not be exact: what a rule may match must have one of its keys. Knows
//! nothing of which way is taken.

use super::groups::{Groups, members};
use super::keys::{Case, Key, PathKeys, Seed};
use crate::class::{ClassId, ClassSet};
use crate::grpc::GrpcMatch;
use crate::host::{HostMatch, NameMatch};
use crate::http::{HttpMatch, PathMatch};
use crate::path::decode_once;
use crate::port::PortSet;
use crate::profile::{Rule, Scope};
use crate::regex::Regex;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::literal::{ExtractKind, Extractor};
use std::collections::{BTreeSet, HashMap};

/// Most keys of one way: a rule that would need more is found in another way. Postings stay a small multiple of rules.
const MAX_KEYS: usize = 64;
/// Literals that a regular expression may begin with.
const MAX_LITERALS: usize = 16;

/// What a rule does where it matches; the two test in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Allow,
    Deny,
}

impl Meaning {
    /// Denies take a path in any case.
    pub(super) const fn case(self) -> Case {
        match self {
            Self::Allow => Case::Told,
            Self::Deny => Case::Folded,
        }
    }
}

/// What a rule's path stands for. A deny that is written with escapes means what they stand for, too, and one that is
/// written with a slash at its end means the path without it.
fn spellings(value: &str, meaning: Meaning) -> Vec<String> {
    let mut spellings = vec![value.to_owned()];
    if meaning == Meaning::Deny {
        if value.contains('%') {
            spellings.push(decode_once(value).into_owned());
        }
        let shorter = |value: &String| value.strip_suffix('/').map(str::to_owned);
        let shorter: Vec<String> = spellings.iter().filter_map(shorter).collect();
        spellings.extend(shorter);
    }
    spellings
}

/// What keys are of: what must be looked up to find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The peer and the port, which every search looks up.
    Reach,
    /// A path.
    Path,
    /// A name of a host.
    Name,
}

/// One way to find a rule.
pub(super) enum Way<'a> {
    /// Under these keys; under none what nothing matches.
    Keys(Of, Vec<Key>),
    /// By running the pattern over the path, and its query if `target`.
    Pattern { regex: &'a Regex, target: bool },
}

/// The ways of one side.
pub(super) struct Ways<'a> {
    pub(super) seed: &'a Seed,
    pub(super) groups: &'a Groups,
    /// The groups of a set, once found.
    memo: HashMap<&'a [u64], Option<Vec<u32>>>,
}

impl<'a> Ways<'a> {
    pub(super) fn new(seed: &'a Seed, groups: &'a Groups) -> Self {
        Self { seed, groups, memo: HashMap::new() }
    }

    /// By who is reached, and by port. With `known` the peer has a group; else it is in every deny, whatever its set.
    pub(super) fn reach(&mut self, rule: &'a Rule, known: bool) -> Vec<Way<'a>> {
        let reaching = |scope: &&Scope| {
            let somebody = !known || !scope.peers.is_empty();
            somebody && !matches!(&scope.ports, PortSet::Ranges(ranges) if ranges.is_empty())
        };
        let scopes: Vec<&Scope> = rule.scopes.iter().filter(reaching).collect();
        let peers = if known { self.peers(&scopes) } else { None };
        let keys = peers.into_iter().chain(self.ports(&scopes));
        keys.map(|keys| Way::Keys(Of::Reach, keys)).collect()
    }

    fn peers(&mut self, scopes: &[&'a Scope]) -> Option<Vec<Key>> {
        let mut all = BTreeSet::new();
        for scope in scopes {
            let ClassSet::Bits(bits) = &scope.peers else { return None };
            let groups = self.memo.entry(bits).or_insert_with(|| {
                let class = |class: usize| ClassId(u32::try_from(class).unwrap_or(u32::MAX));
                let mut groups: Vec<u32> = members(bits).map(|at| self.groups.of(class(at))).collect();
                groups.sort_unstable();
                groups.dedup();
                (groups.len() <= MAX_KEYS).then_some(groups)
            });
            all.extend(groups.as_ref()?.iter().copied());
            if all.len() > MAX_KEYS {
                return None;
            }
        }
        Some(all.into_iter().map(|group| self.seed.group(group)).collect())
    }

    fn ports(&self, scopes: &[&Scope]) -> Option<Vec<Key>> {
        let mut all = BTreeSet::new();
        for scope in scopes {
            let PortSet::Ranges(ranges) = &scope.ports else { return None };
            for range in ranges {
                for port in range.first..=range.last {
                    all.insert(self.seed.port(range.protocol, port));
                    if all.len() > MAX_KEYS {
                        return None;
                    }
                }
            }
        }
        Some(all.into_iter().collect())
    }

    /// By the numbers of listed ports, whatever the protocol.
    pub(super) fn listed(&self, listed: &[(u16, u16)]) -> Option<Way<'a>> {
        let count: usize =
            listed.iter().map(|(first, last)| usize::from(last.saturating_sub(*first)) + 1).sum();
        let ports = listed.iter().flat_map(|(first, last)| *first..=*last);
        (count <= MAX_KEYS)
            .then(|| Way::Keys(Of::Reach, ports.map(|port| self.seed.any_port(port)).collect()))
    }

    /// By what one item of `rules.http` says.
    pub(super) fn http(&self, item: &'a HttpMatch, meaning: Meaning) -> Vec<Way<'a>> {
        let path = item.path.iter().flat_map(|path| self.path(path, meaning));
        path.chain(self.hosts(&item.hosts)).collect()
    }

    fn path(&self, path: &'a PathMatch, meaning: Meaning) -> Vec<Way<'a>> {
        let keys = |value: &str, key: &dyn Fn(&PathKeys) -> Key| {
            let spellings = spellings(value, meaning);
            Way::Keys(
                Of::Path,
                spellings.iter().map(|value| key(&self.keys(value.as_bytes(), meaning))).collect(),
            )
        };
        match path {
            PathMatch::Exact(value) => vec![keys(value, &|keys| keys.exact)],
            PathMatch::Prefix(value) => vec![keys(value, &PathKeys::prefix)],
            PathMatch::Regex(regex) => self.pattern(regex, false, meaning),
            PathMatch::Target(regex) => self.pattern(regex, true, meaning),
        }
    }

    fn keys(&self, path: &[u8], meaning: Meaning) -> PathKeys {
        self.seed.path(path, meaning.case())
    }

    fn pattern(&self, regex: &'a Regex, target: bool, meaning: Meaning) -> Vec<Way<'a>> {
        let begun = self.beginnings(regex.source(), target, meaning).map(|keys| Way::Keys(Of::Path, keys));
        begun.into_iter().chain([Way::Pattern { regex, target }]).collect()
    }

    /// The keys of what a regular expression begins with, if it begins with one of a few literals.
    fn beginnings(&self, source: &str, target: bool, meaning: Meaning) -> Option<Vec<Key>> {
        // As it is compiled: see `Regex`.
        let parsed = ParserBuilder::new().dot_matches_new_line(true).build().parse(source).ok()?;
        let mut extractor = Extractor::new();
        extractor.kind(ExtractKind::Prefix).limit_total(MAX_LITERALS);
        let literals = extractor.extract(&parsed);
        let key = |literal: &regex_syntax::hir::literal::Literal| {
            let bytes = literal.as_bytes();
            // A question mark may begin the query, which is in no key.
            let query = if target { bytes.iter().position(|byte| *byte == b'?') } else { None };
            match query {
                None if literal.is_exact() => Some(self.keys(bytes, meaning).exact),
                query => {
                    let path = &bytes[..query.unwrap_or(bytes.len())];
                    // Whoever begins with `/a/b` has the prefix `/a`; `/a/b` may go on as `/a/bc`.
                    let slash = path.iter().rposition(|byte| *byte == b'/')?;
                    Some(self.keys(&path[..slash], meaning).prefix())
                }
            }
        };
        literals.literals()?.iter().map(key).collect()
    }

    /// By host, where every one is a name.
    fn hosts(&self, hosts: &[HostMatch]) -> Option<Way<'a>> {
        let keys = hosts.iter().map(|host| match host {
            HostMatch::Name(name) => Some(self.name(name)),
            HostMatch::Regex(_) | HostMatch::Authority(_) => None,
        });
        let keys: Vec<Key> = keys.collect::<Option<_>>()?;
        (!keys.is_empty() && keys.len() <= MAX_KEYS).then_some(Way::Keys(Of::Name, keys))
    }

    fn name(&self, name: &NameMatch) -> Key {
        match name {
            NameMatch::Exact(name) => self.seed.name(name),
            NameMatch::Under(name) | NameMatch::Label(name) => self.seed.under(name),
        }
    }

    /// By the path of a gRPC call.
    pub(super) fn grpc(&self, item: &GrpcMatch, meaning: Meaning) -> Option<Way<'a>> {
        if item.methods.is_empty() {
            return Some(self.service(item, meaning));
        }
        let path = |method| format!("/{}/{method}", item.service);
        let keys = item.methods.iter().map(|method| self.keys(path(method).as_bytes(), meaning).exact);
        (keys.len() <= MAX_KEYS).then(|| Way::Keys(Of::Path, keys.collect()))
    }

    /// By the service of a gRPC call.
    pub(super) fn service(&self, item: &GrpcMatch, meaning: Meaning) -> Way<'a> {
        Way::Keys(Of::Path, vec![self.keys(format!("/{}", item.service).as_bytes(), meaning).prefix()])
    }

    /// By who is named, on whatever port.
    pub(super) fn named(&mut self, rule: &'a Rule) -> Option<Vec<Key>> {
        self.peers(&rule.scopes.iter().collect::<Vec<_>>())
    }

    /// By TLS server name.
    pub(super) fn tls(&self, names: &[NameMatch]) -> Option<Way<'a>> {
        (names.len() <= MAX_KEYS)
            .then(|| Way::Keys(Of::Name, names.iter().map(|name| self.name(name)).collect()))
    }
}
