//! The index of one list of rules that all mean the same: all allow, or all deny.

use super::filing::{Entry, Filing, Search};
use super::keys::Case;
use super::probe::Probe;
use super::ways::{Meaning, Ways};
use crate::class::ClassSet;
use crate::port::Protocol;
use crate::profile::Rule;
use crate::request::Request;
use crate::verdict::Facts;

/// The rules of one stage, filed for every kind of question.
#[derive(Debug)]
pub(crate) struct Stage {
    meaning: Meaning,
    known: Filings,
    /// For denies: the same for a peer that nobody knows, whom each of them reaches. `None` where none names peers.
    missing: Option<Box<Filings>>,
}

/// The same rules, by what is known.
#[derive(Debug, Default)]
struct Filings {
    /// Rules without conditions, by reach.
    plain: Filing,
    /// Rules with conditions, by reach.
    conditional: Filing,
    /// Rules with conditions on a request, by what it says or by reach.
    requests: Filing,
    /// Rules with conditions that a TLS connection can meet, by server name or by reach.
    tls: Filing,
}

impl Stage {
    /// Files the rules at these positions.
    pub(super) fn new<'a>(
        meaning: Meaning,
        rules: impl Iterator<Item = (usize, &'a Rule)>,
        ways: &mut Ways<'a>,
    ) -> Self {
        let rules: Vec<(u32, &Rule)> =
            rules.map(|(position, rule)| (u32::try_from(position).unwrap_or(u32::MAX), rule)).collect();
        let known = Filings::new(meaning, &rules, ways, true);
        let by_peer =
            rules.iter().flat_map(|(_, rule)| &rule.scopes).any(|scope| scope.peers != ClassSet::All);
        let missing =
            (meaning == Meaning::Deny && by_peer).then(|| Filings::new(meaning, &rules, ways, false).into());
        Self { meaning, known, missing }
    }

    /// The first rule, from this position on, that meets the test. Every rule that matches the question is tested,
    /// unless one before it met the test; so are some that do not match it.
    pub(crate) fn first(
        &self,
        probe: &Probe<'_>,
        from: usize,
        test: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let mut search = Search::new(from, test);
        match self.meaning {
            Meaning::Allow => self.allows(probe, &mut search),
            Meaning::Deny => self.denies(probe, &mut search),
        }
        search.found()
    }

    fn allows<F: FnMut(usize) -> bool>(&self, probe: &Probe<'_>, search: &mut Search<F>) {
        // No allow matches a peer that nobody knows.
        if !probe.is_known() {
            return;
        }
        let Filings { plain, conditional, requests, tls } = &self.known;
        let reach = probe.reach();
        plain.by(reach, search);
        match probe.facts {
            Facts::Connection => conditional.by(reach, search),
            Facts::Unknown => {}
            Facts::Request(request) => {
                requests.by(reach, search);
                if let Some(strict) = request.path.strict().filter(|_| requests.has_paths()) {
                    requests.by_path(probe.strict(strict), strict, request.query, search);
                }
                if requests.has_names()
                    && let Some(host) = probe.name()
                {
                    requests.more(host.all(), search);
                }
            }
            Facts::Tls(_) => {
                let Some(name) = probe.name() else { return };
                tls.by(reach, search);
                tls.more(name.all(), search);
            }
        }
    }

    fn denies<F: FnMut(usize) -> bool>(&self, probe: &Probe<'_>, search: &mut Search<F>) {
        let filings = match &self.missing {
            Some(missing) if !probe.is_known() => missing,
            _ => &self.known,
        };
        let reach = probe.reach();
        filings.plain.by(reach, search);
        match probe.facts {
            // Only TCP can be read at all: elsewhere a condition cannot be known, and a deny takes it.
            Facts::Connection if probe.connection.protocol == Protocol::Tcp => {}
            Facts::Connection | Facts::Unknown => filings.conditional.by(reach, search),
            Facts::Request(request) => filings.deny_request(probe, request, search),
            Facts::Tls(_) => {
                // What has no name may have any.
                let Some(name) = probe.name() else { return filings.conditional.by(reach, search) };
                filings.tls.by(reach, search);
                filings.tls.more(name.all(), search);
            }
        }
    }

    /// The first rule, from this position on, that reaches the connection and meets the test, whatever is said.
    pub(crate) fn first_reaching(
        &self,
        probe: &Probe<'_>,
        from: usize,
        test: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let filings = match &self.missing {
            Some(missing) if !probe.is_known() => missing,
            _ => &self.known,
        };
        let mut search = Search::new(from, test);
        filings.plain.by(probe.reach(), &mut search);
        filings.conditional.by(probe.reach(), &mut search);
        search.found()
    }
}

impl Filings {
    fn new<'a>(meaning: Meaning, rules: &[(u32, &'a Rule)], ways: &mut Ways<'a>, known: bool) -> Self {
        let (mut plain, mut conditional) = (Vec::new(), Vec::new());
        let (mut requests, mut tls) = (Vec::new(), Vec::new());
        for &(position, rule) in rules {
            let entry = |own: Vec<_>, ways: &mut Ways<'a>| Entry {
                position,
                ways: own.into_iter().chain(ways.reach(rule, known)).collect(),
            };
            let Some(conditions) = rule.conditions.as_deref() else {
                plain.push(entry(Vec::new(), ways));
                continue;
            };
            conditional.push(entry(Vec::new(), ways));
            for item in &conditions.http {
                let own = ways.http(item, meaning);
                requests.push(entry(own, ways));
            }
            for item in &conditions.grpc {
                let own = ways.grpc(item, meaning).into_iter().collect();
                requests.push(entry(own, ways));
            }
            // To a deny, what is said inside TLS is anything.
            let anything =
                meaning == Meaning::Deny && !(conditions.http.is_empty() && conditions.grpc.is_empty());
            if anything {
                tls.push(entry(Vec::new(), ways));
            } else {
                let own = ways.tls(&conditions.tls).into_iter().collect();
                tls.push(entry(own, ways));
            }
        }
        Self {
            plain: Filing::new(plain),
            conditional: Filing::new(conditional),
            requests: Filing::new(requests),
            tls: Filing::new(tls),
        }
    }

    fn deny_request<F: FnMut(usize) -> bool>(
        &self,
        probe: &Probe<'_>,
        request: &Request<'_>,
        search: &mut Search<F>,
    ) {
        let requests = &self.requests;
        requests.by(probe.reach(), search);
        if requests.has_names() {
            // A deny takes a host that is missing or cannot be read for any host.
            let Some(host) = probe.name() else { return self.conditional.by(probe.reach(), search) };
            requests.more(host.all(), search);
        }
        if !requests.has_paths() {
            return;
        }
        if let Some(path) = request.plain_path() {
            requests.by_path(probe.folded(path), path, request.query, search);
            if let Some(shorter) = path.strip_suffix('/') {
                requests.more(&[probe.side.seed.path(shorter.as_bytes(), Case::Folded).exact], search);
            }
            if requests.has_patterns() {
                request.path.alike().for_each(|path| requests.by_patterns(&path, request.query, search));
            }
            return;
        }
        let bottomless = request.any_path(|reading| {
            let keys = probe.side.seed.path(reading.as_bytes(), Case::Folded);
            requests.by_path(&keys, reading, request.query, search);
            false
        });
        // Read so deeply that any deny of a path takes it.
        if bottomless {
            self.conditional.by(probe.reach(), search);
        }
    }
}
