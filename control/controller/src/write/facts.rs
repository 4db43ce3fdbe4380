//! What one reading of the objects says of each policy, and since which reading it says that.
//!
//! A policy may be lowered in parts (Cilium's `specs`, namespaces with other modes): here they are one again. Knows
//! nothing of nodes' words and of time. Called by the plan and by the report.

use crate::cluster::kinds::Kind;
use crate::cluster::store::PolicyMeta;
use sluice_compile::PolicyState;
use sluice_crd::{EffectiveMode, Problem, Severity};
use sluice_policy::{Mode, Workload};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

/// Problems of a policy that its status says; the others are counted.
const SAID: usize = 4;

/// What a reading says of a policy.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The policy, as the API server knew it then.
    pub policy: PolicyMeta,
    /// Whether it is judged at all: it could be read.
    pub read: bool,
    /// Nothing in it was wrong.
    pub accepted: bool,
    /// The first problems, the worst first.
    pub problems: Vec<String>,
    /// How many more there are.
    pub more: usize,
    /// The weakest mode of all pods that it selects.
    pub mode: EffectiveMode,
    /// The pods that it selects.
    pub selected: usize,
    /// By node, those that it judges there, each `namespace/pod`, sorted.
    pub judged: BTreeMap<Arc<str>, Vec<String>>,
    /// Selected pods of namespaces that are not in the dataplane.
    pub outside: usize,
    /// Selected pods of namespaces that are in it, and off.
    pub off: usize,
    /// Pods on their node's network with its labels: no policy is about them.
    pub host: usize,
    /// What of this has to be in force on nodes, in one number; of this process alone.
    pub mark: u64,
}

/// What tells policies apart.
pub type Key = (Kind, Arc<str>, Arc<str>);

/// The key of a policy.
#[must_use]
pub fn key(policy: &PolicyMeta) -> Key {
    (policy.kind, policy.namespace.clone(), policy.name.clone())
}

/// What has become of one policy in all of its parts.
#[derive(Default)]
struct Parts<'s> {
    states: Vec<&'s PolicyState>,
    problems: Vec<&'s Problem>,
}

/// What a reading says of each of these policies. `marks` makes the numbers that tell one reading of a policy from
/// another.
#[must_use]
pub fn facts(
    policies: Vec<PolicyMeta>,
    states: &[PolicyState],
    problems: &[Problem],
    marks: &RandomState,
) -> Vec<Facts> {
    let mut parts: HashMap<String, Parts<'_>> = HashMap::new();
    for state in states {
        parts.entry(state.origin.to_string()).or_default().states.push(state);
    }
    for problem in problems {
        if let Some(object) = &problem.object {
            parts.entry(object.to_string()).or_default().problems.push(problem);
        }
    }
    let one = |policy: PolicyMeta| {
        let parts = parts.remove(&origin(&policy)).unwrap_or_default();
        fact(policy, &parts, marks)
    };
    policies.into_iter().map(one).collect()
}

/// A policy as its rules and its problems name it.
fn origin(PolicyMeta { kind, namespace, name, .. }: &PolicyMeta) -> String {
    let kind = kind.name();
    if namespace.is_empty() { format!("{kind}/{name}") } else { format!("{kind}/{namespace}/{name}") }
}

fn fact(policy: PolicyMeta, parts: &Parts<'_>, marks: &RandomState) -> Facts {
    let mut pods = Pods::default();
    for state in &parts.states {
        pods.add(state);
    }
    let mut problems: Vec<&&Problem> =
        parts.problems.iter().filter(|problem| problem.severity != Severity::Info).collect();
    problems.sort_by_key(|problem| problem.severity);
    let more = problems.len().saturating_sub(SAID);
    let said = problems.into_iter().take(SAID).map(|problem| told(problem)).collect();
    let mode = mode(&parts.states);
    let mark = marks.hash_one((&policy.uid, policy.generation, mode as u8, &pods.judged));
    Facts {
        policy,
        read: !parts.states.is_empty(),
        accepted: !parts.states.is_empty() && parts.states.iter().all(|state| state.accepted),
        problems: said,
        more,
        mode,
        selected: pods.selected.len(),
        outside: pods.outside.len(),
        off: pods.off.difference(&pods.outside).count(),
        host: pods.host.len(),
        judged: pods.by_node(),
        mark,
    }
}

/// A problem without what stands beside it in a status: the object and the file.
fn told(problem: &Problem) -> String {
    Problem { file: "".into(), object: None, ..problem.clone() }.to_string()
}

/// The weakest mode in which a pod of the policy is judged; if it has none, the weakest that one would be.
fn mode(states: &[&PolicyState]) -> EffectiveMode {
    let with_pods = states.iter().filter(|state| !state.selected.is_empty());
    let weakest = |states: &mut dyn Iterator<Item = &&PolicyState>| {
        let modes = states.map(|state| match state.mode {
            None => EffectiveMode::Off,
            Some(Mode::Audit) => EffectiveMode::Audit,
            Some(Mode::Enforce) => EffectiveMode::Enforce,
        });
        modes.max_by_key(|mode| *mode as u8)
    };
    weakest(&mut with_pods.copied().collect::<Vec<_>>().iter())
        .or_else(|| weakest(&mut states.iter()))
        .unwrap_or(EffectiveMode::Off)
}

/// Pods of a policy by what becomes of them; each counts once in how many parts it ever is.
#[derive(Default)]
struct Pods<'s> {
    selected: BTreeSet<Place<'s>>,
    /// By node, with the uid: a pod that comes back under its name is another one.
    judged: BTreeSet<(&'s Arc<str>, Place<'s>, &'s Arc<str>)>,
    outside: BTreeSet<Place<'s>>,
    off: BTreeSet<Place<'s>>,
    host: BTreeSet<Place<'s>>,
}

/// Namespace and name.
type Place<'s> = (&'s Arc<str>, &'s Arc<str>);

impl<'s> Pods<'s> {
    fn add(&mut self, state: &'s PolicyState) {
        let place = |pod: &'s Arc<Workload>| (&pod.namespace, &pod.pod);
        let selected: BTreeSet<Place<'_>> = state.selected.iter().map(place).collect();
        let (outside, host): (BTreeSet<Place<'_>>, BTreeSet<Place<'_>>) =
            state.not_enforced.iter().map(place).partition(|pod| selected.contains(pod));
        match state.mode {
            None => self.off.extend(&selected),
            // A pod that no node was found for yet is on none.
            Some(_) => self.judged.extend(
                state
                    .selected
                    .iter()
                    .filter(|pod| !outside.contains(&place(pod)) && !pod.node.is_empty())
                    .map(|pod| (&pod.node, place(pod), &pod.uid)),
            ),
        }
        self.selected.extend(selected);
        self.outside.extend(outside);
        self.host.extend(host);
    }

    fn by_node(&self) -> BTreeMap<Arc<str>, Vec<String>> {
        let mut by_node: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for (node, (namespace, pod), _) in &self.judged {
            by_node.entry(Arc::clone(node)).or_default().push(format!("{namespace}/{pod}"));
        }
        by_node
    }
}

/// Since when what has to be in force of a policy is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    mark: u64,
    /// The reading of the objects that said so first.
    pub reading: u64,
    /// The newest generation of the nodes before that: what is in force is newer, or was no news.
    pub generation: u64,
}

/// Remembers since when.
#[derive(Default)]
pub struct Ledger {
    since: HashMap<Key, Since>,
}

impl Ledger {
    /// Takes what a reading says.
    pub fn take(&mut self, facts: &[Facts], reading: u64, generation: u64) {
        let before = std::mem::take(&mut self.since);
        let since = |facts: &Facts| {
            let key = key(&facts.policy);
            let same = before.get(&key).filter(|since| since.mark == facts.mark);
            let since = same.copied().unwrap_or(Since { mark: facts.mark, reading, generation });
            (key, since)
        };
        self.since = facts.iter().map(since).collect();
    }

    /// Since when a policy is as it is.
    #[must_use]
    pub fn since(&self, key: &Key) -> Option<Since> {
        self.since.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_crd::Source;
    use sluice_policy::Origin;

    fn meta(kind: Kind, namespace: &str, name: &str, generation: i64) -> PolicyMeta {
        let (namespace, name, uid) = (namespace.into(), name.into(), "u".into());
        PolicyMeta { kind, namespace, name, uid, generation, status: None, version: None }
    }

    fn pod(namespace: &str, name: &str, node: &str) -> Arc<Workload> {
        Arc::new(Workload {
            namespace: namespace.into(),
            pod: name.into(),
            uid: "1".into(),
            service_account: "default".into(),
            node: node.into(),
        })
    }

    fn state(mode: Option<Mode>, selected: &[Arc<Workload>], not_enforced: &[Arc<Workload>]) -> PolicyState {
        let kind = sluice_policy::Kind::ClusterL7NetworkPolicy;
        let origin = Origin { kind, namespace: "".into(), name: "all".into() };
        let (selected, not_enforced) = (selected.to_vec(), not_enforced.to_vec());
        PolicyState { origin, mode, accepted: true, selected, not_enforced }
    }

    #[test]
    fn the_parts_of_a_policy_are_one() {
        let [a, b, c, d] =
            [pod("a", "p", "n1"), pod("a", "q", "n2"), pod("b", "p", "n1"), pod("c", "p", "n3")];
        let host = pod("a", "host", "n1");
        let mut states = vec![
            state(Some(Mode::Enforce), &[a.clone(), b.clone()], &[host]),
            state(Some(Mode::Audit), &[c], &[]),
            state(None, &[pod("d", "p", "n4")], &[]),
            state(Some(Mode::Enforce), &[a, d.clone()], &[d]),
        ];
        let of = |states: &[PolicyState]| {
            let policy = meta(Kind::ClusterL7NetworkPolicy, "", "all", 1);
            facts(vec![policy], states, &[], &RandomState::new()).remove(0)
        };
        let all = of(&states);
        assert_eq!((all.selected, all.outside, all.off, all.host), (5, 1, 1, 1));
        assert_eq!(all.mode, EffectiveMode::Off, "the weakest");
        let judged: Vec<(&str, Vec<String>)> =
            all.judged.iter().map(|(node, pods)| (&**node, pods.clone())).collect();
        assert_eq!(judged, [("n1", vec!["a/p".into(), "b/p".into()]), ("n2", vec!["a/q".to_owned()])]);
        states.remove(2);
        assert_eq!(of(&states).mode, EffectiveMode::Audit);
        states.push(state(None, &[], &[]));
        assert_eq!(of(&states).mode, EffectiveMode::Audit, "off where it has no pods is off for nobody");
        states[0].accepted = false;
        assert!(!of(&states).accepted, "one part is enough");
        assert!(!of(&[]).read && !of(&[]).accepted, "nothing is known of what was not read");
    }

    #[test]
    fn problems_are_those_of_the_policy_and_errors_come_first() {
        let source = Source::of_object("L7NetworkPolicy/shop/cart");
        let mut problems = vec![
            source.problem(Severity::Warning, "spec.b", "odd", ""),
            source.problem(Severity::Info, "", "by the way", ""),
            Source::of_object("L7NetworkPolicy/shop/other").problem(Severity::Error, "", "another's", ""),
            source.problem(Severity::Error, "spec.a", "no such method", "write GET"),
        ];
        let policy = || vec![meta(Kind::L7NetworkPolicy, "shop", "cart", 1)];
        let said = facts(policy(), &[], &problems, &RandomState::new()).remove(0);
        assert_eq!(said.problems, ["spec.a: no such method: write GET", "spec.b: odd"]);
        problems
            .extend((0..9).map(|at| source.problem(Severity::Warning, &format!("spec.c{at}"), "odd", "")));
        let said = facts(policy(), &[], &problems, &RandomState::new()).remove(0);
        assert_eq!((said.problems.len(), said.more), (SAID, 7));
    }

    #[test]
    fn what_has_to_be_in_force_is_new_when_it_says_something_new() {
        let marks = RandomState::new();
        let mut ledger = Ledger::default();
        let mut read = |reading: u64, generation: i64, pods: &[Arc<Workload>]| {
            let policy = meta(Kind::ClusterL7NetworkPolicy, "", "all", generation);
            let facts = facts(vec![policy], &[state(Some(Mode::Enforce), pods, &[])], &[], &marks);
            ledger.take(&facts, reading, 100 + reading);
            let since = ledger.since(&key(&facts[0].policy)).expect("known");
            (since.reading, since.generation)
        };
        let a = pod("a", "p", "n1");
        assert_eq!(read(1, 1, std::slice::from_ref(&a)), (1, 101));
        assert_eq!(read(2, 1, std::slice::from_ref(&a)), (1, 101));
        assert_eq!(read(3, 2, std::slice::from_ref(&a)), (3, 103), "another generation of it");
        assert_eq!(read(4, 2, &[a.clone(), pod("a", "q", "n1")]), (4, 104), "another pod");
        let again = Arc::new(Workload { uid: "2".into(), ..(*a).clone() });
        assert_eq!(read(5, 2, &[a, pod("a", "q", "n1")]), (4, 104));
        assert_eq!(read(6, 2, &[again, pod("a", "q", "n1")]), (6, 106), "a pod that came back");
    }
}
