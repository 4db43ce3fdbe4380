//! What is said of a policy, from what nodes say: by a value without I/O, at times of the tests' own.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use k8s_openapi::jiff::Timestamp;
use sluice_compile::PolicyState;
use sluice_control::cluster::kinds::Kind;
use sluice_control::cluster::store::PolicyMeta;
use sluice_control::heard::{Fill, Kernel};
use sluice_control::nodes::Nodes;
use sluice_control::write::Reporter;
use sluice_control::write::facts::{Facts, facts};
use sluice_control::write::notices::Tell;
use sluice_control::write::queue::Outcome;
use sluice_control::write::report::{Done, Exists, Write};
use sluice_crd::{PolicyStatus, Problem, Severity, Source};
use sluice_policy::{Mode, Origin, Workload};
use sluice_wire::{STALE_AFTER, pb};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_millis(600);

/// A cluster of one policy whose API server keeps what is written to it.
struct World {
    begin: Instant,
    now: Instant,
    reporter: Reporter,
    nodes: Nodes,
    reading: u64,
    policy: PolicyMeta,
    facts: Vec<Facts>,
    events: Vec<(String, String)>,
    series: usize,
    writes: usize,
}

fn pod(name: &str, node: &str) -> Arc<Workload> {
    Arc::new(Workload {
        namespace: "shop".into(),
        pod: name.into(),
        uid: "1".into(),
        service_account: "default".into(),
        node: node.into(),
    })
}

fn snapshot(content: u32, pods: &[&str]) -> pb::Snapshot {
    let workload =
        |pod: &&str| pb::Workload { namespace: "shop".into(), pod: (*pod).into(), ..Default::default() };
    let endpoint =
        |workload: usize| pb::Endpoint { workload: workload as u32, profile: content, ..Default::default() };
    pb::Snapshot {
        workloads: pods.iter().map(workload).collect(),
        endpoints: (0..pods.len()).map(endpoint).collect(),
        ..Default::default()
    }
}

impl World {
    fn new(kind: Kind, generation: u64) -> Self {
        let now = Instant::now();
        let policy = PolicyMeta {
            kind,
            namespace: "shop".into(),
            name: "cart".into(),
            uid: "u".into(),
            generation: 1,
            status: None,
            version: Some(1),
        };
        let mut reporter = Reporter::new(now);
        reporter.lead(Some(now + Duration::from_secs(1_000_000)), now);
        Self {
            begin: now,
            now,
            reporter,
            nodes: Nodes::new(generation),
            reading: 0,
            policy,
            facts: Vec::new(),
            events: Vec::new(),
            series: 0,
            writes: 0,
        }
    }

    /// The objects are read: the policy selects these pods.
    fn read(&mut self, mode: Option<Mode>, pods: &[Arc<Workload>], problems: &[Problem]) {
        let kind = sluice_policy::Kind::ALL.into_iter().find(|kind| kind.as_str() == self.policy.kind.name());
        let origin = Origin { kind: kind.unwrap(), namespace: "shop".into(), name: "cart".into() };
        let accepted = problems.is_empty();
        let state = PolicyState { origin, mode, accepted, selected: pods.to_vec(), not_enforced: Vec::new() };
        self.facts = facts(vec![self.policy.clone()], &[state], problems, self.reporter.marks());
        self.reading += 1;
        self.nodes.expect(self.reading);
        self.reporter.read(&self.facts, self.reading, self.nodes.generation());
    }

    fn publish(&mut self, snapshots: &[(&str, pb::Snapshot)]) {
        let snapshots = snapshots.iter().map(|(name, snapshot)| ((*name).to_owned(), snapshot.clone()));
        self.nodes.publish(snapshots.collect(), self.reading, self.now);
    }

    fn join(&mut self, node: &str, stream: u64, generation: u64) {
        self.nodes.join(node, stream, generation, self.now).unwrap();
    }

    fn ack(&mut self, node: &str, stream: u64, pods: &[&str]) {
        let generation = self.nodes.get(node).unwrap().published();
        let attached = pods.iter().map(|pod| format!("shop/{pod}")).collect();
        let ack = pb::Ack { generation, applied: true, attached, ..Default::default() };
        self.nodes.acked(node, stream, ack, self.now);
        self.beat(node, stream);
    }

    fn beat(&mut self, node: &str, stream: u64) {
        self.nodes.reported(node, stream, Kernel::default(), self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// A look, and what is written is there.
    fn look(&mut self) {
        let seconds = 1_800_000_000 + (self.now - self.begin).as_secs() as i64;
        let time = Timestamp::from_second(seconds).unwrap();
        let there = vec![self.policy.clone()];
        self.reporter.look(&self.facts, &self.nodes, there, self.now, time);
        while let Some(write) = self.reporter.next(self.now) {
            self.writes += 1;
            let done = match write {
                Write::Status(key, body) => {
                    let status: PolicyStatus = serde_json::from_value(body["status"].clone()).unwrap();
                    self.policy.status = Some(Arc::new(status));
                    self.policy.version = self.policy.version.map(|version| version + 1);
                    Done::Status(key, Outcome::Written, self.policy.version)
                }
                Write::Event(place, tell) => {
                    match &tell {
                        Tell::First(event) => {
                            let text = |field: &str| event[field].as_str().unwrap().to_owned();
                            self.events.push((text("reason"), text("note")));
                        }
                        Tell::Again(_) => self.series += 1,
                    }
                    Done::Event(place, Outcome::Written, Exists::Unsaid)
                }
            };
            self.reporter.done(done, None, self.now, time);
            self.now += Duration::from_millis(50);
        }
    }

    /// `status/reason: message` of Programmed, after a look.
    fn programmed(&mut self) -> String {
        self.pass(SOON);
        self.look();
        self.condition("Programmed")
    }

    fn condition(&self, name: &str) -> String {
        let status = self.policy.status.as_ref().unwrap();
        let condition = status.conditions.iter().flatten().find(|one| one.type_ == name).unwrap();
        format!("{}/{}: {}", condition.status, condition.reason, condition.message)
    }

    fn since(&self, name: &str) -> Timestamp {
        let status = self.policy.status.as_ref().unwrap();
        status.conditions.iter().flatten().find(|one| one.type_ == name).unwrap().last_transition_time.0
    }
}

/// Two nodes with a pod each, and the policy in force on both.
fn two() -> World {
    let mut world = World::new(Kind::L7NetworkPolicy, 90);
    world.join("a", 1, 0);
    world.join("b", 2, 0);
    world.read(Some(Mode::Enforce), &[pod("x", "a"), pod("y", "b")], &[]);
    world.publish(&[("a", snapshot(1, &["x"])), ("b", snapshot(1, &["y"]))]);
    assert_eq!(world.programmed(), "False/Pending: 0/2 nodes; waiting for a, b");
    world.ack("a", 1, &["x"]);
    assert_eq!(world.programmed(), "False/Pending: 1/2 nodes at generation 90; waiting for b");
    world.ack("b", 2, &["y"]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    world
}

#[test]
fn a_policy_is_programmed_once_every_node_says_so() {
    let mut world = two();
    let since = world.since("Programmed");
    // Another policy changed: what this one needs is in force all the while.
    let writes = world.writes;
    world.read(Some(Mode::Enforce), &[pod("x", "a"), pod("y", "b")], &[]);
    world.publish(&[("a", snapshot(2, &["x"])), ("b", snapshot(2, &["y"]))]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    world.ack("a", 1, &["x"]);
    world.ack("b", 2, &["y"]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    assert_eq!(world.writes, writes, "no write for a generation that is no news for the policy");
    // This one changes.
    world.policy.generation = 2;
    world.read(Some(Mode::Enforce), &[pod("x", "a"), pod("y", "b")], &[]);
    assert_eq!(world.programmed(), "False/Pending: 0/2 nodes; waiting for a, b", "before it is published");
    world.publish(&[("a", snapshot(3, &["x"])), ("b", snapshot(2, &["y"]))]);
    assert_eq!(world.programmed(), "False/Pending: 1/2 nodes at generation 91; waiting for a");
    world.ack("a", 1, &["x"]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 92");
    assert_eq!(world.policy.status.as_ref().unwrap().observed_generation, Some(2));
    assert!(world.since("Programmed") > since, "it flipped");
    assert!(world.since("Accepted") < since, "that did not");
}

/// Everything happens between two looks: no flip is seen, and the generation is that of what is there now.
#[test]
fn a_message_names_no_generation_of_what_is_no_more() {
    let mut world = two();
    let again = Arc::new(Workload { uid: "2".into(), ..(*pod("x", "a")).clone() });
    world.read(Some(Mode::Enforce), &[again, pod("y", "b")], &[]);
    world.publish(&[("a", snapshot(2, &["x"])), ("b", snapshot(1, &["y"]))]);
    world.ack("a", 1, &["x"]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 91");
    // As many pods, on fewer nodes.
    world.read(Some(Mode::Enforce), &[pod("x", "a"), pod("z", "a")], &[]);
    world.publish(&[("a", snapshot(2, &["x", "z"]))]);
    world.ack("a", 1, &["x", "z"]);
    assert_eq!(world.programmed(), "True/Programmed: 1/1 nodes at generation 92");
}

#[test]
fn a_snapshot_that_is_not_published_is_in_force_nowhere() {
    let mut world = two();
    // The compiler broke: the node has nothing of this reading, and what it acknowledged is of another.
    world.read(Some(Mode::Audit), &[pod("x", "a"), pod("y", "b")], &[]);
    assert_eq!(world.programmed(), "False/Pending: 0/2 nodes; waiting for a, b");
    assert!(!world.nodes.is_in_force(world.now));
    world.publish(&[("a", snapshot(1, &["x"])), ("b", snapshot(1, &["y"]))]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90", "it was no news for them");
    assert!(world.nodes.is_in_force(world.now));
}

#[test]
fn who_is_silent_is_not_known_about_and_comes_back() {
    let mut world = two();
    for _ in 0..4 {
        world.pass(Duration::from_secs(4));
        world.beat("a", 1);
        world.look();
    }
    assert_eq!(
        world.condition("Programmed"),
        "True/Programmed: 2/2 nodes at generation 90",
        "it has its time"
    );
    world.pass(Duration::from_secs(4));
    world.beat("a", 1);
    assert_eq!(
        world.programmed(),
        "Unknown/NotHeardOf: 1/2 nodes at generation 90; not heard of for 20 s: b"
    );
    assert!(world.events.is_empty(), "it is connected, and has just fallen silent: {:?}", world.events);
    // A stream that breaks is no other thing than one that is silent.
    world.nodes.leave("b", 2);
    world.look();
    world.pass(Duration::from_secs(6));
    world.beat("a", 1);
    world.look();
    assert_eq!(world.events[0].0, "SluiceNotConnected");
    world.join("b", 3, 90);
    assert!(world.programmed().starts_with("Unknown"), "an agent that begins again and again says nothing");
    world.beat("b", 3);
    assert!(
        world.programmed().starts_with("False/Pending"),
        "it lives, and has not said what it has in force"
    );
    world.ack("b", 3, &["y"]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    world.join("b", 4, 90);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90", "one agent takes over");
    world.join("b", 4, 7);
    world.beat("b", 4);
    assert!(world.programmed().starts_with("False/Pending"), "it has another generation in force");
}

#[test]
fn a_new_control_makes_nothing_up_and_takes_nothing_back_too_soon() {
    let before = two();
    let begin = |generation: i64, pods: &[Arc<Workload>], mode: Mode| {
        let mut world = World::new(Kind::L7NetworkPolicy, 1000);
        world.policy = PolicyMeta { generation, ..before.policy.clone() };
        world.read(Some(mode), pods, &[]);
        world
    };
    let pods = [pod("x", "a"), pod("y", "b")];
    let mut world = begin(1, &pods, Mode::Enforce);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    assert_eq!(world.writes, 0);
    world.join("a", 1, 90);
    world.publish(&[("a", snapshot(1, &["x"]))]);
    world.ack("a", 1, &["x"]);
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    world.pass(STALE_AFTER);
    world.beat("a", 1);
    assert_eq!(
        world.programmed(),
        "Unknown/NotHeardOf: 1/2 nodes at generation 1000; not heard of for 20 s: b"
    );

    // What is not what it was said of is not in force because that was.
    assert!(begin(2, &pods, Mode::Enforce).programmed().starts_with("Unknown"), "another generation");
    assert!(begin(1, &pods, Mode::Audit).programmed().starts_with("Unknown"), "another mode");
    assert!(begin(1, &pods[..1], Mode::Enforce).programmed().starts_with("Unknown"), "other pods");
    // A node that says that it cannot is believed at once.
    let mut world = begin(1, &pods, Mode::Enforce);
    world.join("a", 1, 0);
    world.publish(&[("a", snapshot(1, &["x"]))]);
    let missing = pb::MissingEndpoint { endpoint: "shop/x".into(), reason: "no interface".into() };
    let ack = pb::Ack { generation: 1000, applied: true, missing: vec![missing], ..Default::default() };
    world.nodes.acked("a", 1, ack, world.now);
    assert!(world.programmed().starts_with("False/NotProgrammed"), "{}", world.condition("Programmed"));
}

#[test]
fn what_is_judged_for_nobody_says_so() {
    let mut world = World::new(Kind::L7NetworkPolicy, 90);
    world.read(Some(Mode::Enforce), &[], &[]);
    assert_eq!(world.programmed(), "True/NoPods: no pod is selected: there is nothing to do");
    world.read(None, &[pod("x", "a")], &[]);
    assert!(
        world.programmed().starts_with("False/Off: 1 of 1 selected pods"),
        "{}",
        world.condition("Programmed")
    );
    world.read(Some(Mode::Enforce), &[pod("x", "")], &[]);
    assert_eq!(world.programmed(), "True/NoPods: no selected pod is on a node yet");
    // It cannot be read at all: nothing is known of it but its problems.
    let source = Source::of_object("L7NetworkPolicy/shop/cart");
    let problem = source.problem(Severity::Error, "spec", "no mapping", "write one");
    world.facts = facts(vec![world.policy.clone()], &[], &[problem], world.reporter.marks());
    assert_eq!(world.programmed(), "False/NotRead: not in force: it could not be read");
    assert_eq!(world.condition("Accepted"), "False/NotRead: not in force: spec: no mapping: write one");
}

#[test]
fn an_object_that_was_made_anew_is_not_told_what_the_other_was() {
    let mut world = two();
    let writes = world.writes;
    world.policy.uid = "another".into();
    world.policy.status = None;
    world.pass(SOON);
    world.look();
    assert_eq!((world.writes, world.policy.status.is_none()), (writes, true), "it is read first");
}

#[test]
fn what_stands_there_is_what_was_written_until_its_watch_says_otherwise() {
    let mut world = two();
    let writes = world.writes;
    // The watch is late: it still tells of the version before.
    world.policy.version = Some(1);
    world.policy.status = None;
    world.pass(SOON);
    world.look();
    assert_eq!(world.writes, writes, "nothing is written twice");
    // Somebody else writes something else.
    world.policy.version = Some(99);
    world.policy.status = Some(Arc::new(PolicyStatus { selected_pods: Some(99), ..Default::default() }));
    assert_eq!(world.programmed(), "True/Programmed: 2/2 nodes at generation 90");
    assert_eq!(world.policy.status.as_ref().unwrap().selected_pods, Some(2));
}

#[test]
fn events_are_told_once_and_again_when_they_come_back() {
    let mut world = World::new(Kind::NetworkPolicy, 90);
    world.join("a", 1, 0);
    let source = Source::of_object("NetworkPolicy/shop/cart");
    let problem = source.problem(Severity::Error, "spec.ingress[0]", "no such field", "leave it out");
    world.read(Some(Mode::Enforce), &[pod("x", "a")], &[problem]);
    world.publish(&[("a", snapshot(1, &["x"]))]);
    world.ack("a", 1, &["x"]);
    let reasons =
        |world: &World| -> Vec<String> { world.events.iter().map(|(reason, _)| reason.clone()).collect() };
    for _ in 0..10 {
        world.pass(SOON);
        world.look();
    }
    assert_eq!(reasons(&world), ["Invalid", "Programmed"]);
    assert_eq!(world.events[0].1, "in force, fail closed: spec.ingress[0]: no such field: leave it out");
    assert!(world.policy.status.is_none(), "its status is not ours");

    // A map fills up, whatever the numbers in its warning; and that stands for hours.
    let full = |world: &mut World, used: u64| {
        let warning = format!("{used} of 65536 entries");
        let maps = BTreeMap::from([("ROWS".to_owned(), Fill { used, max: 65536, warning })]);
        let kernel = Kernel { maps, ..Kernel::default() };
        world.nodes.reported("a", 1, kernel, world.now);
        world.look();
    };
    for used in 60_000..60_010 {
        world.pass(SOON);
        full(&mut world, used);
    }
    assert_eq!(reasons(&world), ["Invalid", "Programmed", "SluiceMapNearlyFull"]);
    for used in 0..3 * 60 * 4 {
        world.pass(Duration::from_secs(15));
        full(&mut world, 60_000 + used);
    }
    assert_eq!(world.events.len(), 3);
    assert!((8..=14).contains(&world.series), "twice an hour for each of two warnings: {}", world.series);
    // It is over, and comes back.
    let series = world.series;
    world.beat("a", 1);
    world.look();
    world.pass(Duration::from_secs(19));
    world.beat("a", 1);
    world.look();
    let before = world.series - series;
    full(&mut world, 60_000);
    assert!(world.series - series <= before + 1, "not more than once a minute");
}
