//! What a layer's index knows for the nearest miss: which rules may come further than a wrong path, and how far all
//! others can come at most.
//!
//! Without it a refusal would ask every rule, and whoever is refused often would make refusals the dearest answer.

use super::filing::{Entry, Filing, Search};
use super::probe::Probe;
use super::stage::Stage;
use super::ways::{Meaning, Of, Way, Ways};
use crate::grpc::{GrpcMatch, GrpcProtocol};
use crate::miss::depth;
use crate::profile::Rule;
use crate::verdict::Facts;

/// Beside a layer's allows.
#[derive(Debug)]
pub(super) struct Near {
    /// Rules by the services of their gRPC conditions: another method of a service is nearer than another path.
    services: Filing,
    /// Rules by their peers: one that names the peer on another port is nearer than one that does not.
    peers: Filing,
    rules: usize,
    http: bool,
    grpc: bool,
}

impl Near {
    pub(super) fn new<'a>(rules: &'a [Rule], ways: &mut Ways<'a>) -> Self {
        let (mut services, mut peers) = (Vec::new(), Vec::new());
        let mut http = false;
        for (position, rule) in (0..).zip(rules) {
            peers.push(Entry {
                position,
                ways: ways.named(rule).map(|keys| Way::Keys(Of::Reach, keys)).into_iter().collect(),
            });
            let Some(conditions) = rule.conditions.as_deref() else { continue };
            http |= !conditions.http.is_empty();
            for item in &conditions.grpc {
                services.push(Entry { position, ways: vec![ways.service(item, Meaning::Allow)] });
            }
        }
        let grpc = !services.is_empty();
        Self { services: Filing::new(services), peers: Filing::new(peers), rules: rules.len(), http, grpc }
    }

    /// The rule of the stage that came furthest, the first of equals, where none grants. `depth` is how far one came;
    /// `None` if it takes no part.
    pub(super) fn nearest(
        &self,
        stage: &Stage,
        probe: &Probe<'_>,
        depth: impl Fn(usize) -> Option<u8>,
    ) -> Option<usize> {
        let first = || (0..self.rules).find(|place| depth(*place).is_some());
        if !probe.is_known() {
            return first();
        }
        let mut best = Best::default();
        stage.first(probe, 0, |place| best.see(depth(place), place, u8::MAX));
        self.same_service(probe, |place| best.see(depth(place), place, u8::MAX));
        let ceiling = self.ceiling(probe.facts);
        if best.depth <= ceiling {
            stage.first_reaching(probe, 0, |place| best.see(depth(place), place, ceiling));
        }
        if best.depth <= depth::PORT {
            let mut same_peer = Search::new(0, |place| best.see(depth(place), place, depth::PORT));
            self.peers.by(probe.reach(), &mut same_peer);
        }
        // Nobody came any way: the first is as near as the others.
        if best.depth == depth::PEER { first() } else { best.place }
    }

    /// The rules with a gRPC condition on the service that is called.
    fn same_service(&self, probe: &Probe<'_>, see: impl FnMut(usize) -> bool) {
        if let Facts::Request(request) = probe.facts
            && let Some(strict) = request.path.strict()
        {
            self.services.by(probe.strict(strict).prefixes(), &mut Search::new(0, see));
        }
    }

    /// How far a rule can come that is not even worth asking.
    fn ceiling(&self, facts: Facts<'_>) -> u8 {
        let Facts::Request(request) = facts else {
            return if matches!(facts, Facts::Tls(_)) { depth::HOST } else { depth::UNREADABLE };
        };
        let (strict, raw) = (request.path.strict(), request.path.raw());
        let path = if strict.is_some() { depth::PATH } else { depth::AMBIGUOUS_PATH };
        match GrpcMatch::split(raw) {
            _ if self.http => path,
            _ if !self.grpc || !GrpcProtocol::is_any(request) => depth::UNREADABLE,
            _ if strict != Some(raw) => depth::AMBIGUOUS_PATH,
            None => depth::PATH,
            Some(_) => depth::HOST,
        }
    }
}

/// The rule that came furthest so far.
#[derive(Default)]
struct Best {
    depth: u8,
    place: Option<usize>,
}

impl Best {
    /// Sees how far a rule came; whether that is as far as `enough`.
    fn see(&mut self, depth: Option<u8>, place: usize, enough: u8) -> bool {
        let Some(depth) = depth else { return false };
        let earlier = self.place.is_none_or(|first| place < first);
        if depth > self.depth || (depth == self.depth && earlier) {
            (self.depth, self.place) = (depth, Some(place));
        }
        depth >= enough
    }
}
