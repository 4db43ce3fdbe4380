//! `CiliumClusterwideNetworkPolicy`: whom it is about, whom its peers mean, and how a namespace's label counts.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::cilium::{ALLOW, DENY, errors, pod, world};
use common::{Ask, load_with};
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_compile::{Enforcement, Rollout};
use sluice_policy::Decision;

fn wide(spec: Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "w"}, "spec": spec})
}

/// Into `a/server` from its namespace and from another, into `b/client` from another and from outside.
fn ask(cluster: &Cluster) -> [Decision; 4] {
    [
        ("a/client", "a/server"),
        ("b/client", "a/server"),
        ("a/client", "b/client"),
        ("203.0.113.1", "b/client"),
    ]
    .map(|(from, to)| Ask::new(from, to, 1, "").decide(cluster))
}

#[test]
fn its_subject_and_its_peers_are_of_the_whole_cluster() {
    for (spec, expected) in [
        (json!({"endpointSelector": {}, "ingress": [{}]}), [DENY; 4]),
        (json!({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}), [ALLOW, ALLOW, ALLOW, DENY]),
        (
            json!({"endpointSelector": {"matchLabels": {"app": "client"}}, "ingress": [{}]}),
            [ALLOW, ALLOW, DENY, DENY],
        ),
        (
            json!({"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "b"}}, "ingress": [{}]}),
            [ALLOW, ALLOW, DENY, DENY],
        ),
        (
            json!({"endpointSelector": {}, "ingress": [{"fromEndpoints":
                [{"matchLabels": {"io.kubernetes.pod.namespace": "b"}}]}]}),
            [DENY, ALLOW, DENY, DENY],
        ),
        (
            json!({"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}],
                "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]}),
            [DENY, DENY, DENY, ALLOW],
        ),
    ] {
        let (cluster, problems) = world(&[wide(spec.clone())]);
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        assert_eq!(ask(&cluster), expected, "{spec}");
        assert!(cluster.policies.iter().all(|policy| policy.accepted), "{spec}");
    }
}

#[test]
fn in_doubt_it_closes_every_pod() {
    let mut placed = wide(json!({"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}]}));
    placed["metadata"]["namespace"] = json!("a");
    let unread =
        wide(json!({"endpointSelector": {"matchLabels": 1}, "ingress": [{"fromEntities": ["all"]}]}));
    for object in [placed, unread] {
        let (cluster, problems) = world(&[object]);
        assert!(!errors(&problems).is_empty());
        assert_eq!(ask(&cluster), [DENY; 4]);
    }
}

#[test]
fn the_label_of_a_namespace_has_its_say() {
    let namespace = |name: &str, mode: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"sluice.dev/enforcement": mode}}})
    };
    for (mode, expected) in [("enforce", DENY), ("audit", ALLOW), ("off", ALLOW)] {
        let (cluster, problems) = load_with(
            &[
                namespace("a", "enforce"),
                namespace("b", mode),
                pod("a", "server", "10.0.0.1", json!({})),
                pod("b", "client", "10.0.0.3", json!({})),
                wide(json!({"endpointSelector": {}, "ingress": [{}]})),
            ],
            Rollout::AsLabelled { default_dataplane: true, max_enforcement: Enforcement::Enforce },
        );
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        let decide = |to: &str| Ask::new("203.0.113.1", to, 1, "").decide(&cluster);
        assert_eq!((decide("a/server"), decide("b/client")), (DENY, expected), "{mode}");
        let audited = Ask::new("203.0.113.1", "b/client", 1, "").verdict(&cluster).ingress.audit.would_deny;
        assert_eq!(audited.len(), usize::from(mode == "audit"), "{mode}");
    }
}
