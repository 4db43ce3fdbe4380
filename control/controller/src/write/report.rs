//! What of all that should be said is news: statuses that differ from what stands there, Events not told yet.
//!
//! Holds what is remembered for that, and the two queues of what is to be written; no I/O, and time comes in as an
//! argument. What somebody else wrote over a status of ours is put right at the next look. Called by the controller's
//! loop and by the writer.

use crate::cluster::store::PolicyMeta;
use crate::nodes::Nodes;
use crate::write::desired;
use crate::write::facts::{self, Facts, Key, Ledger};
use crate::write::notices::{self, Notice, Place, Tell, Told};
use crate::write::queue::{Outcome, Pace, Queue};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sluice_crd::PolicyStatus;
use sluice_wire::STALE_AFTER;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Statuses: as many at a time as an API server's share for one client carries without others noticing; of one
/// policy twice a second at most.
const STATUSES: Pace = Pace {
    in_flight: 16,
    between: Duration::ZERO,
    again: Duration::from_millis(500),
    // One for each policy: etcd's own quota bounds them.
    waiting: usize::MAX,
};

/// Events: slow on purpose. What they tell stands in the status of our kinds, and in the status file, at once.
const EVENTS: Pace =
    Pace { in_flight: 2, between: Duration::from_millis(50), again: Duration::from_secs(1), waiting: 20_000 };

/// What is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The status of a policy.
    Status(Key, Value),
    /// An Event.
    Event(Place, Tell),
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum Done {
    /// A status, and the version of the policy that has it.
    Status(Key, Outcome, Option<u64>),
    /// An Event; `exists`: there is one of that name already.
    Event(Place, Outcome, Exists),
}

/// Whether an Event was there before it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exists {
    /// Nobody says so.
    Unsaid,
    /// It was.
    Yes,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    statuses: u64,
    events: u64,
    failed: u64,
}

/// A status that was written: what stands there until its watch tells of something newer.
struct Written {
    uid: Arc<str>,
    version: u64,
    status: PolicyStatus,
}

/// What is said, and what was.
pub struct Reporter {
    /// When this one began to write: with the process, or when it took it over from another.
    begun: Instant,
    /// Until when it may write; what is not written by then another one may write.
    until: Option<Instant>,
    ledger: Ledger,
    marks: std::hash::RandomState,
    statuses: Queue<Key, (Value, PolicyStatus, Arc<str>)>,
    events: Queue<Place, Tell>,
    running: HashMap<Key, (PolicyStatus, Arc<str>)>,
    written: HashMap<Key, Written>,
    told: Told,
    counts: Counts,
    trouble: Option<String>,
}

impl Reporter {
    /// Has said nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            begun: now,
            until: None,
            ledger: Ledger::default(),
            marks: std::hash::RandomState::new(),
            statuses: Queue::new(STATUSES),
            events: Queue::new(EVENTS),
            running: HashMap::new(),
            written: HashMap::new(),
            told: Told::default(),
            counts: Counts::default(),
            trouble: None,
        }
    }

    /// Until when this one may write, if it may.
    pub fn lead(&mut self, until: Option<Instant>, now: Instant) {
        if !self.leads(now) && until.is_some_and(|until| now < until) {
            self.begun = now;
        }
        self.until = until;
    }

    /// Whether this one writes.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// What makes the marks of facts.
    #[must_use]
    pub const fn marks(&self) -> &std::hash::RandomState {
        &self.marks
    }

    /// The objects were read: what that says of each policy, and the newest generation before it is published.
    pub fn read(&mut self, facts: &[Facts], reading: u64, generation: u64) {
        // What is in force when control starts is in force under the generation of an earlier one.
        let generation = if reading <= 1 { 0 } else { generation };
        self.ledger.take(facts, reading, generation);
    }

    /// Looks at everything: what should be said of it and is not is written from now on.
    pub fn look(
        &mut self,
        facts: &[Facts],
        nodes: &Nodes,
        there: Vec<PolicyMeta>,
        now: Instant,
        time: Timestamp,
    ) {
        if !self.leads(now) {
            return;
        }
        let young = now.saturating_duration_since(self.begun) < STALE_AFTER;
        let there: HashMap<Key, PolicyMeta> =
            there.into_iter().map(|policy| (facts::key(&policy), policy)).collect();
        self.written.retain(|key, written| there.get(key).is_some_and(|policy| policy.uid == written.uid));
        let mut standing: Vec<Notice> = Vec::new();
        for facts in facts {
            let key = facts::key(&facts.policy);
            // One that is another by now is read again in a moment.
            let Some(policy) = there.get(&key).filter(|policy| policy.uid == facts.policy.uid) else {
                self.statuses.unwant(&key);
                continue;
            };
            let known = desired::known(facts, self.ledger.since(&key), nodes, now);
            standing.extend(notices::of_policy(facts, &known));
            if facts.policy.kind.is_ours() && !self.statuses.is_running(&key) {
                let there = self.there(&key, policy);
                let since = self.ledger.since(&key);
                let status = desired::status(facts, &known, since, &there, young, time);
                self.wish(key, facts, status, &there, now);
            }
        }
        for (name, node) in nodes.iter() {
            standing.extend(notices::of_node(name, node, now));
        }
        let concerned: BTreeSet<&str> =
            facts.iter().flat_map(|facts| facts.judged.keys()).map(|name| &**name).collect();
        let absent = concerned.into_iter().filter(|name| match nodes.get(name) {
            Some(node) => !node.is_connected() && node.is_silent(now),
            None => !young,
        });
        standing.extend(absent.filter_map(notices::of_absent_node));
        for (place, tell) in self.told.take(standing, now, time) {
            self.events.want(place, tell, now);
        }
    }

    /// What stands there: what was told of it, or what was written since.
    fn there(&self, key: &Key, policy: &PolicyMeta) -> PolicyStatus {
        match self.written.get(key).filter(|written| policy.version.is_none_or(|told| told < written.version))
        {
            Some(written) => written.status.clone(),
            None => policy.status.as_deref().cloned().unwrap_or_default(),
        }
    }

    fn wish(&mut self, key: Key, facts: &Facts, status: PolicyStatus, there: &PolicyStatus, now: Instant) {
        if desired::ours(&status) == desired::ours(there) {
            self.statuses.unwant(&key);
            return;
        }
        let policy = &facts.policy;
        // The uid is a condition: an object that was made anew is not told what its predecessor was.
        let mut metadata = json!({"name": &*policy.name, "uid": &*policy.uid});
        if !policy.namespace.is_empty() {
            metadata["namespace"] = Value::from(&*policy.namespace);
        }
        let body = json!({
            "apiVersion": policy.kind.api_version(policy.kind.versions()[0]),
            "kind": policy.kind.name(),
            "metadata": metadata,
            "status": status,
        });
        self.statuses.want(key, (body, status, policy.uid.clone()), now);
    }

    /// What to write now.
    pub fn next(&mut self, now: Instant) -> Option<Write> {
        if !self.leads(now) {
            return None;
        }
        if let Some((key, (body, status, uid))) = self.statuses.next(now) {
            self.running.insert(key.clone(), (status, uid));
            return Some(Write::Status(key, body));
        }
        self.events.next(now).map(|(place, tell)| Write::Event(place, tell))
    }

    /// When there is something to write.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if !self.leads(now) {
            return None;
        }
        [self.statuses.due(), self.events.due()].into_iter().flatten().min()
    }

    /// A write is over; why it failed, if it did.
    pub fn done(&mut self, done: Done, trouble: Option<String>, now: Instant, time: Timestamp) {
        self.say(trouble);
        match done {
            Done::Status(key, outcome, version) => {
                self.count(outcome, |counts| &mut counts.statuses);
                self.statuses.done(&key, outcome, now);
                let running = self.running.remove(&key);
                if let (Outcome::Written, Some(version), Some((status, uid))) = (outcome, version, running) {
                    self.written.insert(key, Written { uid, version, status });
                }
            }
            Done::Event(place, outcome, exists) => {
                self.count(outcome, |counts| &mut counts.events);
                self.events.done(&place, outcome, now);
                let more = match (outcome, exists) {
                    (Outcome::Written, Exists::Yes) => self.told.exists(&place, time),
                    (Outcome::Gone, _) => self.told.gone(&place, time),
                    _ => None,
                };
                if let Some(tell) = more {
                    self.events.want(place, tell, now);
                }
            }
        }
    }

    fn count(&mut self, outcome: Outcome, which: impl FnOnce(&mut Counts) -> &mut u64) {
        match outcome {
            Outcome::Written => *which(&mut self.counts) += 1,
            Outcome::Gone => {}
            Outcome::Refused | Outcome::Away => self.counts.failed += 1,
        }
    }

    /// What keeps this one from writing, or from knowing whether it may.
    pub fn say(&mut self, trouble: Option<String>) {
        if trouble.is_some() && trouble != self.trouble {
            let trouble = trouble.as_deref().unwrap_or_default();
            tracing::warn!("what is known of policies cannot be written to the API server: {trouble}");
        }
        self.trouble = trouble;
    }

    /// How writing goes, as JSON for the status.
    #[must_use]
    pub fn status(&self, now: Instant) -> Value {
        let Counts { statuses, events, failed } = self.counts;
        json!({
            "leads": self.leads(now),
            "statuses": statuses,
            "events": events,
            "failed": failed,
            "waiting": self.statuses.waiting() + self.events.waiting(),
            "notTold": self.told.left_out(),
            "trouble": self.trouble,
        })
    }
}
