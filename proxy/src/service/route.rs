//! Where a connection or a request goes, and whether it may: one answer, by one snapshot.
//!
//! A direct destination is judged as it is. A Service's is judged by its backends, and one that may be reached is
//! chosen; where none may, the verdict is the one of its first group, by address, so that the same request is always
//! refused for the same reason. A flow is registered under the backend it goes to, and judged by a snapshot that was in
//! force after that: so each change of policy finds it, and what was allowed for one backend never reaches another.

use super::balance::{Allowed, Balance, Load};
use super::vip::Vip;
use crate::draft::{Draft, Ends};
use crate::judge::{self, Judged, Leg};
use crate::limits::CHOICES;
use crate::proxy::Proxy;
use crate::state::{OpenFlow, Said, View, Wake};
use sluice_policy::Reason;
use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A client's connection, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The client and the original destination.
    pub leg: Leg,
    /// The destination was a Service's when the connection came. One that was not is a direct destination for as long
    /// as the connection lasts.
    pub service: bool,
}

impl Client {
    /// A connection that came under this snapshot.
    #[must_use]
    pub fn of(view: &View, leg: Leg) -> Self {
        Self { leg, service: view.is_service(leg.destination) }
    }

    /// A record of what cannot be said to go to anybody: it could not be read.
    #[must_use]
    pub fn record(&self, view: &View, protocol: &'static str) -> Draft {
        let service = view.vip(self.leg.destination).filter(|_| self.service);
        Target { service, ..Target::direct(self.leg) }.record(view, protocol)
    }
}

/// What one request or connection goes to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The client, and who serves it.
    pub leg: Leg,
    /// By which Service.
    pub service: Option<Arc<Vip>>,
    /// `false`: the Service has no backend now.
    pub reachable: bool,
    /// The address that the server sees: the client's. A pod takes no packet from its own address, so one that
    /// reaches itself by a Service comes from the Service's (kube-proxy masquerades here).
    pub from: IpAddr,
}

impl Target {
    /// A destination as it came.
    #[must_use]
    pub const fn direct(leg: Leg) -> Self {
        Self { leg, service: None, reachable: true, from: leg.source.ip() }
    }

    fn backend(view: &View, client: &Client, vip: &Arc<Vip>, backend: SocketAddr) -> Self {
        let source = client.leg.source;
        let itself = own_addresses(view, source.ip()).contains(&backend.ip());
        Self {
            leg: Leg { source, destination: backend },
            service: Some(vip.clone()),
            reachable: true,
            from: if itself { vip.address.ip() } else { source.ip() },
        }
    }

    /// A record of this target that begins now.
    #[must_use]
    pub fn record(&self, view: &View, protocol: &'static str) -> Draft {
        self.through(Draft::begin(view, &self.leg, protocol))
    }

    /// The same, of one connection's requests.
    #[must_use]
    pub fn record_of(&self, ends: &mut Ends, view: &Arc<View>, protocol: &'static str) -> Draft {
        self.through(ends.begin(view, &self.leg, protocol))
    }

    fn through(&self, mut record: Draft) -> Draft {
        if let Some(vip) = &self.service {
            record.through(vip);
        }
        record
    }
}

/// Which backend is wanted, among those that are allowed.
#[derive(Clone, Copy, Debug)]
pub enum Wish<'a> {
    /// The first of these, which are connected already; else any.
    Keep(&'a [SocketAddr]),
    /// One of these, since no more may be connected; any, where none of them is allowed.
    Among(&'a [SocketAddr]),
}

impl Wish<'_> {
    /// Whichever has least to do.
    pub const ANY: Self = Self::Keep(&[]);
}

/// A decision, registered.
#[derive(Debug)]
pub struct Route {
    /// Where it goes; where it is denied, the backend that denies.
    pub target: Target,
    /// What the judge said of it.
    pub judged: Judged,
    /// The flow; told when a later snapshot denies it.
    pub flow: OpenFlow,
    /// The snapshot that judged.
    pub view: Arc<View>,
    /// Its weight at the backend.
    pub load: Option<Load>,
}

impl Route {
    /// Whether it goes on.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.judged.is_denied()
    }
}

impl Proxy {
    /// Decides what was said by a client, and registers the flow.
    pub fn route(
        &self,
        client: &Client,
        said: &Said,
        wish: Wish<'_>,
        judge: impl Fn(&View, &Leg) -> Judged,
    ) -> Route {
        self.route_of(client, said, wish, None, judge)
    }

    /// As [`Proxy::route`], for a task that has one flow after the other: it is woken by the same wake for each.
    pub(crate) fn route_of(
        &self,
        client: &Client,
        said: &Said,
        wish: Wish<'_>,
        wake: Option<&Arc<Wake>>,
        judge: impl Fn(&View, &Leg) -> Judged,
    ) -> Route {
        if !client.service {
            return self.route_direct(client.leg, said, wake, judge);
        }
        for _ in 0..CHOICES {
            let view = self.state.view();
            let Some(vip) = view.vip(client.leg.destination) else {
                // The Service has gone: what is still asked of its address is asked of a stranger.
                return self.route_direct(client.leg, said, wake, judge);
            };
            let (target, judged) = self.choose(&view, client, &vip, wish, &judge);
            let flow = self.register(target.leg, said, wake);
            // Registered under a snapshot that has not been replaced: whichever replaces it sees the flow.
            if Arc::ptr_eq(&view, &self.state.view()) {
                let load = (!judged.is_denied()).then(|| self.balance.open(target.leg.destination));
                return Route { target, judged, flow, view, load };
            }
        }
        let flow = self.register(client.leg, said, wake);
        let judged = Judged::of(judge::refuse(Reason::Limit));
        Route { target: Target::direct(client.leg), judged, flow, view: self.state.view(), load: None }
    }

    fn register(&self, leg: Leg, said: &Said, wake: Option<&Arc<Wake>>) -> OpenFlow {
        match wake {
            Some(wake) => self.state.open_beside(leg, said.clone(), wake),
            None => self.state.open(leg, said.clone()),
        }
    }

    fn route_direct(
        &self,
        leg: Leg,
        said: &Said,
        wake: Option<&Arc<Wake>>,
        judge: impl Fn(&View, &Leg) -> Judged,
    ) -> Route {
        // Before the view is loaded: then either the judge sees a new snapshot, or its swap sees the flow.
        let flow = self.register(leg, said, wake);
        let view = self.state.view();
        let judged = judge(&view, &leg);
        Route { target: Target::direct(leg), judged, flow, view, load: None }
    }

    /// Whether anybody may be reached, before it is known what is asked: some backend's verdict that allows, or the
    /// one that denies.
    #[must_use]
    pub fn reach(
        &self,
        view: &View,
        client: &Client,
        judge: impl Fn(&View, &Leg) -> Judged,
    ) -> (Target, Judged) {
        let Some(vip) = view.vip(client.leg.destination).filter(|_| client.service) else {
            return (Target::direct(client.leg), judge(view, &client.leg));
        };
        let panel = Panel::new(view, client, &vip, &judge);
        let allowing = (0..panel.verdicts.len()).find(|group| panel.allows_group(*group));
        let backend = allowing.and_then(|group| panel.pieces(group).next()?.first().copied());
        backend.and_then(|backend| panel.take(backend)).unwrap_or_else(|| panel.refuse())
    }

    /// One backend that allows, by what is wanted, by whom the client had, by load; or who denies.
    fn choose(
        &self,
        view: &View,
        client: &Client,
        vip: &Arc<Vip>,
        wish: Wish<'_>,
        judge: &impl Fn(&View, &Leg) -> Judged,
    ) -> (Target, Judged) {
        let panel = Panel::new(view, client, vip, judge);
        let source = client.leg.source.ip();
        let first = |open: &[SocketAddr]| open.iter().copied().find(|backend| panel.allows(*backend));
        if let Wish::Keep(open) = wish
            && let Some(taken) = first(open).and_then(|backend| panel.take(backend))
        {
            return taken;
        }
        // One that has left the Service is forgotten; one that does not allow this request is not: it may the next.
        let remembered =
            self.balance.remembered(source, vip).filter(|backend| vip.group_of(*backend).is_some());
        let kept = remembered.filter(|backend| panel.allows(*backend));
        let open = match wish {
            Wish::Among(open) => open.iter().copied().filter(|backend| panel.allows(*backend)).collect(),
            Wish::Keep(_) => Vec::new(),
        };
        let backend = kept.or_else(|| self.pick(vip, source, &open, &panel.allowed()));
        if let Some(backend) = backend.filter(|_| kept == remembered) {
            self.balance.remember(source, vip, backend);
        }
        backend.and_then(|backend| panel.take(backend)).unwrap_or_else(|| panel.refuse())
    }

    fn pick(
        &self,
        vip: &Vip,
        source: IpAddr,
        open: &[SocketAddr],
        allowed: &Allowed<'_>,
    ) -> Option<SocketAddr> {
        if vip.affinity.is_some() {
            return Balance::by_hash(source, allowed);
        }
        let among = self.balance.by_load(&Allowed::of(vec![open]));
        among.or_else(|| self.balance.by_load(allowed))
    }
}

/// The addresses of the endpoint that has this one.
fn own_addresses(view: &View, address: IpAddr) -> &[IpAddr] {
    view.snapshot.endpoint_at(address).map_or(&[], |endpoint| &endpoint.addresses)
}

/// Everybody who stands behind an address, each group judged at most once and none before it is asked for. A client
/// that is among its own backends is a group of its own, the last: whoever reaches itself is never judged.
struct Panel<'a, J> {
    view: &'a View,
    client: &'a Client,
    vip: &'a Arc<Vip>,
    judge: &'a J,
    itself: Vec<SocketAddr>,
    verdicts: Vec<OnceCell<Option<Judged>>>,
}

impl<'a, J: Fn(&View, &Leg) -> Judged> Panel<'a, J> {
    fn new(view: &'a View, client: &'a Client, vip: &'a Arc<Vip>, judge: &'a J) -> Self {
        let of_vip = |address: &IpAddr| vip.backends_at(*address);
        let itself = own_addresses(view, client.leg.source.ip()).iter().flat_map(of_vip).collect();
        let verdicts = (0..=vip.groups().len()).map(|_| OnceCell::new()).collect();
        Self { view, client, vip, judge, itself, verdicts }
    }

    /// The backends of a group, in pieces.
    fn pieces(&self, group: usize) -> impl Iterator<Item = &[SocketAddr]> {
        let others = self.vip.groups().get(group).map(Vec::as_slice).unwrap_or_default();
        let itself = if group == self.vip.groups().len() { self.itself.as_slice() } else { &[] };
        let others = others.split(|backend| self.itself.contains(backend));
        others.chain([itself]).filter(|piece| !piece.is_empty())
    }

    /// What is said of a group; `None` of one without anybody.
    fn verdict(&self, group: usize) -> Option<&Judged> {
        let judged = || {
            let backend = *self.pieces(group).next()?.first()?;
            Some((self.judge)(self.view, &self.leg(backend)))
        };
        self.verdicts.get(group)?.get_or_init(judged).as_ref()
    }

    fn leg(&self, backend: SocketAddr) -> Leg {
        Leg { source: self.client.leg.source, destination: backend }
    }

    fn group_of(&self, backend: SocketAddr) -> Option<usize> {
        let group = self.vip.group_of(backend)?;
        Some(if self.itself.contains(&backend) { self.vip.groups().len() } else { group })
    }

    fn allows_group(&self, group: usize) -> bool {
        self.verdict(group).is_some_and(|judged| !judged.is_denied())
    }

    fn allows(&self, backend: SocketAddr) -> bool {
        self.group_of(backend).is_some_and(|group| self.allows_group(group))
    }

    /// Everybody who allows; every group is judged.
    fn allowed(&self) -> Allowed<'_> {
        let groups = (0..self.verdicts.len()).filter(|group| self.allows_group(*group));
        Allowed::of(groups.flat_map(|group| self.pieces(group)).collect())
    }

    /// It goes to this backend.
    fn take(&self, backend: SocketAddr) -> Option<(Target, Judged)> {
        let judged = self.verdict(self.group_of(backend)?)?.clone();
        Some((Target::backend(self.view, self.client, self.vip, backend), judged))
    }

    /// Nobody allows: the first of them says why. A Service without backends is judged by its own address, and what
    /// that allows cannot be reached.
    fn refuse(&self) -> (Target, Judged) {
        let mut all = (0..self.verdicts.len()).flat_map(|group| self.pieces(group));
        let first = all.next().and_then(|piece| self.take(*piece.first()?));
        first.unwrap_or_else(|| {
            let nobody = Target {
                reachable: false,
                service: Some(self.vip.clone()),
                ..Target::direct(self.client.leg)
            };
            (nobody, (self.judge)(self.view, &self.client.leg))
        })
    }
}
