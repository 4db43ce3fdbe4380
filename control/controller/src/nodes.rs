//! The subscribed nodes: what each was sent, and what it said of it.
//!
//! A value without I/O: time comes in as an argument, snapshots come compiled. Called by the controller's loop.

use crate::feed::Newest;
use crate::heard::Kernel;
use crate::standing::{Lack, Standing};
use sluice_wire::{STALE_AFTER, pb};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Most nodes of one control: what Kubernetes supports.
const NODES: usize = 5_000;

/// Every node that subscribed.
pub struct Nodes {
    nodes: BTreeMap<String, Node>,
    generation: u64,
    announced: Option<(u64, usize)>,
}

/// One node.
pub struct Node {
    newest: watch::Sender<Option<Arc<pb::Snapshot>>>,
    /// The streams that are open; the last one is the newest proxy's, whose acks count.
    streams: Vec<u64>,
    offered: Instant,
    ack: Option<pb::Ack>,
    standing: Standing,
    /// The newest reading of the objects; what it was offered may be of an older one.
    expected: u64,
    took: Duration,
    /// Why its newest snapshot is not sent; what it was sent last is older than the manifests then.
    withheld: Option<String>,
    /// When its newest stream opened.
    joined: Instant,
    /// What it said last of its kernel, and when.
    kernel: Option<(Instant, Kernel)>,
    /// Whether it was said to be stale.
    said_stale: bool,
    /// Flow records received from it.
    pub records: u64,
    /// Flow records that it had to drop.
    pub dropped: u64,
}

impl Node {
    /// Whether a stream is open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.streams.is_empty()
    }

    /// The generation it was sent last; 0 before the first.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.newest.borrow().as_ref().map_or(0, |snapshot| snapshot.generation)
    }

    /// Why it is not sent what it should have.
    #[must_use]
    pub fn withheld(&self) -> Option<&str> {
        self.withheld.as_deref()
    }

    /// Its last word.
    #[must_use]
    pub const fn ack(&self) -> Option<&pb::Ack> {
        self.ack.as_ref()
    }

    /// What it said last of its kernel, and how long ago. Of a stream before its newest, it may be; the age tells.
    #[must_use]
    pub fn kernel(&self, now: Instant) -> Option<(Duration, &Kernel)> {
        let (at, kernel) = self.kernel.as_ref()?;
        Some((now.saturating_duration_since(*at), kernel))
    }

    /// Whether it is connected and says nothing of its kernel any more, or never did: what is in force there is not
    /// known, whatever it acknowledged.
    #[must_use]
    pub fn is_stale(&self, now: Instant) -> bool {
        let last = self.kernel.as_ref().map_or(self.joined, |(at, _)| self.joined.max(*at));
        self.is_connected() && now.saturating_duration_since(last) > STALE_AFTER
    }

    /// Whether it has said, on its newest stream or on one before, what it has in force.
    #[must_use]
    pub const fn has_spoken(&self) -> bool {
        self.standing.has_word()
    }

    /// Whether it has not been heard of for [`STALE_AFTER`], connected or not. That a stream of it began is no word of
    /// one that was heard of before: an agent that begins again and again says nothing.
    #[must_use]
    pub fn is_silent(&self, now: Instant) -> bool {
        let heard = self.kernel.as_ref().map_or(self.joined, |(at, _)| *at);
        now.saturating_duration_since(heard) > STALE_AFTER
    }

    /// Whether a reading of the objects is in force for these pods, each `namespace/pod`.
    #[must_use]
    pub fn has_in_force(&self, reading: u64, pods: &[String], now: Instant) -> InForce {
        if self.is_silent(now) {
            return InForce::Silent;
        }
        match (self.standing.lacks(reading, pods), self.withheld()) {
            (Lack::Nothing(generation), _) => InForce::Since(generation),
            (Lack::Node(reason), _) => InForce::Not(reason),
            (Lack::Word, Some(withheld)) => InForce::Not(withheld.to_owned()),
            (Lack::Word, None) => InForce::NotYet,
        }
    }

    /// Whether everything that it was sent is enforced on every endpoint.
    #[must_use]
    pub fn is_in_force(&self, now: Instant) -> bool {
        let published = self.published();
        published > 0
            && self.is_connected()
            && !self.is_stale(now)
            && self.withheld.is_none()
            && self.standing.reading() >= Some(self.expected)
            && self.ack.as_ref().is_some_and(|ack| {
                ack.generation == published
                    && ack.applied
                    && ack.rejected.is_empty()
                    && ack.missing.is_empty()
                    && ack.drift.is_empty()
            })
    }
}

/// Whether something is in force on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InForce {
    /// It is, as of this generation.
    Since(u64),
    /// It has not said so yet.
    NotYet,
    /// It is not, and will not be by itself: why.
    Not(String),
    /// It has not been heard of for [`STALE_AFTER`]: nobody knows.
    Silent,
}

impl Nodes {
    /// None yet. The first snapshot has this generation; later ones more.
    #[must_use]
    pub fn new(generation: u64) -> Self {
        Self { nodes: BTreeMap::new(), generation, announced: None }
    }

    /// The newest generation.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Every node, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// A node by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// A node by its name.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.get_mut(name)
    }

    /// A node's stream opened. A node that has a newer generation than any here (the clock was put back) makes the
    /// next one newer still.
    ///
    /// # Errors
    /// Too many nodes.
    pub fn join(
        &mut self,
        name: &str,
        stream: u64,
        last_generation: u64,
        now: Instant,
    ) -> Result<Newest, String> {
        if !self.nodes.contains_key(name) && self.nodes.len() >= NODES {
            self.nodes.retain(|_, node| node.is_connected());
            if self.nodes.len() >= NODES {
                return Err(format!("{NODES} nodes are subscribed: one control serves no more"));
            }
        }
        let node = self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            newest: watch::Sender::new(None),
            streams: Vec::new(),
            offered: now,
            ack: None,
            standing: Standing::default(),
            expected: 0,
            took: Duration::ZERO,
            withheld: None,
            joined: now,
            kernel: None,
            said_stale: false,
            records: 0,
            dropped: 0,
        });
        node.standing.joined(last_generation, node.is_connected());
        node.streams.push(stream);
        node.ack = None;
        (node.offered, node.joined) = (now, now);
        // An absurd number (a broken node) must not use up the generations of all.
        if last_generation >= self.generation && last_generation < u64::MAX / 2 {
            self.generation = last_generation + 1;
        }
        Ok(node.newest.subscribe())
    }

    /// A stream ended.
    pub fn leave(&mut self, name: &str, stream: u64) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.streams.retain(|open| *open != stream);
            if node.streams.is_empty() {
                node.ack = None;
            }
        }
    }

    /// Keeps a node's word, which was made safe before, if it comes from its newest stream.
    pub fn acked(&mut self, name: &str, stream: u64, ack: pb::Ack, now: Instant) {
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.streams.last() == Some(&stream)) else {
            return;
        };
        node.took = now.saturating_duration_since(node.offered);
        node.standing.acked(&ack);
        node.ack = Some(ack);
    }

    /// Keeps what a node said of its kernel, likewise.
    pub fn reported(&mut self, name: &str, stream: u64, kernel: Kernel, now: Instant) {
        if let Some(node) = self.nodes.get_mut(name).filter(|node| node.streams.last() == Some(&stream)) {
            node.kernel = Some((now, kernel));
        }
    }

    /// The nodes that have become stale since this was asked last, and those that are not any more.
    pub fn turned_stale(&mut self, now: Instant) -> Vec<(&str, bool)> {
        let turned = self.nodes.iter_mut().filter_map(|(name, node)| {
            let stale = node.is_stale(now);
            (std::mem::replace(&mut node.said_stale, stale) != stale).then_some((name.as_str(), stale))
        });
        turned.collect()
    }

    /// The objects were read again: no node is what it should be before it is offered what follows.
    pub fn expect(&mut self, reading: u64) {
        for node in self.nodes.values_mut() {
            node.expected = reading;
        }
    }

    /// Offers snapshots, compiled of this reading of the objects, to their nodes, where they differ from what the node
    /// was offered last. One generation for all of them. Returns how many differ.
    pub fn publish(&mut self, snapshots: Vec<(String, pb::Snapshot)>, reading: u64, now: Instant) -> usize {
        let (mut first, mut changed) = (Vec::new(), Vec::new());
        for (name, mut snapshot) in snapshots {
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            node.withheld = sluice_wire::fits(&snapshot).err();
            if node.withheld.is_some() {
                continue;
            }
            let last = node.newest.borrow().clone();
            match last {
                None => first.push((name, snapshot)),
                Some(last) => {
                    snapshot.generation = last.generation;
                    if *last == snapshot {
                        node.standing.unchanged(reading);
                    } else {
                        changed.push((name, snapshot));
                    }
                }
            }
        }
        if !changed.is_empty() {
            self.generation += 1;
        }
        let count = first.len() + changed.len();
        for (name, mut snapshot) in first.into_iter().chain(changed) {
            snapshot.generation = self.generation;
            self.offer(&name, snapshot, reading, now);
        }
        count
    }

    /// Offers a node its last snapshot again if it has a newer generation than that one, under the newest.
    pub fn renew(&mut self, name: &str, last_generation: u64, now: Instant) {
        let last = self.nodes.get(name).and_then(|node| node.newest.borrow().clone());
        if let Some(last) = last.filter(|last| last.generation <= last_generation) {
            let snapshot = pb::Snapshot { generation: self.generation, ..(*last).clone() };
            let reading = self.nodes.get(name).and_then(|node| node.standing.reading()).unwrap_or_default();
            self.offer(name, snapshot, reading, now);
        }
    }

    fn offer(&mut self, name: &str, snapshot: pb::Snapshot, reading: u64, now: Instant) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.offered = now;
            node.standing.offered(&snapshot, reading);
            node.ack = None;
            node.newest.send_replace(Some(Arc::new(snapshot)));
        }
    }

    /// Whether everything published is enforced on every connected node, of which there is one.
    #[must_use]
    pub fn is_in_force(&self, now: Instant) -> bool {
        let mut connected = self.nodes.values().filter(|node| node.is_connected()).peekable();
        connected.peek().is_some() && connected.all(|node| node.is_in_force(now))
    }

    /// Says, once per generation and number of nodes, that it is in force and how long that took.
    pub fn announcement(&mut self, now: Instant) -> Option<String> {
        let count = self.nodes.values().filter(|node| node.is_connected()).count();
        if !self.is_in_force(now) || self.announced == Some((self.generation, count)) {
            return None;
        }
        self.announced = Some((self.generation, count));
        let newest = self.nodes.values().filter(|node| node.published() == self.generation);
        let took = newest.map(|node| node.took).max().unwrap_or_default();
        let generation = self.generation;
        Some(format!(
            "generation {generation} in force on {count}/{count} nodes after {} ms",
            took.as_millis()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(policies: usize) -> pb::Snapshot {
        pb::Snapshot { policies: vec![pb::Policy::default(); policies], ..pb::Snapshot::default() }
    }

    fn applied(generation: u64) -> pb::Ack {
        pb::Ack { generation, applied: true, ..pb::Ack::default() }
    }

    fn two() -> (Nodes, Newest, Newest, Instant) {
        let now = Instant::now();
        let mut nodes = Nodes::new(7);
        let a = nodes.join("a", 1, 0, now).expect("room");
        let b = nodes.join("b", 2, 0, now).expect("room");
        (nodes, a, b, now)
    }

    #[test]
    fn only_nodes_whose_snapshot_changed_are_sent_one() {
        let (mut nodes, mut a, mut b, now) = two();
        let both = |a, b| vec![("a".to_owned(), snapshot(a)), ("b".to_owned(), snapshot(b))];
        assert_eq!(nodes.publish(both(1, 1), 1, now), 2);
        assert_eq!(nodes.generation(), 7);
        let generation = |node: &mut Newest| node.borrow_and_update().as_ref().map(|s| s.generation);
        assert_eq!((generation(&mut a), generation(&mut b)), (Some(7), Some(7)));
        assert_eq!(nodes.publish(both(1, 1), 1, now), 0);
        assert_eq!(nodes.generation(), 7, "nothing changed, so nothing is new");
        assert_eq!(nodes.publish(both(1, 2), 1, now), 1);
        assert!(!a.has_changed().expect("open"));
        assert!(b.has_changed().expect("open"));
        assert_eq!((generation(&mut a), generation(&mut b)), (Some(7), Some(8)));
    }

    #[test]
    fn in_force_means_every_node_and_every_endpoint() {
        let (mut nodes, _a, _b, now) = two();
        nodes.publish(vec![("a".to_owned(), snapshot(1)), ("b".to_owned(), snapshot(1))], 1, now);
        nodes.acked("a", 1, applied(7), now);
        assert!(!nodes.is_in_force(now));
        let missing = pb::MissingEndpoint { endpoint: "shop/cart".into(), reason: "no interface".into() };
        nodes.acked("b", 2, pb::Ack { missing: vec![missing], ..applied(7) }, now);
        assert!(!nodes.is_in_force(now), "an endpoint is missing");
        let drift = pb::Drift { what: "a hook was gone".into(), ..pb::Drift::default() };
        nodes.acked("b", 2, pb::Ack { drift: vec![drift], ..applied(7) }, now);
        assert!(!nodes.is_in_force(now), "something of the node is not as it must be");
        nodes.acked("b", 2, applied(6), now);
        assert!(!nodes.is_in_force(now), "an older generation");
        nodes.acked("b", 9, applied(7), now);
        assert!(!nodes.is_in_force(now), "not the node's newest stream");
        nodes.acked("b", 2, pb::Ack { rejected: "bits".into(), ..applied(7) }, now);
        assert!(!nodes.is_in_force(now), "refused");
        nodes.acked("b", 2, applied(7), now + Duration::from_millis(38));
        assert!(nodes.is_in_force(now));
        let said = nodes.announcement(now);
        assert_eq!(said.as_deref(), Some("generation 7 in force on 2/2 nodes after 38 ms"));
        assert_eq!(nodes.announcement(now), None, "said once");
        nodes.leave("b", 2);
        assert!(nodes.is_in_force(now), "a node that is gone holds nobody up");
    }

    #[test]
    fn what_no_node_takes_is_withheld_and_is_not_in_force() {
        let (mut nodes, a, _b, now) = two();
        nodes.leave("b", 2);
        nodes.publish(vec![("a".to_owned(), snapshot(1))], 1, now);
        nodes.acked("a", 1, applied(7), now);
        assert!(nodes.is_in_force(now));
        let name = "n".repeat(sluice_wire::limits::MESSAGE_BYTES);
        let policy = pb::Policy { name, ..pb::Policy::default() };
        let large = pb::Snapshot { policies: vec![policy], ..pb::Snapshot::default() };
        assert_eq!(nodes.publish(vec![("a".to_owned(), large)], 1, now), 0);
        assert_eq!(a.borrow().as_ref().map(|s| s.generation), Some(7));
        assert!(!nodes.is_in_force(now), "what is in force is older than the manifests");
        let said = nodes.get_mut("a").and_then(|node| node.withheld().map(str::to_owned));
        assert!(said.is_some_and(|said| said.contains("bytes")));
        nodes.publish(vec![("a".to_owned(), snapshot(1))], 1, now);
        assert!(nodes.is_in_force(now), "back to what the node has");
    }

    #[test]
    fn a_node_that_is_ahead_gets_a_newer_generation() {
        let (mut nodes, _a, _b, now) = two();
        nodes.publish(vec![("a".to_owned(), snapshot(1))], 1, now);
        let c = nodes.join("c", 3, 100, now).expect("room");
        nodes.publish(vec![("c".to_owned(), snapshot(1))], 1, now);
        assert_eq!(c.borrow().as_ref().map(|s| s.generation), Some(101));
        let again = nodes.join("a", 4, 200, now).expect("room");
        nodes.renew("a", 200, now);
        assert_eq!(again.borrow().as_ref().map(|s| s.generation), Some(201));
        nodes.join("d", 5, u64::MAX, now).expect("room");
        assert_eq!(nodes.generation(), 201, "an absurd generation uses up nothing");
    }

    #[test]
    fn a_node_that_says_nothing_of_its_kernel_is_stale_and_not_in_force() {
        let (mut nodes, _a, _b, begin) = two();
        nodes.leave("b", 2);
        nodes.publish(vec![("a".to_owned(), snapshot(1))], 1, begin);
        nodes.acked("a", 1, applied(7), begin);
        let soon = Duration::from_millis(1);
        assert!(nodes.is_in_force(begin + STALE_AFTER), "it has its time");
        assert!(!nodes.is_in_force(begin + STALE_AFTER + soon), "it never spoke, and may be hanging");
        assert_eq!(nodes.turned_stale(begin + STALE_AFTER), []);
        assert_eq!(nodes.turned_stale(begin + STALE_AFTER + soon), [("a", true)]);
        assert_eq!(nodes.turned_stale(begin + STALE_AFTER + soon), [], "said once");

        let spoke = begin + 2 * STALE_AFTER;
        nodes.reported("a", 9, Kernel::default(), spoke);
        assert!(!nodes.is_in_force(spoke), "not the node's newest stream");
        nodes.reported("a", 1, Kernel { generation: 7, ..Kernel::default() }, spoke);
        assert!(nodes.is_in_force(spoke + STALE_AFTER));
        assert_eq!(nodes.turned_stale(spoke), [("a", false)]);
        let node = nodes.get_mut("a").expect("known");
        let kernel = node.kernel(spoke + soon).map(|(age, kernel)| (age, kernel.generation));
        assert_eq!(kernel, Some((soon, 7)));
        assert!(!nodes.is_in_force(spoke + STALE_AFTER + soon), "it stopped");
        // A proxy that takes over has its time as well, and what the other said is as old as it is.
        let later = spoke + 2 * STALE_AFTER;
        nodes.join("a", 3, 7, later).expect("room");
        let node = nodes.get_mut("a").expect("known");
        assert!(!node.is_stale(later + STALE_AFTER) && node.is_stale(later + STALE_AFTER + soon));
        assert_eq!(node.kernel(later).map(|(age, _)| age), Some(2 * STALE_AFTER));
        nodes.leave("a", 3);
        nodes.leave("a", 1);
        let node = nodes.get_mut("a").expect("known");
        assert!(!node.is_stale(later + 2 * STALE_AFTER), "it is gone, which is another thing");
    }
}
