//! The index of a cluster's objects, in bad company: events twice, out of order, late, lost, and lists that break off.
//!
//! However a cluster came to the objects that it has, the snapshot of every node is the same, byte for byte, as that
//! of somebody who sees them for the first time.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use prost::Message as _;
use serde_json::{Value, json};
use sluice_compile::{Enforcement, NodeScope, Options, Rollout, compile};
use sluice_control::cluster::kinds::Kind;
use sluice_control::cluster::store::{Event, Known, Store};
use std::collections::BTreeMap;

const ROLLOUT: Rollout =
    Rollout::AsLabelled { default_dataplane: true, max_enforcement: Enforcement::Enforce };
/// Histories of one run.
const SEEDS: u64 = 60;
/// Changes of one history.
const STEPS: usize = 300;
/// An event may come this many places too early or too late.
const REORDER: usize = 6;

/// Numbers by chance, the same for the same seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// The kinds that change here, and how many objects of each there can be.
const KINDS: [(Kind, usize); 9] = [
    (Kind::Namespace, 3),
    (Kind::Node, 3),
    (Kind::Pod, 12),
    (Kind::Service, 2),
    (Kind::EndpointSlice, 2),
    (Kind::NetworkPolicy, 4),
    (Kind::L7NetworkPolicy, 4),
    (Kind::ClusterL7NetworkPolicy, 2),
    (Kind::CiliumNetworkPolicy, 3),
];

/// An object of a kind, in one of a few forms, with what an API server adds that nobody reads.
fn object(kind: Kind, number: usize, version: u64, chance: &mut Chance) -> Value {
    let namespace = format!("ns-{}", number % 3);
    let labels = json!({"app": format!("a{}", chance.below(3)), "tier": format!("t{}", chance.below(2))});
    let form = chance.below(3);
    let mode = if form == 1 { "Audit" } else { "Enforce" };
    let select = json!({"matchLabels": {"app": format!("a{form}")}});
    let metadata = json!({
        "name": format!("{}-{number}", kind.plural()), "namespace": namespace, "labels": labels,
        "uid": format!("uid-{number}"), "resourceVersion": version.to_string(), "generation": 1,
        "managedFields": [{"manager": "m", "operation": "Update", "time": "2026-01-01T00:00:00Z"}],
        "annotations": {"noise": version.to_string()},
    });
    let mut object = match kind {
        Kind::Namespace => json!({"status": {"phase": "Active"}}),
        Kind::Node => json!({
            "spec": {"podCIDR": format!("10.0.{number}.0/24")},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{}", number + 1 + form)}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": version.to_string()}]},
        }),
        Kind::Pod => json!({
            "spec": {"nodeName": format!("nodes-{}", number % 3), "serviceAccountName": format!("s{form}"),
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080 + form}]}]},
            // Two may claim one address.
            "status": {"phase": if form == 2 { "Succeeded" } else { "Running" },
                "podIP": format!("10.0.{}.{}", number % 3, 2 + number / 2)},
        }),
        Kind::Service => {
            json!({"spec": {"clusterIP": format!("10.96.0.{}", number + 1), "selector": {"app": "a0"},
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
        }
        Kind::EndpointSlice => json!({"addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [format!("10.0.0.{}", 2 + form)], "conditions": {"ready": true}}]}),
        Kind::NetworkPolicy => json!({"spec": {"podSelector": select, "ingress": [{"ports": [{"port": 8080}],
            "from": [{"podSelector": {"matchLabels": {"tier": "t0"}}}]}]}}),
        Kind::L7NetworkPolicy => {
            json!({"spec": {"podSelector": select, "mode": mode,
            "ingress": [{"name": "r", "ports": [{"port": "http"}],
                "rules": {"http": [{"path": {"type": "PathPrefix", "value": format!("/v{form}")}}]}}]}})
        }
        Kind::ClusterL7NetworkPolicy => json!({"spec": {"tier": "Admin", "priority": form,
            "subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}]}}),
        _ => {
            json!({"spec": {"endpointSelector": select, "ingress": [{"fromEndpoints": [{"matchLabels": {"tier": "t1"}}]}]}})
        }
    };
    object["apiVersion"] = kind.api_version(kind.versions()[0]).into();
    object["kind"] = kind.name().into();
    object["metadata"] = metadata;
    if kind == Kind::EndpointSlice {
        object["metadata"]["labels"]["kubernetes.io/service-name"] = format!("services-{number}").into();
    }
    if matches!(kind, Kind::Namespace | Kind::Node | Kind::ClusterL7NetworkPolicy) {
        object["metadata"].as_object_mut().unwrap().remove("namespace");
    }
    if kind == Kind::Namespace {
        object["metadata"]["name"] = format!("ns-{number}").into();
    }
    if kind == Kind::Node {
        object["metadata"]["name"] = format!("nodes-{number}").into();
    }
    object
}

/// What there is, as etcd has it: the objects, and what has happened to each kind since its watch began.
struct Cluster {
    version: u64,
    objects: BTreeMap<(Kind, usize), Value>,
    told: BTreeMap<Kind, Vec<Event>>,
}

impl Cluster {
    fn change(&mut self, chance: &mut Chance) {
        let (kind, count) = KINDS[chance.below(KINDS.len())];
        let number = chance.below(count);
        self.version += 1;
        let log = self.told.entry(kind).or_default();
        if self.objects.contains_key(&(kind, number)) && chance.one_in(3) {
            let mut gone = self.objects.remove(&(kind, number)).unwrap();
            gone["metadata"]["resourceVersion"] = self.version.to_string().into();
            log.push(Event::Deleted(gone));
        } else {
            let object = object(kind, number, self.version, chance);
            self.objects.insert((kind, number), object.clone());
            log.push(Event::Applied(object));
        }
    }

    /// A list as of now; the watch goes on from here.
    fn list(&mut self, kind: Kind, chance: &mut Chance, take: &mut impl FnMut(Kind, Event)) {
        self.told.remove(&kind);
        let mut all: Vec<Value> = self
            .objects
            .iter()
            .filter(|((of, _), _)| *of == kind)
            .map(|(_, object)| object.clone())
            .collect();
        for place in (1..all.len()).rev() {
            all.swap(place, chance.below(place + 1));
        }
        // One that breaks off half-way, and begins again.
        if chance.one_in(3) {
            take(kind, Event::Listing);
            for object in all.iter().take(all.len() / 2) {
                take(kind, Event::Listed(object.clone()));
            }
        }
        take(kind, Event::Listing);
        for object in all {
            take(kind, Event::Listed(object));
        }
        take(kind, Event::Complete { version: Some(self.version) });
    }

    /// What has happened to a kind, told out of order and some of it twice. All of it, or the watch broke before.
    fn tell(&mut self, kind: Kind, chance: &mut Chance, take: &mut impl FnMut(Kind, Event)) {
        let mut events = Vec::new();
        for event in self.told.remove(&kind).unwrap_or_default() {
            if chance.one_in(4) {
                events.push(event.clone());
            }
            events.push(event);
        }
        let mut keyed: Vec<(usize, Event)> = events
            .into_iter()
            .enumerate()
            .map(|(place, event)| (place + chance.below(REORDER), event))
            .collect();
        keyed.sort_by_key(|(place, _)| *place);
        for (_, event) in keyed {
            take(kind, event);
        }
    }
}

/// The bytes that each node gets.
fn bytes(store: &Store) -> Vec<Vec<u8>> {
    let loaded = store.loaded().expect("every kind is known");
    let of = |node: NodeScope| {
        let options = Options { node, rollout: ROLLOUT, generation: 1 };
        sluice_wire::encode(&compile(&loaded.objects, &options).snapshot).encode_to_vec()
    };
    (0..3).map(|node| of(NodeScope::Named(format!("nodes-{node}").as_str().into()))).collect()
}

/// A store that lists everything as it is.
fn fresh(cluster: &mut Cluster, chance: &mut Chance) -> Store {
    let mut store = Store::default();
    for kind in Kind::ALL {
        cluster.list(kind, chance, &mut |kind, event| {
            store.take(kind, event);
        });
    }
    store
}

#[test]
fn whatever_way_it_was_told_the_same_objects_give_the_same_bytes() {
    for seed in 0..SEEDS {
        let mut chance = Chance(seed);
        let mut cluster = Cluster { version: 1, objects: BTreeMap::new(), told: BTreeMap::new() };
        let mut store = fresh(&mut cluster, &mut chance);
        let mut changed = 0;
        for _ in 0..STEPS {
            cluster.change(&mut chance);
            if chance.one_in(10) {
                let kind = KINDS[chance.below(KINDS.len())].0;
                let mut take = |kind, event| changed += usize::from(store.take(kind, event));
                // Events are lost, and a list makes that good; or they come.
                if chance.one_in(4) {
                    cluster.list(kind, &mut chance, &mut take);
                } else {
                    cluster.tell(kind, &mut chance, &mut take);
                }
            }
        }
        for kind in Kind::ALL {
            cluster
                .tell(kind, &mut chance, &mut |kind, event| changed += usize::from(store.take(kind, event)));
        }
        assert!(changed > STEPS / 20, "seed {seed}: {changed} changes");
        let expected = fresh(&mut cluster, &mut chance);
        assert!(
            bytes(&store) == bytes(&expected),
            "seed {seed}: another snapshot than that of who sees it first"
        );
    }
}

#[test]
fn nothing_is_made_of_half_a_cluster() {
    let mut chance = Chance(7);
    let mut cluster = Cluster { version: 1, objects: BTreeMap::new(), told: BTreeMap::new() };
    for _ in 0..STEPS {
        cluster.change(&mut chance);
    }
    let mut store = Store::default();
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        assert!(!store.is_complete() && store.loaded().is_none(), "{place} kinds are known");
        assert_eq!(store.known(kind), Known::Nothing);
        cluster.list(kind, &mut chance, &mut |kind, event| {
            store.take(kind, event);
        });
    }
    assert!(store.is_complete() && store.loaded().is_some());
}

fn pod(version: u64, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "a", "name": "p", "labels": {"app": app}, "resourceVersion": version.to_string()},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": app}]}})
}

fn listed(version: u64, pods: &[Value]) -> Store {
    let mut store = Store::default();
    for kind in Kind::ALL {
        store.take(kind, Event::Listing);
        for pod in pods.iter().filter(|_| kind == Kind::Pod) {
            store.take(kind, Event::Listed(pod.clone()));
        }
        store.take(kind, Event::Complete { version: Some(version) });
    }
    store
}

fn app(store: &Store) -> Option<String> {
    let objects = store.objects();
    let pod = objects.pods.first()?;
    pod.object.metadata.labels.as_ref()?.get("app").cloned()
}

#[test]
fn an_older_version_changes_nothing() {
    let mut store = listed(5, &[pod(5, "five")]);
    assert!(store.take(Kind::Pod, Event::Applied(pod(7, "seven"))));
    assert!(!store.take(Kind::Pod, Event::Applied(pod(6, "six"))));
    assert!(!store.take(Kind::Pod, Event::Deleted(pod(6, "six"))), "it was made again since");
    assert_eq!(app(&store).as_deref(), Some("seven"));
    assert!(store.take(Kind::Pod, Event::Deleted(pod(8, "seven"))));
    assert!(!store.take(Kind::Pod, Event::Applied(pod(7, "seven"))), "it has gone since");
    assert_eq!(app(&store), None);
    assert!(store.take(Kind::Pod, Event::Applied(pod(9, "nine"))));
}

#[test]
fn what_is_deleted_before_it_was_seen_does_not_come() {
    let mut store = listed(5, &[]);
    assert!(!store.take(Kind::Pod, Event::Deleted(pod(7, "seven"))));
    assert!(!store.take(Kind::Pod, Event::Applied(pod(6, "six"))));
    assert_eq!(app(&store), None);
}

#[test]
fn what_is_older_than_the_list_that_lacks_it_does_not_come_back() {
    let mut store = listed(5, &[]);
    assert!(!store.take(Kind::Pod, Event::Applied(pod(4, "four"))));
    assert_eq!(app(&store), None);
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let mut store = listed(5, &[pod(5, "five")]);
    store.take(Kind::Pod, Event::Listing);
    assert_eq!(app(&store).as_deref(), Some("five"));
    store.take(Kind::Pod, Event::Listing);
    assert!(store.take(Kind::Pod, Event::Complete { version: Some(9) }), "and a whole one does");
    assert_eq!(app(&store), None);
}

#[test]
fn the_end_of_a_list_without_its_beginning_says_nothing() {
    let mut store = listed(5, &[pod(5, "five")]);
    assert!(!store.take(Kind::Pod, Event::Complete { version: Some(9) }));
    assert!(!store.take(Kind::Pod, Event::Listed(pod(9, "nine"))));
    assert_eq!(app(&store).as_deref(), Some("five"));
}

#[test]
fn a_cluster_restored_from_a_backup_is_as_it_lists_itself() {
    let mut store = listed(900, &[pod(900, "new")]);
    store.take(Kind::Pod, Event::Listing);
    store.take(Kind::Pod, Event::Listed(pod(5, "old")));
    assert!(store.take(Kind::Pod, Event::Complete { version: Some(6) }));
    assert_eq!(app(&store).as_deref(), Some("old"));
    assert!(store.take(Kind::Pod, Event::Applied(pod(7, "newer"))));
}

#[test]
fn what_nobody_reads_is_no_change() {
    let mut store = listed(5, &[pod(5, "five")]);
    let mut noisy = pod(6, "five");
    noisy["metadata"]["annotations"] = json!({"a": "b"});
    noisy["spec"]["containers"][0]["image"] = "another".into();
    noisy["status"] = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    assert!(!store.take(Kind::Pod, Event::Applied(noisy)));
    assert!(!store.take(Kind::Pod, Event::Applied(pod(5, "stale"))), "its version counts all the same");
    let mut addressed = pod(7, "five");
    addressed["status"] = json!({"podIP": "10.0.0.1"});
    assert!(store.take(Kind::Pod, Event::Applied(addressed)));
}

#[test]
fn a_kind_that_goes_takes_its_objects_along_and_one_that_comes_waits_for_its_list() {
    let mut store = listed(5, &[]);
    let policy = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "a", "name": "p", "resourceVersion": "6"}, "spec": {"endpointSelector": {}}});
    let kind = Kind::CiliumNetworkPolicy;
    assert!(store.take(kind, Event::Applied(policy.clone())));
    assert!(store.take(kind, Event::Absent));
    assert_eq!((store.known(kind), store.objects().cilium.len()), (Known::Absent, 0));
    store.take(kind, Event::Listing);
    store.take(kind, Event::Listed(policy));
    assert_eq!((store.known(kind), store.objects().cilium.len()), (Known::Absent, 0));
    assert!(store.take(kind, Event::Complete { version: Some(8) }));
    assert_eq!((store.known(kind), store.objects().cilium.len()), (Known::Objects(1), 1));
}

#[test]
fn a_version_that_is_no_number_is_taken_as_news() {
    let mut odd = pod(1, "odd");
    odd["metadata"]["resourceVersion"] = "abc".into();
    let mut store = listed(5, &[pod(5, "five")]);
    assert!(store.take(Kind::Pod, Event::Applied(odd.clone())));
    assert_eq!(app(&store).as_deref(), Some("odd"));
    assert!(store.take(Kind::Pod, Event::Deleted(odd)));
}

/// A change that says nothing new has a generation, and somebody waits for it to be observed; a status is no change.
#[test]
fn a_generation_is_a_change_of_a_policy_and_its_status_is_none() {
    let mut store = Store::default();
    for kind in Kind::ALL {
        store.take(kind, Event::Listing);
        store.take(kind, Event::Complete { version: Some(1) });
    }
    let policy = |version: u64, uid: &str, generation: u64, pods: u64| {
        json!({
            "metadata": {"name": "a", "namespace": "b", "uid": uid, "generation": generation,
                "resourceVersion": version.to_string()},
            "spec": {"podSelector": {}}, "status": {"selectedPods": pods},
        })
    };
    let mut apply = |object: Value| {
        let changed = store.take(Kind::L7NetworkPolicy, Event::Applied(object));
        let known = store.policies().remove(0);
        (changed, known.generation, known.version, known.status.and_then(|status| status.selected_pods))
    };
    assert_eq!(apply(policy(2, "u", 1, 1)), (true, 1, Some(2), Some(1)));
    assert_eq!(
        apply(policy(3, "u", 1, 4)),
        (false, 1, Some(3), Some(4)),
        "its status is known, and no change"
    );
    assert_eq!(apply(policy(4, "u", 2, 4)), (true, 2, Some(4), Some(4)), "its generation is one");
    assert_eq!(apply(policy(3, "u", 1, 9)), (false, 2, Some(4), Some(4)), "what is older is nothing");
    assert_eq!(apply(policy(5, "v", 2, 4)), (true, 2, Some(5), Some(4)), "another one of that name is one");
    let mut odd = policy(6, "v", 2, 4);
    odd["status"]["selectedPods"] = json!("many");
    assert_eq!(apply(odd), (false, 2, Some(6), None), "a status in another form is as good as none");
    // A list says the same.
    store.take(Kind::L7NetworkPolicy, Event::Listing);
    store.take(Kind::L7NetworkPolicy, Event::Listed(policy(7, "v", 2, 5)));
    assert!(!store.take(Kind::L7NetworkPolicy, Event::Complete { version: Some(7) }));
    assert_eq!(store.policies()[0].status.as_ref().unwrap().selected_pods, Some(5));
    store.take(Kind::L7NetworkPolicy, Event::Listing);
    store.take(Kind::L7NetworkPolicy, Event::Listed(policy(8, "v", 3, 5)));
    assert!(store.take(Kind::L7NetworkPolicy, Event::Complete { version: Some(8) }));
    // Of what is no policy nobody waits for a generation.
    let node = |version: u64| json!({"metadata": {"name": "n", "generation": version, "resourceVersion": version.to_string()}});
    assert!(store.take(Kind::Node, Event::Applied(node(20))));
    assert!(!store.take(Kind::Node, Event::Applied(node(21))));
}
