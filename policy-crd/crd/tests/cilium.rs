//! Cilium's kinds are read field by field, and what cannot be read is told where it stands.

use sluice_crd::{CiliumKind, CiliumPolicyObject, Loaded, Part, Severity, load_str};

const POLICY: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: cart, namespace: shop }
spec:
  description: what it is for
  endpointSelector: { matchLabels: { app: cart } }
  enableDefaultDeny: { egress: false }
  ingress:
  - fromEndpoints:
    - matchLabels: { k8s:app: frontend }
    toPorts:
    - ports: [ { port: \"8080\", protocol: TCP } ]
      rules:
        http:
        - { method: GET, path: /a, host: b, headers: [ 'X-A: b' ], headerMatches: [ { name: x, value: y } ] }
  ingressDeny:
  - fromCIDRSet: [ { cidr: 10.0.0.0/8, except: [10.1.0.0/16] }, { cidrGroupRef: g } ]
  egress:
  - toServices: [ { k8sService: { serviceName: a, namespace: b } } ]
  - toFQDNs: [ { matchName: a.example }, { matchPattern: '*.example' } ]
    toPorts:
    - ports: [ { port: \"443\" } ]
      serverNames: [a.example]
      terminatingTLS: { secret: { name: a, namespace: b }, trustedCA: c }
      listener: { envoyConfig: { kind: CiliumEnvoyConfig, name: a }, name: b, priority: 1 }
  - icmps: [ { fields: [ { type: 8 }, { type: EchoRequest, family: IPv6 } ] } ]
    authentication: { mode: required }
";

fn read(text: &str) -> Loaded {
    let mut loaded = load_str("a.yaml", text);
    // Said of every policy of a kind that is not judged by yet.
    loaded.problems.retain(|problem| problem.path != "kind");
    loaded
}

fn with(from: &str, to: &str) -> Loaded {
    assert!(POLICY.contains(from), "{from}");
    read(&POLICY.replacen(from, to, 1))
}

fn policy(loaded: &Loaded) -> &CiliumPolicyObject {
    &loaded.objects.cilium[0]
}

#[track_caller]
fn told(loaded: &Loaded, severity: Severity, path: &str, reason: &str) {
    let found = loaded.problems.iter().any(|problem| {
        problem.severity == severity
            && problem.path == path
            && format!("{}: {}", problem.reason, problem.remedy).contains(reason)
    });
    assert!(found, "{path}: {reason}\n{:#?}", loaded.problems);
}

#[test]
fn every_field_is_read() {
    let loaded = read(POLICY);
    assert!(loaded.problems.is_empty(), "{:#?}", loaded.problems);
    let policy = policy(&loaded);
    assert!(policy.sound && policy.clean);
    assert_eq!((policy.kind, &*policy.namespace, policy.specs.len()), (CiliumKind::Namespaced, "shop", 1));
    let spec = &policy.specs[0];
    assert_eq!(spec.enable_default_deny.value().and_then(|given| given.egress), Some(false));
    let Part::Whole(ingress) = &spec.ingress else { panic!("{:?}", spec.ingress) };
    let ports = ingress[0].to_ports.value().map(|all| &all[0]).expect("toPorts");
    let http = ports.rules.value().and_then(|rules| rules.http.value()).expect("http");
    assert_eq!(http[0].value().and_then(|rule| rule.host.as_deref()), Some("b"));
    let Part::Whole(egress) = &spec.egress else { panic!("{:?}", spec.egress) };
    assert_eq!(egress[0].peers.services.value().map(Vec::len), Some(1));
    assert_eq!(egress[1].peers.fqdns.value().map(Vec::len), Some(2));
    assert!(egress[1].to_ports.value().is_some_and(|all| !all[0].listener.is_absent()));
    assert!(!egress[2].authentication.is_absent() && egress[2].icmps.value().is_some());
}

#[test]
fn an_unknown_field_costs_its_own_part_and_says_what_was_meant() {
    let loaded = with(
        "    toPorts:\n    - ports: [ { port: \"8080\"",
        "    toPort: []\n    toPorts:\n    - ports: [ { port: \"8080\"",
    );
    told(&loaded, Severity::Error, "spec.ingress[0].toPort", "did you mean `toPorts`?");
    assert!(policy(&loaded).sound && !policy(&loaded).clean);
    assert!(policy(&loaded).specs[0].ingress.value().is_some_and(|rules| !rules[0].sound));
    let loaded = with("fromCIDRSet: [ { cidr:", "fromCIDRSet: [ { cdir:");
    told(&loaded, Severity::Error, "spec.ingressDeny[0].fromCIDRSet[0].cdir", "did you mean `cidr`?");
    let loaded = with("        - { method: GET, path", "        - { metod: GET, path");
    told(
        &loaded,
        Severity::Error,
        "spec.ingress[0].toPorts[0].rules.http[0].metod",
        "did you mean `method`?",
    );
    let loaded = with("  description: what", "  podSelector: {}\n  description: what");
    told(&loaded, Severity::Error, "spec.podSelector", "did you mean `endpointSelector`?");
    assert!(!policy(&loaded).specs[0].sound);
    let loaded = with("metadata: {", "stray: 1\nmetadata: {");
    assert!(!policy(&loaded).sound);
}

#[test]
fn a_misspelt_deny_denies_everything() {
    let loaded = with("  ingressDeny:", "  ingressDny:");
    told(&loaded, Severity::Error, "spec.ingressDny", "everything is denied here");
    assert_eq!(policy(&loaded).specs[0].ingress_deny.value().map(Vec::len), None);
    assert!(!policy(&loaded).specs[0].ingress_deny.is_absent());
}

#[test]
fn conditions_of_a_deny_are_unknown_fields() {
    let loaded = with(
        "  egress:\n",
        "  egressDeny:\n  - toPorts: [ { ports: [ { port: \"80\" } ], rules: { http: [{}] } } ]\n  egress:\n",
    );
    told(
        &loaded,
        Severity::Error,
        "spec.egressDeny[0].toPorts[0].rules",
        "denies as if this did not limit it",
    );
    let loaded = with("  egress:\n", "  egressDeny:\n  - toFQDNs: [ { matchName: a } ]\n  egress:\n");
    told(&loaded, Severity::Error, "spec.egressDeny[0].toFQDNs", "denies as if this did not limit it");
}

#[test]
fn a_value_of_the_wrong_type_is_bad_alone() {
    let loaded = with("port: \"8080\"", "port: 8080");
    told(&loaded, Severity::Error, "spec.ingress[0].toPorts[0].ports[0].port", "put it in quotes");
    let loaded = with("- matchLabels: { k8s:app: frontend }", "-");
    told(&loaded, Severity::Error, "spec.ingress[0].fromEndpoints[0]", "an empty item");
    let loaded = with("  endpointSelector: { matchLabels: { app: cart } }", "  endpointSelector: [a]");
    assert_eq!(policy(&loaded).specs[0].endpoint_selector, Part::Bad);
    let loaded = with("enableDefaultDeny: { egress: false }", "enableDefaultDeny: [true, false]");
    assert_eq!(policy(&loaded).specs[0].enable_default_deny, Part::Bad);
}

#[test]
fn a_field_without_a_value_is_told() {
    let loaded = with("    - matchLabels: { k8s:app: frontend }\n", "");
    told(&loaded, Severity::Warning, "spec.ingress[0].fromEndpoints", "counts as not written");
    assert!(policy(&loaded).clean, "a warning");
}

#[test]
fn without_a_spec_nothing_is_known() {
    for text in ["spec: 1\n", "specs: 1\n", "specs: [1]\n", "specs: []\n", ""] {
        let (head, _) = POLICY.split_once("spec:").expect("has one");
        let loaded = read(&format!("{head}{text}"));
        let spec = &policy(&loaded).specs[0];
        assert!(!policy(&loaded).clean && !spec.sound, "{text}");
        assert_eq!(spec.endpoint_selector, Part::Bad, "{text}");
        assert!(!spec.egress_deny.is_sound(), "{text}");
    }
}

#[test]
fn spec_and_specs_are_all_read() {
    let loaded = read(&format!("{POLICY}specs:\n- endpointSelector: {{}}\n  ingress: [{{}}]\n"));
    let paths: Vec<_> = policy(&loaded).specs.iter().map(|spec| spec.path.as_str()).collect();
    assert_eq!(paths, ["spec", "specs[0]"]);
    let rules = policy(&loaded).specs[1].ingress.value().expect("read");
    assert_eq!(rules[0].path, "specs[0].ingress[0]");
    assert!(loaded.problems.is_empty(), "{:#?}", loaded.problems);
}

#[test]
fn a_namespace_is_of_one_kind_alone() {
    let loaded = with("{ name: cart, namespace: shop }", "{ name: cart }");
    told(&loaded, Severity::Error, "metadata.namespace", "names no namespace");
    assert!(loaded.objects.cilium.is_empty());
    let wide = POLICY.replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy");
    let loaded = read(&wide);
    told(&loaded, Severity::Error, "metadata.namespace", "belongs to no namespace");
    assert!(!policy(&loaded).sound);
    let loaded = read(&wide.replace(", namespace: shop", ""));
    assert!(policy(&loaded).clean && policy(&loaded).namespace.is_empty());
}

#[test]
fn a_policy_given_twice_and_one_that_breaks_off_are_closed() {
    let loaded = read(&format!("{POLICY}---\n{POLICY}"));
    assert!(loaded.objects.cilium[0].sound && !loaded.objects.cilium[1].sound);
    let (head, _) = POLICY.split_once("  egress:").expect("has one");
    let loaded = read(&format!("{head}  egress: [ {{\n"));
    let policy = policy(&loaded);
    assert!(!policy.sound && !policy.clean);
    assert!(matches!(policy.specs[0].endpoint_selector, Part::Whole(_)), "it stood before the break");
    assert!(!policy.specs[0].egress_deny.is_sound(), "what would have followed nobody knows");
}

#[test]
fn a_template_is_told_where_it_stands() {
    // Bare braces are YAML of their own; nobody can know what would have stood there.
    let loaded = with("name: cart, namespace: shop", "name: cart, namespace: shop, labels: {{.Labels}}");
    assert!(loaded.problems.iter().any(|problem| problem.severity == Severity::Error), "{loaded:?}");
    let loaded = with("app: cart }", "app: {{.App}} }");
    assert!(loaded.problems.iter().any(|problem| problem.path.starts_with("spec.endpointSelector")));
    assert!(!policy(&loaded).specs[0].endpoint_selector.is_sound());
}

const GROUP: &str = "\
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: { name: g, labels: { a: b } }
spec: { externalCIDRs: [ 10.0.0.0/8, 192.0.2.0/24 ] }
";

#[test]
fn groups_of_cidrs_are_read_in_both_versions() {
    for text in [GROUP.to_owned(), GROUP.replace("/v2\n", "/v2alpha1\n")] {
        let loaded = read(&text);
        assert!(loaded.problems.is_empty(), "{:#?}", loaded.problems);
        let group = &loaded.objects.cidr_groups[0];
        assert!(group.sound && &*group.name == "g");
        assert_eq!(group.external_cidrs.value().map(Vec::len), Some(2));
        assert_eq!(group.labels.as_ref().and_then(|labels| labels.get("a")).map(String::as_str), Some("b"));
    }
}

#[test]
fn a_doubtful_group_may_be_more_than_what_was_read() {
    let loaded = read(&format!("{GROUP}---\n{GROUP}"));
    assert!(loaded.objects.cidr_groups.iter().all(|group| !group.sound));
    let loaded = read(&GROUP.replace("externalCIDRs", "externalCidr"));
    told(&loaded, Severity::Error, "spec.externalCidr", "did you mean `externalCIDRs`?");
    assert!(!loaded.objects.cidr_groups[0].sound);
    let loaded = read(&GROUP.replace("a: b", "a: [b]"));
    assert!(loaded.objects.cidr_groups[0].labels.is_none());
    let loaded = read(&GROUP.replace("192.0.2.0/24 ] }", "192.0.2.0/24"));
    assert!(loaded.objects.cidr_groups.iter().all(|group| !group.sound), "{loaded:?}");
}
