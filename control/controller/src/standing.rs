//! What one node is known to have in force, and of which reading of the objects that is.
//!
//! A node acknowledges generations; policies change with readings of the objects, most of which are news for few
//! nodes. So it is remembered here of which reading each generation was the newest that the node was offered. A value
//! without I/O. Called by `nodes`.

use sluice_wire::pb;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Generations whose ack may still come. Of one that is older nothing is said: the node has been offered as many newer
/// ones since, and acks the newest.
const OFFERED: usize = 16;

/// What a node was offered, and what it said of it last.
#[derive(Debug, Default)]
pub struct Standing {
    /// Generations with the last reading that each was as good as, oldest first.
    offered: VecDeque<(u64, u64)>,
    /// The endpoints of the newest one, as `namespace/pod`.
    endpoints: BTreeSet<String>,
    word: Option<Word>,
    /// Why it did not take the newest one.
    refused: Option<String>,
}

/// What it said of what it has in force.
#[derive(Debug, Default)]
struct Word {
    generation: u64,
    attached: BTreeSet<String>,
    missing: BTreeMap<String, String>,
    drift: Option<String>,
}

/// What stands between a reading of the objects and its being in force for some pods of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Nothing: it is in force, as of this generation.
    Nothing(u64),
    /// The node has not said so yet.
    Word,
    /// The node cannot, or something keeps it from it.
    Node(String),
}

impl Standing {
    /// The node is offered a snapshot of a reading.
    pub fn offered(&mut self, snapshot: &pb::Snapshot, reading: u64) {
        let name = |workload: &pb::Workload| format!("{}/{}", workload.namespace, workload.pod);
        let workload = |endpoint: &pb::Endpoint| snapshot.workloads.get(endpoint.workload as usize);
        self.endpoints = snapshot.endpoints.iter().filter_map(workload).map(name).collect();
        self.offered.push_back((snapshot.generation, reading));
        if self.offered.len() > OFFERED {
            self.offered.pop_front();
        }
        self.refused = None;
    }

    /// What it was offered last is as good as a snapshot of this reading.
    pub fn unchanged(&mut self, reading: u64) {
        if let Some((_, last)) = self.offered.back_mut() {
            *last = reading;
        }
    }

    /// The reading of what it was offered last.
    #[must_use]
    pub fn reading(&self) -> Option<u64> {
        self.offered.back().map(|(_, reading)| *reading)
    }

    /// A new stream of it began, with this generation in force by its own word. What was said stands only if it was
    /// said of that, and if the stream that said it is open still: one agent takes over from another. Whoever comes
    /// back from elsewhere (a crash, a reboot) says anew what is in force.
    pub fn joined(&mut self, generation: u64, takes_over: bool) {
        self.refused = None;
        if !takes_over || self.word.as_ref().is_some_and(|word| word.generation != generation) {
            self.word = None;
        }
    }

    /// What it said of a generation.
    pub fn acked(&mut self, ack: &pb::Ack) {
        if !ack.applied {
            let newest = self.offered.back().is_some_and(|(newest, _)| *newest == ack.generation);
            self.refused = newest.then(|| ack.rejected.clone()).filter(|reason| !reason.is_empty());
            return;
        }
        let missing = ack.missing.iter();
        self.word = Some(Word {
            generation: ack.generation,
            attached: ack.attached.iter().cloned().collect(),
            missing: missing.map(|missing| (missing.endpoint.clone(), missing.reason.clone())).collect(),
            drift: ack.drift.first().map(|drift| format!("{}: {}", drift.what, drift.stays)),
        });
    }

    /// Whether it has said what it has in force.
    #[must_use]
    pub const fn has_word(&self) -> bool {
        self.word.is_some()
    }

    /// What keeps a reading from being in force for these pods, each `namespace/pod`. A pod that the newest snapshot
    /// does not have has no address yet: nothing reaches it.
    #[must_use]
    pub fn lacks(&self, reading: u64, pods: &[String]) -> Lack {
        let word = self.word.as_ref().filter(|word| {
            self.offered.iter().any(|(generation, last)| *generation == word.generation && *last >= reading)
        });
        let Some(word) = word else {
            return self.refused.clone().map_or(Lack::Word, Lack::Node);
        };
        if let Some(drift) = &word.drift {
            return Lack::Node(format!("not as it must be: {drift}"));
        }
        let mut unattached = pods.iter().filter(|pod| {
            self.endpoints.contains(*pod) && !word.attached.contains(*pod) || word.missing.contains_key(*pod)
        });
        match unattached.clone().find_map(|pod| word.missing.get_key_value(pod)) {
            Some((pod, reason)) => Lack::Node(format!("{pod} is not enforced: {reason}")),
            None if unattached.next().is_some() => Lack::Word,
            None => Lack::Nothing(word.generation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(generation: u64, pods: &[&str]) -> pb::Snapshot {
        let workload =
            |pod: &&str| pb::Workload { namespace: "shop".into(), pod: (*pod).into(), ..Default::default() };
        let endpoint = |workload: usize| pb::Endpoint { workload: workload as u32, ..Default::default() };
        pb::Snapshot {
            generation,
            workloads: pods.iter().map(workload).collect(),
            endpoints: (0..pods.len()).map(endpoint).collect(),
            ..Default::default()
        }
    }

    fn ack(generation: u64, pods: &[&str]) -> pb::Ack {
        let attached = pods.iter().map(|pod| format!("shop/{pod}")).collect();
        pb::Ack { generation, applied: true, attached, ..Default::default() }
    }

    fn cart() -> Vec<String> {
        vec!["shop/cart".to_owned()]
    }

    #[test]
    fn an_ack_is_of_every_reading_that_its_generation_was_as_good_as() {
        let mut node = Standing::default();
        assert_eq!(node.lacks(0, &[]), Lack::Word, "nothing was offered");
        node.offered(&snapshot(7, &["cart"]), 1);
        node.unchanged(2);
        assert_eq!(node.lacks(1, &cart()), Lack::Word);
        node.acked(&ack(7, &["cart"]));
        assert_eq!(node.lacks(2, &cart()), Lack::Nothing(7));
        assert_eq!(node.lacks(3, &cart()), Lack::Word, "another reading came since");
        node.unchanged(3);
        assert_eq!(node.lacks(3, &cart()), Lack::Nothing(7), "and was no news for the node");
        node.offered(&snapshot(8, &["cart"]), 4);
        assert_eq!(node.lacks(3, &cart()), Lack::Nothing(7), "what came before is in force meanwhile");
        assert_eq!(node.lacks(4, &cart()), Lack::Word);
        node.offered(&snapshot(9, &["cart"]), 5);
        node.acked(&ack(8, &["cart"]));
        assert_eq!((node.lacks(4, &cart()), node.lacks(5, &cart())), (Lack::Nothing(8), Lack::Word));
    }

    #[test]
    fn an_endpoint_counts_once_its_programs_are_attached() {
        let mut node = Standing::default();
        node.offered(&snapshot(7, &["cart", "other"]), 1);
        node.acked(&ack(7, &["other"]));
        assert_eq!(node.lacks(1, &cart()), Lack::Word);
        assert_eq!(node.lacks(1, &["shop/other".to_owned()]), Lack::Nothing(7));
        assert_eq!(node.lacks(1, &["shop/without-an-address".to_owned()]), Lack::Nothing(7));
        let missing = pb::MissingEndpoint { endpoint: "shop/cart".into(), reason: "no interface".into() };
        node.acked(&pb::Ack { missing: vec![missing], ..ack(7, &["other"]) });
        assert_eq!(node.lacks(1, &cart()), Lack::Node("shop/cart is not enforced: no interface".into()));
        assert_eq!(node.lacks(1, &["shop/other".to_owned()]), Lack::Nothing(7), "the other one is");
        // A pod that comes back under its name, at once, was attached for the one before.
        node.offered(&snapshot(8, &["cart", "other"]), 2);
        node.acked(&ack(8, &["cart", "other"]));
        assert_eq!(node.lacks(2, &cart()), Lack::Nothing(8));
    }

    #[test]
    fn what_a_node_refuses_or_cannot_mend_is_not_in_force() {
        let mut node = Standing::default();
        node.offered(&snapshot(7, &[]), 1);
        node.acked(&ack(7, &[]));
        node.offered(&snapshot(8, &[]), 2);
        node.acked(&pb::Ack { generation: 8, rejected: "too many rows".into(), ..Default::default() });
        assert_eq!(node.lacks(2, &[]), Lack::Node("too many rows".into()));
        assert_eq!(node.lacks(1, &[]), Lack::Nothing(7), "what it had stays");
        let drift = pb::Drift { what: "a hook was gone".into(), stays: "EBUSY".into(), ..Default::default() };
        node.acked(&pb::Ack { drift: vec![drift], ..ack(8, &[]) });
        assert_eq!(node.lacks(1, &[]), Lack::Node("not as it must be: a hook was gone: EBUSY".into()));
    }

    #[test]
    fn a_stream_that_does_not_go_on_where_another_is_makes_the_word_void() {
        let mut node = Standing::default();
        node.offered(&snapshot(7, &[]), 1);
        node.acked(&ack(7, &[]));
        node.joined(7, true);
        assert_eq!(node.lacks(1, &[]), Lack::Nothing(7), "it has what it had");
        node.joined(7, false);
        assert_eq!(node.lacks(1, &[]), Lack::Word, "it was away, and what of it is attached nobody knows");
        node.acked(&ack(7, &[]));
        node.joined(0, true);
        assert_eq!(node.lacks(1, &[]), Lack::Word);
    }
}
