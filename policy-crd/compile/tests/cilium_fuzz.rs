//! Whatever a policy of Cilium's kinds looks like, lowering it neither panics nor opens anything without a word.

mod common;

use common::cilium::{ALLOW, ask, policy, world};
use proptest::prelude::*;
use serde_json::Value;
use sluice_crd::Severity;

fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "spec",
        "specs",
        "endpointSelector",
        "ingress",
        "ingressDeny",
        "egress",
        "egressDeny",
        "fromEndpoints",
        "toEndpoints",
        "fromEntities",
        "toPorts",
        "ports",
        "port",
        "protocol",
        "rules",
        "http",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "enableDefaultDeny",
        "nodeSelector",
        "icmps",
        "fields",
        "type",
        "path",
        "method",
        "headers",
        "headerMatches",
        "serverNames",
        "toServices",
        "k8sService",
        "serviceName",
        "k8sServiceSelector",
        "selector",
        "fromRequires",
        "*.a",
        "X-A: 1",
        "(",
        "EchoRequest",
        "health",
        "all",
        "8080",
        "In",
        "k8s:app",
        "reserved:host",
        "",
        "0",
        "TCP",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 48, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(word.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn lowering_never_panics_and_is_never_silent(spec in any_json()) {
        let (cluster, problems) = world(&[policy(spec.clone())]);
        let states = cluster.policies.len();
        prop_assert!(states > 0, "{spec}");
        let open = ask(&cluster, "a/client", 8080) == ALLOW && ask(&cluster, "203.0.113.1", 8080) == ALLOW;
        let whole = problems.is_empty() && cluster.policies.iter().all(|state| state.accepted);
        // Whatever opens everything is a policy that was understood, or one that was said to do nothing.
        prop_assert!(!open || whole || problems.iter().any(|p| p.severity == Severity::Warning
            || p.path.ends_with("nodeSelector")), "{spec} {problems:?}");
    }
}
