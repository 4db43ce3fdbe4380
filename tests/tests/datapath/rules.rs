//! Snapshots by hand: names for peers, and rules in a line each.

use sluice_policy::http::HttpMatch;
use sluice_policy::port::icmp_port;
use sluice_policy::{
    Class, ClassId, ClassSet, Conditions, DenyAction, Direction, Endpoint, Identity, IsolatedPorts,
    Isolation, Kind, Layer, Mode, OnDeny, Origin, Policy, PolicyId, PortRange, PortSet, Prefix, Profile,
    ProfileId, Protocol, Rule, Scope, Snapshot, TierAction, TierRule, Workload,
};
use sluice_tests::{Pod, World};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// One rule of the tests.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pod: String,
    direction: Direction,
    peer: Option<String>,
    ports: PortSet,
    l7: bool,
    deny: bool,
    mode: Mode,
    answer: DenyAction,
    admin: Option<TierAction>,
}

/// `pod` accepts from `peer`; isolates it.
pub(crate) fn ingress(pod: &str, peer: &str, ports: PortSet) -> Line {
    line(pod, Direction::Ingress, Some(peer), ports)
}

/// `pod` may open to `peer`; isolates it.
pub(crate) fn egress(pod: &str, peer: &str, ports: PortSet) -> Line {
    line(pod, Direction::Egress, Some(peer), ports)
}

/// Isolates `pod` and allows nothing.
pub(crate) fn closed(pod: &str, direction: Direction) -> Line {
    line(pod, direction, None, PortSet::All)
}

fn line(pod: &str, direction: Direction, peer: Option<&str>, ports: PortSet) -> Line {
    let (pod, peer) = (pod.to_owned(), peer.map(str::to_owned));
    Line {
        pod,
        direction,
        peer,
        ports,
        l7: false,
        deny: false,
        mode: Mode::Enforce,
        answer: DenyAction::Drop,
        admin: None,
    }
}

impl Line {
    /// With a condition that only the proxy can judge.
    pub(crate) fn l7(mut self) -> Self {
        self.l7 = true;
        self
    }

    /// Refuses what it names, and isolates nobody.
    pub(crate) fn denied(mut self) -> Self {
        self.deny = true;
        self
    }

    /// Of the Admin tier, which isolates nobody.
    pub(crate) fn admin(mut self, action: TierAction) -> Self {
        self.admin = Some(action);
        self
    }

    /// Whether it is about this pod.
    pub(crate) fn is_of(&self, pod: &str) -> bool {
        self.pod == pod
    }

    /// Of a policy that tells whom it refuses.
    pub(crate) fn rejecting(mut self) -> Self {
        self.answer = DenyAction::Reject;
        self
    }

    /// Of a policy that decides nothing.
    pub(crate) fn audited(mut self) -> Self {
        self.mode = Mode::Audit;
        self
    }
}

/// A range of TCP ports.
pub(crate) fn tcp(first: u16, last: u16) -> PortSet {
    PortSet::Ranges(vec![PortRange { protocol: Protocol::Tcp, first, last }])
}

/// One UDP port.
pub(crate) fn udp(port: u16) -> PortSet {
    PortSet::Ranges(vec![PortRange { protocol: Protocol::Udp, first: port, last: port }])
}

/// All of ICMP.
pub(crate) fn icmp() -> PortSet {
    PortSet::Ranges(vec![PortRange::all(Protocol::Icmp)])
}

/// Types of ICMP and of `ICMPv6`.
pub(crate) fn icmp_types(v4: &[u8], v6: &[u8]) -> PortSet {
    let number =
        |(v6, kinds): (bool, &[u8])| -> Vec<u16> { kinds.iter().map(|kind| icmp_port(v6, *kind)).collect() };
    let numbers = [(false, v4), (true, v6)].into_iter().flat_map(number);
    PortSet::Ranges(
        numbers.map(|port| PortRange { protocol: Protocol::Icmp, first: port, last: port }).collect(),
    )
}

/// The peer that is the endpoints' own node.
pub(crate) const NODE: &str = "the node";
/// The peers that are the other nodes.
pub(crate) const FAR_NODE: &str = "the other nodes";

/// The snapshot of a node: each pod and host outside is a class of its own, named as in the world; `world` is
/// everybody else. Every pod of the node is an endpoint with a profile of its own.
pub(crate) fn snapshot(world: &World, node: &str, generation: u64, lines: &[Line]) -> Snapshot {
    let mut snapshot = Snapshot { generation, ..Snapshot::default() };
    let peers: Vec<&Pod> = world.pods.iter().chain(&world.outside).collect();
    snapshot.classes.push(Class { identity: Identity::Missing, cidrs: Vec::new() });
    snapshot.classes.push(Class { identity: Identity::World, cidrs: Vec::new() });
    snapshot.addresses.insert(Prefix::EVERYTHING, ClassId(1));
    for (pod, id) in peers.iter().zip(2..) {
        snapshot
            .classes
            .push(Class { identity: Identity::Workload(pod.name.as_str().into()), cidrs: Vec::new() });
        for address in addresses(pod) {
            snapshot.addresses.insert(Prefix::host(address), ClassId(id));
        }
    }
    // The node is part of the world, unless somebody speaks of it.
    let own = ClassId(u32::try_from(snapshot.classes.len()).expect("few"));
    if lines.iter().any(|line| line.peer.as_deref() == Some(NODE)) {
        snapshot.classes.push(Class { identity: Identity::Node(node.into()), cidrs: Vec::new() });
        let node = world.node(node);
        for address in [IpAddr::from(node.v4), node.v6.into()] {
            snapshot.addresses.insert(Prefix::host(address), own);
        }
    }
    let far = ClassId(u32::try_from(snapshot.classes.len()).expect("few"));
    if lines.iter().any(|line| line.peer.as_deref() == Some(FAR_NODE)) {
        // None of the snapshot's endpoints runs there: no name.
        snapshot.classes.push(Class { identity: Identity::Node("".into()), cidrs: Vec::new() });
        for other in world.nodes.iter().filter(|other| other.name != node) {
            for address in [IpAddr::from(other.v4), other.v6.into()] {
                snapshot.addresses.insert(Prefix::host(address), far);
            }
        }
    }
    let (mut endpoints, mut profiles) = (Vec::new(), Vec::new());
    for (pod, id) in world.pods.iter().filter(|pod| pod.node == node).zip(0..) {
        endpoints.push(Arc::new(Endpoint {
            workload: Arc::new(workload(pod)),
            addresses: addresses(pod).to_vec(),
            profile: ProfileId(id),
        }));
        profiles.push(profile(&pod.name, (&peers, own, far), lines, &mut snapshot.policies));
    }
    let all = world.pods.iter().map(|pod| (addresses(pod), Arc::new(workload(pod))));
    let each = |(addresses, pod): ([IpAddr; 2], Arc<Workload>)| addresses.map(|at| (at, pod.clone()));
    snapshot.workloads = all.flat_map(each).collect();
    snapshot.profiles = profiles.into();
    snapshot.endpoints = endpoints.into();
    snapshot
}

/// `policies` has every line's, as a snapshot that goes over the wire must.
fn profile(
    pod: &str,
    (peers, node, far): (&[&Pod], ClassId, ClassId),
    lines: &[Line],
    policies: &mut Vec<Arc<Policy>>,
) -> Profile {
    let mut profile = Profile::default();
    for (line, id) in lines.iter().filter(|line| line.pod == pod).zip(0..) {
        let policy = Arc::new(Policy {
            id: PolicyId(u32::try_from(policies.len()).expect("few")),
            origin: Origin { kind: Kind::L7NetworkPolicy, namespace: "test".into(), name: pod.into() },
            mode: line.mode,
            on_deny: OnDeny { action: line.answer, ..OnDeny::default() },
        });
        policies.push(Arc::clone(&policy));
        let side = match line.direction {
            Direction::Ingress => &mut profile.ingress,
            Direction::Egress => &mut profile.egress,
        };
        let layer: &mut Layer = &mut side.layers[1];
        if !line.deny && line.admin.is_none() {
            layer.isolation.push(Isolation { policy: Arc::clone(&policy), ports: IsolatedPorts::All });
        }
        let Some(peer) = &line.peer else { continue };
        let class = match peer.as_str() {
            "world" => ClassId(1),
            NODE => node,
            FAR_NODE => far,
            name => ClassId(peers.iter().zip(2..).find(|(pod, _)| pod.name == name).expect("a known peer").1),
        };
        let conditions = Conditions { http: vec![HttpMatch::default()], ..Conditions::default() };
        let rule = Rule {
            policy,
            name: format!("rule-{id}").into(),
            scopes: vec![Scope { peers: ClassSet::of([class]), ports: line.ports.clone() }],
            conditions: line.l7.then(|| Arc::new(conditions)),
        };
        match line.admin {
            Some(action) => side.admin.push(TierRule { action, rule }),
            None if line.deny => side.deny.push(rule),
            None => layer.allow.push(rule),
        }
    }
    profile
}

/// Both addresses of a pod.
pub(crate) fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

/// Gives every class and profile another number, as a change of the cluster does. The verdicts are the same.
pub(crate) fn renumber(snapshot: &mut Snapshot, by: u32) {
    let classes = u32::try_from(snapshot.classes.len()).expect("few") - 1;
    let class =
        |ClassId(id): ClassId| if id == 0 { ClassId(0) } else { ClassId((id - 1 + by) % classes + 1) };
    let entries: Vec<_> = snapshot.addresses.iter().map(|(prefix, id)| (prefix, class(*id))).collect();
    for (prefix, id) in entries {
        snapshot.addresses.insert(prefix, id);
    }
    let mut all = snapshot.profiles.to_vec();
    let sides = all.iter_mut().flat_map(|p| [&mut p.ingress, &mut p.egress]);
    let scopes = sides.flat_map(|side| &mut side.layers).flat_map(|layer| &mut layer.allow);
    for scope in scopes.flat_map(|rule| &mut rule.scopes) {
        let members = (1..=classes).map(ClassId).filter(|id| scope.peers.contains(*id)).map(class);
        scope.peers = ClassSet::of(members.collect::<Vec<_>>());
    }
    let profiles = u32::try_from(snapshot.profiles.len()).expect("few");
    all.rotate_right((by % profiles) as usize);
    snapshot.profiles = all.into();
    let moved = snapshot.endpoints.iter().map(|endpoint| {
        let profile = ProfileId((endpoint.profile.0 + by) % profiles);
        Arc::new(Endpoint { profile, ..(**endpoint).clone() })
    });
    snapshot.endpoints = moved.collect::<Vec<_>>().into();
}

/// A snapshot with more address prefixes than fit.
pub(crate) fn oversized(world: &World, node: &str, generation: u64, most: u32, nodes: bool) -> Snapshot {
    let mut snapshot = snapshot(world, node, generation, &[]);
    let mut class = ClassId(1);
    if nodes {
        class = ClassId(u32::try_from(snapshot.classes.len()).expect("few"));
        snapshot.classes.push(Class { identity: Identity::Node("another".into()), cidrs: Vec::new() });
    }
    for host in 0..=most {
        snapshot.addresses.insert(Prefix::host(Ipv4Addr::from(0x0b00_0000 + host).into()), class);
    }
    snapshot
}

fn workload(pod: &Pod) -> Workload {
    Workload {
        namespace: pod.namespace().into(),
        pod: pod.short_name().into(),
        // A pod that is made again with the same name is another.
        uid: pod.serial.to_string().into(),
        service_account: "default".into(),
        node: pod.node.as_str().into(),
    }
}
