//! Traffic to a Service, judged by who stands behind it.
//!
//! An endpoint sends to an address that a translation replaces after it was judged, so its egress side is asked about
//! every backend that the translation may choose. The kernel gets one row from that ([`Snapshot::service_rows`]), and
//! the proxy, which chooses itself, those that may be chosen ([`Snapshot::choose`]). Both ask the same walk of the same
//! backends. Knows nothing of how one is chosen.

use crate::class::ClassId;
use crate::fold::{Row, RowAction};
use crate::indexed::IndexedSide;
use crate::origin::{DenyAction, Mode, Policy};
use crate::port::Protocol;
use crate::profile::{Direction, ProfileId, Side};
use crate::service::{Backend, Service, ServicePort};
use crate::snapshot::{Endpoint, Snapshot};
use crate::verdict::{Connection, Decision, Facts, Reason, SideVerdict};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// A port of a Service as one endpoint may use it.
#[derive(Clone, Debug)]
pub struct Choice<'a> {
    /// The Service.
    pub service: &'a Service,
    /// The port of it that was asked for. Its backends are of both families, and allowed or not.
    pub port: &'a ServicePort,
    /// Whom the endpoint's egress lets it use, of the family of the address that was asked for. Sorted. The endpoint
    /// itself is not among them: no host takes a packet from its own address off the wire.
    pub allowed: Vec<Backend>,
    /// What was said of the first that it may not use. Where nobody is allowed, this is the answer; `None` with nobody
    /// allowed: nobody stands there.
    pub refused: Option<(Backend, SideVerdict)>,
}

/// The rows of Services: which class a port of one has, and what a profile's rows say of the class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRows {
    /// Every port of every address. Ports that no profile tells apart have the same class.
    pub ports: Vec<VipPort>,
    /// The rows, for traffic from endpoints. What is not among them does not exist: the kernel denies it.
    pub rows: Vec<ServiceRow>,
}

/// A port of an address of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipPort {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// A number among the classes of Services, from 0. Another thing than [`ClassId`]: no address leads to it.
    pub class: u32,
}

/// What endpoints of a profile may do with the Services of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    /// Whose rules.
    pub profile: ProfileId,
    /// As in [`VipPort::class`].
    pub class: u32,
    /// The protocol.
    pub protocol: Protocol,
    /// The verdict.
    pub row: Row,
}

/// Who may be met behind a port: each class at each port once. Empty: nobody.
type Peers = Vec<(ClassId, u16)>;

impl Snapshot {
    /// Whom an endpoint may use behind an address and port of a Service, by its egress; `None`: no Service has it, and
    /// the address is judged as any.
    ///
    /// With [`Facts::Connection`] these are the backends whose row is not a denial: to some of them perhaps only certain
    /// requests may go. With a request (or TLS, or unknown bytes) those to which it may go. What a chosen backend's own
    /// ingress says is asked of [`judge`](Self::judge), with the backend's address and port.
    #[must_use]
    pub fn choose(
        &self,
        endpoint: &Endpoint,
        (address, protocol, port): (IpAddr, Protocol, u16),
        facts: Facts<'_>,
    ) -> Option<Choice<'_>> {
        let (service, found) = self.services.at(address, protocol, port)?;
        let side = self.profile(endpoint.profile).map(|profile| profile.side(Direction::Egress));
        let mut known: HashMap<(ClassId, u16), SideVerdict> = HashMap::new();
        let mut choice = Choice { service, port: found, allowed: Vec::new(), refused: None };
        let others =
            found.of_family(address).filter(|backend| !endpoint.addresses.contains(&backend.address));
        for backend in others {
            let peer = (self.class_of(backend.address), backend.port);
            let verdict = known.entry(peer).or_insert_with(|| match side {
                Some(side) => side.judge(&Connection::new(peer.0, protocol, peer.1), facts),
                None => SideVerdict::plain(Decision::Deny, Reason::IdentityMissing),
            });
            match verdict.decision {
                Decision::Allow => choice.allowed.push(backend),
                Decision::Deny if choice.refused.is_none() => {
                    choice.refused = Some((backend, verdict.clone()));
                }
                Decision::Deny => {}
            }
        }
        Some(choice)
    }

    /// What the kernel does with what an endpoint of this profile sends to a port of a Service; `None`: no Service has
    /// it, or nobody has the profile.
    #[must_use]
    pub fn service_row(
        &self,
        profile: ProfileId,
        (address, protocol, port): (IpAddr, Protocol, u16),
    ) -> Option<Row> {
        let peers = self.peers_at(address, protocol, port)?;
        let mut asked = Asked::new(self.profile(profile)?.side(Direction::Egress));
        Some(asked.row(protocol, &peers))
    }

    /// What the kernel does with what an endpoint of this profile sends to a Service behind which nobody stands.
    #[must_use]
    pub fn unserved_row(&self, profile: ProfileId) -> Option<Row> {
        Some(nobody(&self.profile(profile)?.side(Direction::Egress)))
    }

    /// Every row for traffic to Services. There are as many classes as there are verdicts that differ for some profile,
    /// however many Services there are.
    #[must_use]
    pub fn service_rows(&self) -> ServiceRows {
        let mut alike: BTreeMap<(Protocol, Peers), Vec<(IpAddr, u16)>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for (address, protocol, port) in self.services.keys().filter(|key| seen.insert(*key)) {
            let Some(peers) = self.peers_at(address, protocol, port) else { continue };
            alike.entry((protocol, peers)).or_default().push((address, port));
        }
        let mut sides: Vec<Asked<'_>> =
            self.profiles.iter().map(|profile| Asked::new(profile.side(Direction::Egress))).collect();
        let mut classes: HashMap<(Protocol, Vec<Row>), u32> = HashMap::new();
        let mut out = ServiceRows::default();
        for ((protocol, peers), ports) in alike {
            let verdicts: Vec<Row> = sides.iter_mut().map(|side| side.row(protocol, &peers)).collect();
            let next = u32::try_from(classes.len()).unwrap_or(u32::MAX);
            let class = *classes.entry((protocol, verdicts)).or_insert_with_key(|(_, verdicts)| {
                let rows = verdicts.iter().zip(0..);
                let row = |(row, id): (&Row, u32)| ServiceRow {
                    profile: ProfileId(id),
                    class: next,
                    protocol,
                    row: *row,
                };
                out.rows.extend(rows.map(row));
                next
            });
            out.ports.extend(ports.into_iter().map(|(address, port)| VipPort {
                address,
                protocol,
                port,
                class,
            }));
        }
        out
    }

    /// Whom a connection to this port may reach. Where several Services claim it, whoever stands behind any: nobody
    /// knows whose rule the translation takes.
    fn peers_at(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<Peers> {
        let mut claims = self.services.claims(address, protocol, port).peekable();
        claims.peek()?;
        let backends = claims.flat_map(|(_, port)| port.of_family(address));
        let mut peers: Peers =
            backends.map(|backend| (self.class_of(backend.address), backend.port)).collect();
        peers.sort_unstable();
        peers.dedup();
        Some(peers)
    }
}

/// One side that is asked about many ports of Services. Classes that none of its rules tells apart are asked once.
struct Asked<'a> {
    side: IndexedSide<'a>,
    known: HashMap<(Option<u32>, Protocol, u16), Row>,
}

impl<'a> Asked<'a> {
    fn new(side: IndexedSide<'a>) -> Self {
        Self { side, known: HashMap::new() }
    }

    fn row(&mut self, protocol: Protocol, peers: &[(ClassId, u16)]) -> Row {
        let Self { side, known } = self;
        let rows = peers.iter().map(|&(peer, port)| {
            // Nobody shares the verdicts of the peer that nobody knows.
            let group = (peer != ClassId::MISSING).then(|| side.index.groups.of(peer));
            let ask = || side.row(&Connection::new(peer, protocol, port));
            *known.entry((group, protocol, port)).or_insert_with(ask)
        });
        fold(rows, protocol).unwrap_or_else(|| nobody(side))
    }
}

/// The verdict on a port by the rows of its backends: one that holds whichever of them the translation chooses. Mixed
/// TCP goes to the proxy, which chooses; of anything else the kernel cannot say whom it will reach.
fn fold(rows: impl Iterator<Item = Row>, protocol: Protocol) -> Option<Row> {
    let (mut denied, mut passed, mut governed): (Option<Row>, Option<Row>, Option<Row>) = (None, None, None);
    // Whether every backend may be used without a proxy, and whether an audited policy would refuse one.
    let (mut fail_open, mut audit) = (true, false);
    for row in rows {
        let first = match row.action {
            RowAction::Deny => &mut denied,
            RowAction::Allow => &mut passed,
            RowAction::ToProxy => &mut governed,
        };
        *first = first.or(Some(row));
        fail_open &= row.action == RowAction::Allow || row.action == RowAction::ToProxy && row.fail_open;
        audit |= row.audit;
    }
    match (denied, passed, governed) {
        (Some(denied), None, None) => Some(denied),
        (Some(denied), ..) if protocol != Protocol::Tcp => Some(denied),
        (None, Some(mut passed), None) => {
            // What passes names no rule: else there were a class for each rule, not for each verdict.
            (passed.audit, passed.by) = (audit, None);
            Some(passed)
        }
        (_, passed, governed) => {
            let mut row = governed.or(passed)?;
            (row.action, row.fail_open, row.audit) = (RowAction::ToProxy, fail_open, false);
            row.by = None;
            Some(row)
        }
    }
}

/// Nobody stands there: nothing is known of who would answer, if the translation knows of somebody who is new. So it
/// passes only where no policy in force speaks of whom the endpoint may reach, and the node refuses it.
fn nobody(side: &Side) -> Row {
    let isolations = side.layers.iter().flat_map(|layer| &layer.isolation).map(|isolation| &isolation.policy);
    let isolations: Vec<_> = isolations.collect();
    let says = |policy: &Policy| policy.mode == Mode::Enforce && policy.on_deny.action == DenyAction::Reject;
    let reject = isolations.iter().any(|policy| says(policy));
    let mut governing = side.rules().map(|rule| &rule.policy).chain(isolations).peekable();
    let audit = governing.peek().is_some();
    let free = governing.all(|policy| policy.mode == Mode::Audit);
    let action = if free { RowAction::Allow } else { RowAction::Deny };
    Row { action, fail_open: false, audit: free && audit, reject: !free && reject, by: None }
}
