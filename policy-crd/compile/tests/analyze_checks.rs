//! What the checks say, and what they do not say, beyond the examples of their pages.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use sluice_compile::Rollout;
use sluice_compile::analyze::{Finding, analyze};
use sluice_crd::load_str;

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Namespace
metadata: { name: ops, labels: { team: ops } }
---
apiVersion: v1
kind: Pod
metadata: { name: cart-0, namespace: shop, labels: { app: cart, shard: s1 } }
spec: { containers: [ { name: c, ports: [ { name: http, containerPort: 8080 }, { name: dns, containerPort: 53, protocol: UDP } ] } ] }
status: { podIP: 10.1.0.7 }
---
apiVersion: v1
kind: Pod
metadata: { name: web-0, namespace: shop, labels: { app: web } }
spec: { containers: [ { name: c } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: prometheus-0, namespace: ops, labels: { app: prometheus } }
spec: { containers: [ { name: c, ports: [ { name: metrics, containerPort: 9090 } ] } ] }
---
";

fn findings(text: &str) -> Vec<Finding> {
    analyze(&load_str("t.yaml", text), Rollout::AsIfEnforced).findings
}

/// What is told as `CODE path`, without what is merely worth knowing.
fn told(text: &str) -> Vec<String> {
    let shown = |finding: &Finding| format!("{} {}", finding.code.id, finding.problem.path);
    findings(text).iter().filter(|finding| finding.code.id != "SLU0010").map(shown).collect()
}

fn l7(spec: &str) -> String {
    let spec = spec.trim().replace('\n', "\n  ");
    format!(
        "apiVersion: policy.sluice.dev/v1alpha1\nkind: L7NetworkPolicy\n\
         metadata: {{ name: p, namespace: shop }}\nspec:\n  podSelector: {{ matchLabels: {{ app: cart }} }}\n  {spec}\n"
    )
}

fn with_pods(spec: &str) -> Vec<String> {
    told(&format!("{PODS}{}", l7(spec)))
}

#[test]
fn selectors() {
    let one = |selector: &str| with_pods(&format!("ingress:\n- from: [ {selector} ]"));
    let at = "spec.ingress[0].from[0].podSelector";
    assert!(one("{ podSelector: { matchLabels: { app: web } } }").is_empty());
    // Labels that exist, and in another namespace.
    let elsewhere = one("{ podSelector: { matchLabels: { app: prometheus } } }");
    assert_eq!(elsewhere, [format!("SLU0102 {at}")]);
    let text = format!(
        "{PODS}{}",
        l7("ingress:\n- from: [ { podSelector: { matchLabels: { app: prometheus } } } ]")
    );
    assert!(findings(&text)[0].problem.remedy.contains("namespaceSelector"));
    assert_eq!(
        one("{ podSelector: { matchLabels: { app: webb } } }"),
        [format!("SLU0103 {at}.matchLabels.app")]
    );
    assert_eq!(
        one("{ podSelector: { matchLabels: { aap: web } } }"),
        [format!("SLU0103 {at}.matchLabels.aap")]
    );
    // What differs by a digit is another shard, and no mistake of typing.
    assert_eq!(one("{ podSelector: { matchLabels: { shard: s2 } } }"), [format!("SLU0102 {at}")]);
    assert_eq!(
        one("{ namespaceSelector: { matchLabels: { team: opps } } }"),
        ["SLU0103 spec.ingress[0].from[0].namespaceSelector.matchLabels.team"]
    );
    assert_eq!(
        one("{ namespaceSelector: { matchLabels: { team: billing } } }"),
        ["SLU0102 spec.ingress[0].from[0].namespaceSelector"]
    );
    // A namespace that is named and not given may well exist.
    assert!(
        one("{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: kube-system } } }")
            .is_empty()
    );
    assert!(one("{ podSelector: {} }").is_empty());
    // Without pods nothing is known of them.
    assert!(told(&l7("ingress:\n- from: [ { podSelector: { matchLabels: { app: nobody } } } ]")).is_empty());
}

#[test]
fn ports() {
    let ingress = |ports: &str| with_pods(&format!("ingress:\n- ports: [ {ports} ]"));
    assert!(ingress("{ port: http }").is_empty());
    assert_eq!(ingress("{ port: htpp }"), ["SLU0201 spec.ingress[0].ports[0].port"]);
    assert_eq!(ingress("{ port: dns }"), ["SLU0201 spec.ingress[0].ports[0].port"], "it is a port of UDP");
    assert!(ingress("{ port: dns, protocol: UDP }").is_empty());
    let egress = |to: &str| {
        with_pods(&format!(
            "policyTypes: [ Egress ]\negress:\n- {to}\n- ports: [ {{ port: 53, protocol: UDP }} ]"
        ))
    };
    let ops = "to: [ { namespaceSelector: { matchLabels: { team: ops } } } ]";
    assert!(egress(&format!("{ops}\n  ports: [ {{ port: metrics }} ]")).is_empty());
    assert_eq!(
        egress(&format!("{ops}\n  ports: [ {{ port: http }} ]")),
        ["SLU0201 spec.egress[0].ports[0].port"]
    );
    let conditional = |port: &str| {
        with_pods(&format!(
            "ingress:\n- ports: [ {port} ]\n  rules: {{ http: [ {{ path: {{ type: PathPrefix, value: /a }} }} ] }}"
        ))
    };
    assert!(conditional("{ port: 8080 }").is_empty());
    assert_eq!(conditional("{ port: 8443 }"), ["SLU0203 spec.ingress[0].ports[0]"]);
    assert_eq!(conditional("{ port: 53, protocol: UDP }"), ["SLU0202 spec.ingress[0].ports[0].protocol"]);
}

#[test]
fn address_blocks() {
    let block = |cidr: &str| with_pods(&format!("ingress:\n- from: [ {{ ipBlock: {{ cidr: {cidr} }} }} ]"));
    assert_eq!(block("10.1.0.7/32"), ["SLU0105 spec.ingress[0].from[0].ipBlock.cidr"]);
    for wide in ["10.0.0.0/8", "0.0.0.0/0", "203.0.113.7/32"] {
        assert!(block(wide).is_empty(), "{wide}");
    }
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: { name: n }\nspec: { podCIDRs: [ 10.2.0.0/16 ] }\n---\n";
    let cilium = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: { name: p, namespace: shop }\n\
        spec: { endpointSelector: {}, ingress: [ { fromCIDR: [ 10.2.3.0/24 ] } ] }\n";
    let found = findings(&format!("{node}{cilium}"));
    let block = found.iter().find(|finding| finding.code.id == "SLU0105").unwrap();
    assert_eq!(block.problem.severity, sluice_crd::Severity::Warning);
}

#[test]
fn a_deny_of_get_that_spares_head_is_a_warning() {
    let text = l7(
        "ingress: [ {} ]\ningressDeny:\n- ports: [ { port: 80 } ]\n  rules: { http: [ { methods: [ GET ] } ] }",
    );
    let found = findings(&text);
    let head = found.iter().find(|finding| finding.code.id == "SLU0301").unwrap();
    assert_eq!(head.problem.severity, sluice_crd::Severity::Warning);
}

#[test]
fn an_alternative_is_told_by_its_place() {
    let text = l7("ingress:
- from: [ { podSelector: { matchLabels: { app: web } } } ]
  ports: [ { port: 8080 } ]
  rules: { http: [ { path: { type: PathPrefix, value: /a } }, { path: { type: Exact, value: /admin/x } } ] }
ingressDeny:
- ports: [ { port: 8080 } ]
  rules: { http: [ { path: { type: PathPrefix, value: /admin } } ] }");
    assert_eq!(told(&text), ["SLU0402 spec.ingress[0].rules.http[1]"]);
    let found = findings(&text);
    let related = &found.iter().find(|finding| finding.code.id == "SLU0402").unwrap().related;
    assert_eq!((related.len(), related[0].place.line), (1, 11), "{related:?}");
}

#[test]
fn labels_that_meet_only_today_are_no_overlap() {
    // Every pod of today has both labels; the policies do not say so.
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: { name: w, namespace: shop, labels: { app: web, team: red } }\n\
        spec: { containers: [ { name: c } ] }\n---\n";
    let deny = |label: &str| {
        l7(&format!(
            "ingress:\n- from: [ {{ podSelector: {{ matchLabels: {{ app: web }} }} }} ]\n\
             ingressDeny:\n- from: [ {{ podSelector: {{ matchLabels: {{ {label} }} }} }} ]"
        ))
    };
    let told = |label: &str| told(&format!("{PODS}{pod}{}", deny(label)));
    assert!(told("team: red").is_empty());
    assert_eq!(told("app: web"), ["SLU0402 spec.ingress[0]"]);
}

#[test]
fn dns_is_asked_of_both_layers() {
    let both = |l7_dns: &str| {
        let network = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: k, namespace: shop }\n\
            spec: { podSelector: { matchLabels: { app: cart } }, policyTypes: [ Egress ], egress: [ {} ] }\n---\n";
        let spec = format!(
            "policyTypes: [ Egress ]\negress:\n- to: [ {{ ipBlock: {{ cidr: 203.0.113.0/24 }} }} ]\n  ports: [ {{ port: 443 }} ]\n{l7_dns}"
        );
        told(&format!("{PODS}{network}{}", l7(&spec)))
    };
    assert_eq!(both(""), ["SLU0501 spec.egress"]);
    assert!(both("- ports: [ { port: 53, protocol: UDP } ]").is_empty());
    // A policy that closes egress altogether means it.
    assert!(with_pods("policyTypes: [ Egress ]").is_empty());
}

#[test]
fn modes_are_kept_apart() {
    let policies = |mode: &str| {
        let audited = l7(&format!(
            "mode: {mode}\ningressDeny:\n- from: [ {{ podSelector: {{ matchLabels: {{ app: web }} }} }} ]\ningress: [ {{}} ]"
        ));
        let enforced = l7("ingress:\n- from: [ { podSelector: { matchLabels: { app: web } } } ]")
            .replace("name: p,", "name: q,");
        told(&format!("{audited}---\n{enforced}"))
    };
    assert!(policies("Enforce").iter().any(|told| told == "SLU0402 spec.ingress[0]"));
    // What is audited decides nothing.
    assert!(policies("Audit").is_empty(), "{:?}", policies("Audit"));
}

#[test]
fn nothing_at_all_is_no_finding() {
    assert!(findings("").is_empty());
    assert!(findings(PODS).is_empty());
    assert!(findings("# only a comment\n").is_empty());
}
