//! Checks of rules against rules: which never decide, and what decides in their place.
//!
//! Works on the compiled sides of an inhabited cluster, so that order, tiers, layers and modes are the engine's own.
//! A rule is idle if at every peer and port that it reaches something else takes each of its alternatives: the
//! points are tried one by one, the alternatives compared as in `covers`, and a request made from the rule is put
//! to the engine first, which refutes most suspicions at once. Knows nothing of paths and texts.

use super::covers::{How, Item, covers, items};
use sluice_policy::path::Path;
use sluice_policy::{
    ClassId, ClassSet, Connection, Decision, Facts, HeaderTest, HttpMatch, HttpVersion, LayerKind,
    MethodMatch, Mode, Origin, PathMatch, PortSet, Protocol, Request, Rule, RuleName, Side, Snapshot,
    TierAction, TierRule,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Most questions that one analysis asks: a cluster that needs more is not compared to its end.
const MAX_WORK: usize = 20_000_000;

/// A rule, as verdicts name it.
pub(super) type Key = (Origin, RuleName);

/// Why an alternative never decides. In the order in which the reasons are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// A rule of the Admin tier decides before it.
    Tier,
    /// An earlier rule of the same tier takes it.
    Earlier,
    /// A deny takes it.
    Denied,
    /// Another layer, or the Baseline tier in its place, lets nothing of it through.
    Closed,
    /// An allow of the same layer has no conditions, where it has.
    Cancelled,
    /// Another rule of its kind takes it, too.
    Covered,
}

/// A rule, or some of its alternatives, that never decides.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) rule: Key,
    /// The place of the one alternative below the rule's; `None`: all of the rule.
    pub(super) alternative: Option<String>,
    /// It denies.
    pub(super) deny: bool,
    /// What decides in its place, and why.
    pub(super) causes: BTreeSet<(Why, Cause)>,
}

/// What decides in the place of an idle rule.
pub(super) type Cause = (Origin, Option<RuleName>);

/// Where a rule stands in its side.
#[derive(Clone, Copy)]
enum Stage {
    Admin(usize),
    Deny(usize),
    Allow(LayerKind, usize),
    Baseline(usize),
}

/// One occurrence of a rule.
#[derive(Clone, Copy)]
struct Site<'s> {
    side: &'s Side,
    /// The number of the side, for its cuts.
    number: usize,
    stage: Stage,
    rule: &'s Rule,
}

/// Compares the rules of a snapshot.
pub(super) struct Overlaps<'s> {
    snapshot: &'s Snapshot,
    /// By rule, in the order of their first occurrence.
    sites: Vec<(Key, Vec<Site<'s>>)>,
    /// The first ports of the stretches between which no rule of a side tells ports apart.
    cuts: Vec<BTreeMap<Protocol, BTreeSet<u16>>>,
    /// Rules that were found to add nothing: they stand in for no other.
    idle: HashSet<Key>,
    work: usize,
}

impl<'s> Overlaps<'s> {
    pub(super) fn new(snapshot: &'s Snapshot) -> Self {
        let mut out = Self { snapshot, sites: Vec::new(), cuts: Vec::new(), idle: HashSet::new(), work: 0 };
        let mut known: HashMap<Key, usize> = HashMap::new();
        for side in snapshot.profiles.iter().flat_map(|profile| [&profile.ingress, &profile.egress]) {
            let number = out.cuts.len();
            out.cuts.push(cuts(side));
            for (stage, rule) in staged(side) {
                let key = (rule.policy.origin.clone(), rule.name.clone());
                let place = *known.entry(key.clone()).or_insert_with(|| {
                    out.sites.push((key, Vec::new()));
                    out.sites.len() - 1
                });
                out.sites[place].1.push(Site { side, number, stage, rule });
            }
        }
        out
    }

    /// Whether everything could be compared.
    pub(super) const fn is_complete(&self) -> bool {
        self.work < MAX_WORK
    }

    /// The rules that never decide. The later of two that say the same is told first, and stands in for none.
    pub(super) fn idle(&mut self) -> Vec<Idle> {
        let mut out = Vec::new();
        for place in (0..self.sites.len()).rev() {
            let (key, sites) = &self.sites[place];
            let (key, sites) = (key.clone(), sites.clone());
            let idle = self.one(&key, &sites);
            if idle.iter().any(|idle| idle.alternative.is_none()) {
                self.idle.insert(key);
            }
            out.extend(idle);
        }
        out
    }

    /// Asks of one rule.
    fn one(&mut self, key: &Key, sites: &[Site<'s>]) -> Vec<Idle> {
        let Some(first) = sites.first() else { return Vec::new() };
        // Every occurrence of a rule has its alternatives.
        let alternatives = items(first.rule);
        let mut causes: Vec<Option<BTreeSet<(Why, Cause)>>> = vec![Some(BTreeSet::new()); alternatives.len()];
        for site in sites {
            let points = self.points(site);
            for (place, (_, item)) in alternatives.iter().enumerate() {
                for point in &points {
                    let Some(known) = &mut causes[place] else { break };
                    if !self.is_complete() {
                        return Vec::new();
                    }
                    match self.cause(site, *item, point) {
                        Some(cause) => {
                            known.insert(cause);
                        }
                        None => causes[place] = None,
                    }
                }
            }
        }
        // A rule that reaches nobody has other findings.
        let idle = causes.into_iter().map(|causes| causes.filter(|causes| !causes.is_empty()));
        let idle: Vec<Option<BTreeSet<_>>> = idle.collect();
        let deny = how(first) == How::Deny;
        let of = |alternative, causes| Idle { rule: key.clone(), alternative, deny, causes };
        if idle.iter().all(Option::is_some) {
            return vec![of(None, idle.into_iter().flatten().flatten().collect())];
        }
        let places = alternatives.into_iter().map(|(place, _)| place).zip(idle);
        places.filter_map(|(place, causes)| Some(of(Some(place), causes?))).collect()
    }

    /// The connections that a rule reaches, one for each class and stretch of ports.
    fn points(&self, site: &Site<'s>) -> Vec<Connection> {
        let conditional_allow = site.rule.conditions.is_some() && how(site) == How::Allow;
        let mut out = Vec::new();
        for scope in &site.rule.scopes {
            let ports = ports(&scope.ports, &self.cuts[site.number], conditional_allow);
            for peer in classes(&scope.peers, self.snapshot.classes.len()) {
                out.extend(ports.iter().map(|&(protocol, port)| Connection::new(peer, protocol, port)));
            }
        }
        out
    }

    /// What decides of this alternative at this point in the place of the rule; `None`: the rule may.
    fn cause(&mut self, site: &Site<'s>, item: Item<'_>, point: &Connection) -> Option<(Why, Cause)> {
        let Site { side, rule, .. } = *site;
        self.work += 1 + side.deny.len() + side.admin.len();
        // Where the engine names the rule, only one that says the same can make it needless.
        let decides = decides(site, item, point);
        let inner = how(site);
        let asked = Asked { rule, item, inner, point };
        let by = |why: Why, rule: &Rule| Some((why, (rule.policy.origin.clone(), Some(rule.name.clone()))));
        match site.stage {
            Stage::Admin(_) | Stage::Baseline(_) if decides => None,
            Stage::Admin(at) => asked.tier(&side.admin[..at]).and_then(|rule| by(Why::Earlier, rule)),
            Stage::Baseline(at) => asked.tier(&side.baseline[..at]).and_then(|rule| by(Why::Earlier, rule)),
            Stage::Deny(at) => {
                if let Some(rule) = asked.tier(&side.admin).filter(|_| !decides) {
                    return by(Why::Tier, rule);
                }
                let other = side.deny.iter().enumerate().filter(|(other, _)| *other != at);
                let mut other = other.map(|(_, rule)| rule).filter(|rule| self.stands(rule));
                other.find(|deny| asked.denied(deny)).and_then(|rule| by(Why::Covered, rule))
            }
            Stage::Allow(kind, at) => {
                if let Some(rule) = asked.tier(&side.admin).filter(|_| !decides) {
                    return by(Why::Tier, rule);
                }
                if let Some(rule) = side.deny.iter().find(|deny| !decides && asked.denied(deny)) {
                    return by(Why::Denied, rule);
                }
                self.layers(side, kind, at, &asked).filter(|(why, _)| !decides || *why != Why::Closed)
            }
        }
    }

    /// What of the layers decides in the place of an allow.
    fn layers(&mut self, side: &Side, kind: LayerKind, at: usize, asked: &Asked<'_>) -> Option<(Why, Cause)> {
        for (layer, other) in side.layers.iter().zip(LayerKind::ALL) {
            let Connection { peer, protocol, port, .. } = *asked.point;
            self.work += layer.allow.len();
            if other == kind {
                let others = layer.allow.iter().enumerate().filter(|(other, _)| *other != at);
                let mut others = others.map(|(_, rule)| rule).filter(|rule| self.stands(rule));
                let Some(rule) = others.find(|allow| asked.allowed(allow)) else { continue };
                let cancelled = rule.conditions.is_none() && asked.rule.conditions.is_some();
                let why = if cancelled { Why::Cancelled } else { Why::Covered };
                return Some((why, (rule.policy.origin.clone(), Some(rule.name.clone()))));
            }
            let isolates = |policy: &sluice_policy::Policy| asked.takes(policy);
            let isolation =
                layer.isolation.iter().find(|i| isolates(&i.policy) && i.ports.contains(protocol, port));
            let reached = || layer.allow.iter().any(|allow| allow.allows_reach(peer, protocol, port));
            match isolation {
                Some(isolation) if !reached() => {
                    return Some((Why::Closed, (isolation.policy.origin.clone(), None)));
                }
                Some(_) => {}
                None if other == LayerKind::K => {
                    let closed = side.baseline.iter().find(|tiered| asked.reached(tiered));
                    if let Some(TierRule { action: TierAction::Deny, rule }) = closed
                        && asked.denied(rule)
                    {
                        return Some((Why::Closed, (rule.policy.origin.clone(), Some(rule.name.clone()))));
                    }
                }
                None => {}
            }
        }
        None
    }

    /// Whether a rule may stand in for another.
    fn stands(&self, rule: &Rule) -> bool {
        self.idle.is_empty() || !self.idle.contains(&(rule.policy.origin.clone(), rule.name.clone()))
    }
}

impl Overlaps<'_> {
    /// To be asked after [`Self::idle`]: the Pass rules after which no rule of their tier has anything to say that they leave out.
    pub(super) fn needless_passes(&self) -> Vec<Key> {
        let needless = |site: &Site<'_>| {
            let (tier, at) = match site.stage {
                Stage::Admin(at) => (&site.side.admin, at),
                Stage::Baseline(at) => (&site.side.baseline, at),
                Stage::Deny(_) | Stage::Allow(..) => return None,
            };
            if tier[at].action != TierAction::Pass {
                return None;
            }
            let points = self.points(site);
            let later = |point: &Connection| {
                let asked = Asked { rule: site.rule, item: Item::Everything, inner: How::Allow, point };
                // Passing twice is passing once.
                tier[at + 1..].iter().any(|tiered| tiered.action != TierAction::Pass && asked.reached(tiered))
            };
            Some((!points.is_empty(), points.iter().any(later)))
        };
        let mut out = Vec::new();
        // Of a rule that is never reached that is told.
        for (key, sites) in self.sites.iter().filter(|(key, _)| !self.idle.contains(key)) {
            let found: Option<Vec<(bool, bool)>> = sites.iter().map(needless).collect();
            let Some(found) = found else { continue };
            if found.iter().any(|(reaches, _)| *reaches) && found.iter().all(|(_, later)| !later) {
                out.push(key.clone());
            }
        }
        out
    }

    /// Rules of two policies that meet, and of which only the names of the policies say which is asked first:
    /// `place` is a policy's tier and priority. The first pair of each two policies.
    pub(super) fn ties<P: PartialEq>(&self, place: impl Fn(&Origin) -> Option<P>) -> Vec<(Key, Key)> {
        let mut out: BTreeMap<(Origin, Origin), (Key, Key)> = BTreeMap::new();
        let key = |rule: &Rule| (rule.policy.origin.clone(), rule.name.clone());
        for site in self.sites.iter().flat_map(|(_, sites)| sites) {
            let (tier, at) = match site.stage {
                Stage::Admin(at) => (&site.side.admin, at),
                Stage::Baseline(at) => (&site.side.baseline, at),
                Stage::Deny(_) | Stage::Allow(..) => continue,
            };
            let own = &site.rule.policy.origin;
            let Some(here) = place(own) else { continue };
            let rivals = tier[at + 1..].iter().filter(|rival| {
                let theirs = &rival.rule.policy.origin;
                theirs != own && rival.action != tier[at].action && place(theirs).as_ref() == Some(&here)
            });
            for rival in rivals {
                let pair = (own.clone(), rival.rule.policy.origin.clone());
                let meets = |point: &Connection| {
                    Asked { rule: site.rule, item: Item::Everything, inner: How::Allow, point }.reached(rival)
                };
                if !out.contains_key(&pair) && self.points(site).iter().any(meets) {
                    out.insert(pair, (key(site.rule), key(&rival.rule)));
                }
            }
        }
        out.into_values().collect()
    }
}

/// One alternative of a rule at one point.
struct Asked<'a> {
    rule: &'a Rule,
    item: Item<'a>,
    inner: How,
    point: &'a Connection,
}

impl Asked<'_> {
    /// Whether a policy decides wherever this rule would: it enforces, or it is the same.
    fn takes(&self, policy: &sluice_policy::Policy) -> bool {
        policy.mode == Mode::Enforce || policy.id == self.rule.policy.id
    }

    fn denied(&self, deny: &Rule) -> bool {
        let Connection { peer, protocol, port, .. } = *self.point;
        let readable = protocol == Protocol::Tcp;
        self.takes(&deny.policy)
            && deny.denies_reach(peer, protocol, port)
            && (!readable || covers(deny.conditions.as_deref(), How::Deny, self.item, self.inner))
    }

    fn allowed(&self, allow: &Rule) -> bool {
        let Connection { peer, protocol, port, .. } = *self.point;
        self.takes(&allow.policy)
            && allow.allows_reach(peer, protocol, port)
            && covers(allow.conditions.as_deref(), How::Allow, self.item, self.inner)
    }

    fn reached(&self, tiered: &TierRule) -> bool {
        let Connection { peer, protocol, port, .. } = *self.point;
        self.takes(&tiered.rule.policy)
            && match tiered.action {
                TierAction::Deny => tiered.rule.denies_reach(peer, protocol, port),
                TierAction::Accept | TierAction::Pass => tiered.rule.allows_reach(peer, protocol, port),
            }
    }

    /// The rule of a tier that decides before this one. A Pass that may hold leaves the rest of the tier out; of a
    /// rule in the tier itself that is enough to decide in its place.
    fn tier<'r>(&self, before: &'r [TierRule]) -> Option<&'r Rule> {
        for tiered in before.iter().filter(|tiered| self.reached(tiered)) {
            let taken = match tiered.action {
                TierAction::Deny => self.denied(&tiered.rule),
                TierAction::Accept | TierAction::Pass => self.allowed(&tiered.rule),
            };
            match (taken, tiered.action) {
                (true, TierAction::Accept | TierAction::Deny) => return Some(&tiered.rule),
                (true, TierAction::Pass) => return self.in_tier().then_some(&tiered.rule),
                (false, TierAction::Pass) => return None,
                (false, TierAction::Accept | TierAction::Deny) => {}
            }
        }
        None
    }

    fn in_tier(&self) -> bool {
        use sluice_policy::Kind::{ClusterL7NetworkPolicy, ClusterNetworkPolicy};
        matches!(self.rule.policy.origin.kind, ClusterL7NetworkPolicy | ClusterNetworkPolicy)
    }
}

/// How a rule is asked.
fn how(site: &Site<'_>) -> How {
    let of_tier = |tier: &[TierRule], at: usize| match tier[at].action {
        TierAction::Deny => How::Deny,
        TierAction::Accept | TierAction::Pass => How::Allow,
    };
    match site.stage {
        Stage::Deny(_) => How::Deny,
        Stage::Allow(..) => How::Allow,
        Stage::Admin(at) => of_tier(&site.side.admin, at),
        Stage::Baseline(at) => of_tier(&site.side.baseline, at),
    }
}

/// Every rule of a side and its place.
fn staged(side: &Side) -> Vec<(Stage, &Rule)> {
    let mut out: Vec<(Stage, &Rule)> = Vec::new();
    out.extend(side.admin.iter().enumerate().map(|(at, tiered)| (Stage::Admin(at), &tiered.rule)));
    out.extend(side.deny.iter().enumerate().map(|(at, rule)| (Stage::Deny(at), rule)));
    for (layer, kind) in side.layers.iter().zip(LayerKind::ALL) {
        out.extend(layer.allow.iter().enumerate().map(|(at, rule)| (Stage::Allow(kind, at), rule)));
    }
    out.extend(side.baseline.iter().enumerate().map(|(at, tiered)| (Stage::Baseline(at), &tiered.rule)));
    out
}

/// Where something about ports may change.
fn cuts(side: &Side) -> BTreeMap<Protocol, BTreeSet<u16>> {
    let mut out: BTreeMap<Protocol, BTreeSet<u16>> =
        Protocol::ALL.into_iter().map(|protocol| (protocol, BTreeSet::from([0]))).collect();
    for range in side.rules().flat_map(Rule::ranges) {
        if let Some(cuts) = out.get_mut(&range.protocol) {
            cuts.insert(range.first);
            cuts.extend(range.last.checked_add(1));
        }
    }
    for isolation in side.layers.iter().flat_map(|layer| &layer.isolation) {
        if let sluice_policy::IsolatedPorts::Listed(listed) = &isolation.ports {
            for (_, cuts) in out.iter_mut().filter(|(protocol, _)| protocol.has_ports()) {
                cuts.extend(listed.iter().map(|(first, _)| *first));
                cuts.extend(listed.iter().filter_map(|(_, last)| last.checked_add(1)));
            }
        }
    }
    out
}

fn ports(given: &PortSet, cuts: &BTreeMap<Protocol, BTreeSet<u16>>, tcp_alone: bool) -> Vec<(Protocol, u16)> {
    let mut out = Vec::new();
    for (protocol, cuts) in cuts.iter().filter(|(protocol, _)| !tcp_alone || **protocol == Protocol::Tcp) {
        let named = cuts.iter().filter(|port| given.contains(*protocol, **port));
        out.extend(named.map(|port| (*protocol, *port)));
    }
    out
}

/// The classes of a set, but for the one of nobody.
fn classes(set: &ClassSet, count: usize) -> Vec<ClassId> {
    let all = 1..u32::try_from(count).unwrap_or(u32::MAX);
    all.map(ClassId).filter(|class| set.contains(*class)).collect()
}

/// Whether the engine, asked about a request made from the alternative, lets this very rule decide.
fn decides(site: &Site<'_>, item: Item<'_>, point: &Connection) -> bool {
    let is_this = |facts: Facts<'_>| {
        let verdict = site.side.judge(point, facts);
        let decision = if how(site) == How::Deny { Decision::Deny } else { Decision::Allow };
        verdict.decision == decision
            && verdict.origin() == Some(&site.rule.policy.origin)
            && verdict.rule.as_ref() == Some(&site.rule.name)
    };
    match item {
        Item::Everything => is_this(Facts::Connection),
        Item::Http(item) => sample(item, |request| is_this(Facts::Request(request))),
        Item::Grpc(_) | Item::Tls(_) => false,
    }
}

/// Asks about a request that an alternative takes, if one can be made: of a regular expression none is.
fn sample(item: &HttpMatch, ask: impl FnOnce(&Request<'_>) -> bool) -> bool {
    let method = match item.methods.first() {
        None => "GET",
        Some(MethodMatch::Exact(method)) => method,
        Some(MethodMatch::Regex(_)) => return false,
    };
    let path = match &item.path {
        None => "/made-up".to_owned(),
        Some(PathMatch::Exact(path)) => path.to_string(),
        Some(PathMatch::Prefix(path)) => format!("{path}/made-up"),
        Some(PathMatch::Regex(_) | PathMatch::Target(_)) => return false,
    };
    let mut headers: Vec<(&str, &[u8])> = Vec::new();
    for header in &item.headers {
        match &header.test {
            HeaderTest::Exact(value) => headers.push((&header.name, value.as_bytes())),
            HeaderTest::Present => headers.push((&header.name, b"made-up")),
            HeaderTest::Absent => {}
            HeaderTest::Regex(_) => return false,
        }
    }
    if !item.hosts.is_empty() || !item.query.is_empty() || !item.upgrades.is_empty() {
        return false;
    }
    ask(&Request {
        version: HttpVersion::Http1,
        method,
        path: Path::new(&path),
        query: None,
        host: None,
        upgrade: None,
        headers: &headers,
    })
}
