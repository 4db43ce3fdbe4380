//! `CiliumCIDRGroup`s: what a policy that names them allows and denies, and that a group in doubt closes it.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]

mod common;

use common::cilium::{ALLOW, DENY, ask, errors, policy, world};
use serde_json::{Value, json};
use sluice_crd::Problem;
use sluice_policy::Decision;

fn group(name: &str, kind: &str, cidrs: Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": {"kind": kind}}, "spec": {"externalCIDRs": cidrs}})
}

/// Decisions for three addresses outside, a pod within a CIDR of the groups, and whether all was accepted.
fn by_groups(rules: Value, groups: &[Value]) -> ([Decision; 4], Vec<Problem>) {
    let mut spec = json!({"endpointSelector": {}});
    spec.as_object_mut().expect("object").extend(rules.as_object().expect("object").clone());
    let mut objects = vec![policy(spec)];
    objects.extend_from_slice(groups);
    let (cluster, problems) = world(&objects);
    let from = ["203.0.113.1", "198.51.100.1", "198.51.100.77", "b/client"];
    (from.map(|from| ask(&cluster, from, 1)), problems)
}

#[test]
fn groups_of_cidrs_are_what_they_hold_outside_the_cluster() {
    let groups = [
        group("one", "feed", json!(["203.0.113.0/24", "10.0.0.0/8"])),
        group("two", "feed", json!(["198.51.100.0/24"])),
        group("three", "other", json!(["0.0.0.0/0"])),
    ];
    let selector = |kind: &str| json!({"matchLabels": {"kind": kind}});
    for (item, [first, second, third]) in [
        (json!({"cidrGroupRef": "one"}), [true, false, false]),
        (json!({"cidrGroupRef": "two"}), [false, true, true]),
        (json!({"cidrGroupRef": "two", "except": ["198.51.100.64/26"]}), [false, true, false]),
        (json!({"cidrGroupRef": "two", "except": ["198.51.0.0/16"]}), [false; 3]),
        (json!({"cidrGroupSelector": selector("feed")}), [true; 3]),
        (
            json!({"cidrGroupSelector": selector("feed"), "except": ["198.51.100.1/32", "203.0.113.0/25"]}),
            [false, false, true],
        ),
        (json!({"cidrGroupSelector": selector("other")}), [true; 3]),
        (json!({"cidrGroupSelector": {}}), [true; 3]),
        (json!({"cidrGroupSelector": selector("none")}), [false; 3]),
    ] {
        let said = |named: bool| if named { ALLOW } else { DENY };
        let (got, problems) = by_groups(json!({"ingress": [{"fromCIDRSet": [item.clone()]}]}), &groups);
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        assert_eq!(got, [said(first), said(second), said(third), DENY], "{item}");
        let deny = json!({"ingress": [{"fromEntities": ["all"]}],
            "ingressDeny": [{"fromCIDRSet": [item.clone()]}]});
        let (got, problems) = by_groups(deny, &groups);
        assert!(errors(&problems).is_empty(), "{problems:#?}");
        assert_eq!(got, [said(!first), said(!second), said(!third), ALLOW], "{item}");
    }
}

#[test]
fn a_group_that_is_missing_or_in_doubt_closes() {
    let good = group("g", "feed", json!(["203.0.113.0/24"]));
    let mut nameless = good.clone();
    nameless["metadata"].as_object_mut().expect("object").remove("name");
    let mut misspelt = good.clone();
    misspelt["spec"]["externalCidrs"] = json!(["198.51.100.0/24"]);
    let mut labels = good.clone();
    labels["metadata"]["labels"] = json!({"kind": ["other"]});
    let many: Vec<Value> = (0..=255).map(|n| json!(format!("198.51.100.{n}/32"))).collect();
    let excepts: Vec<Value> =
        (0..=255).flat_map(|a| [0, 1, 2].map(|b| json!(format!("192.{a}.{b}.0/32")))).collect();
    let named = json!({"cidrGroupRef": "g"});
    let selected = json!({"cidrGroupSelector": {"matchLabels": {"kind": "feed"}}});
    for (path, item, groups) in [
        ("cidrGroupRef", named.clone(), vec![]),
        ("cidrGroupRef", json!({"cidrGroupRef": ""}), vec![nameless.clone()]),
        ("cidrGroupRef", named.clone(), vec![good.clone(), good.clone()]),
        ("cidrGroupRef", named.clone(), vec![misspelt]),
        ("cidrGroupRef", named.clone(), vec![group("g", "feed", json!(["203.0.113.0/33"]))]),
        ("cidrGroupRef", named.clone(), vec![group("g", "feed", json!(["{{.External}}"]))]),
        ("cidrGroupRef", named.clone(), vec![group("g", "feed", json!([7]))]),
        ("cidrGroupRef", named.clone(), vec![group("g", "feed", Value::Null)]),
        (
            "cidrGroupRef",
            json!({"cidrGroupRef": "g", "except": excepts}),
            vec![group("g", "feed", json!(many))],
        ),
        (
            "cidrGroupSelector.matchExpressions[0].operator",
            json!({"cidrGroupSelector": {"matchExpressions": [{"key": "a", "operator": "in"}]}}),
            vec![good.clone()],
        ),
        ("except[0]", json!({"cidrGroupRef": "g", "except": ["x"]}), vec![good.clone()]),
        ("cidrGroupSelector", selected.clone(), vec![nameless]),
        ("cidrGroupSelector", selected.clone(), vec![labels]),
        ("cidrGroupSelector", selected, vec![good.clone(), group("h", "feed", json!(["::/129"]))]),
    ] {
        let rules = json!([{"fromCIDRSet": [item.clone()]}]);
        let (got, problems) = by_groups(json!({"ingress": rules}), &groups);
        assert_eq!(got, [DENY; 4], "{item} {groups:?}");
        let at = format!("spec.ingress[0].fromCIDRSet[0].{path}");
        assert!(errors(&problems).iter().any(|problem| problem.path == at), "{at}\n{problems:#?}");
        let deny = json!({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": rules});
        let (got, _) = by_groups(deny, &groups);
        assert_eq!(got[..3], [DENY; 3], "{item} {groups:?}");
    }
}

#[test]
fn a_group_in_doubt_is_told_though_nobody_names_it() {
    let (got, problems) = by_groups(json!({}), &[group("g", "feed", json!(["10.0.0.0/8", "x"]))]);
    assert_eq!(errors(&problems)[0].path, "spec.externalCIDRs[1]");
    assert_eq!(got, [ALLOW; 4]);
}
