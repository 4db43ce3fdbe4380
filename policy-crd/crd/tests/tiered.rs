//! The tiered kinds: what is read of them, and what each kind of mistake in them costs.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use sluice_crd::{Action, ClusterPeer, Loaded, Mode, Part, Severity, Tier, load_str};

const UPSTREAM: &str = "\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: { name: base }
spec:
  tier: Admin
  priority: 30
  subject:
    namespaces: { matchLabels: { team: web } }
  ingress:
  - name: from monitoring
    action: Accept
    from:
    - pods: { podSelector: { matchLabels: { app: prometheus } } }
    protocols:
    - tcp: { destinationPort: { range: { start: 8080, end: 8090 } } }
    - destinationNamedPort: metrics
  egress:
  - action: Deny
    to:
    - networks: [ 10.0.0.0/8 ]
    - nodes: {}
  - action: Pass
    to:
    - namespaces: {}
";

const OURS: &str = "\
apiVersion: policy.sluice.dev/v1alpha1
kind: ClusterL7NetworkPolicy
metadata: { name: health }
spec:
  tier: Baseline
  priority: 7
  mode: Audit
  subject:
    pods: { podSelector: { matchLabels: { app: cart } } }
  ingress:
  - name: probes
    action: Accept
    from:
    - ipBlock: { cidr: 10.0.0.0/8 }
    ports: [ { port: 8080 } ]
    rules:
      http:
      - methods: [ GET ]
";

fn errors(loaded: &Loaded) -> Vec<String> {
    let problems = loaded.problems.iter().filter(|p| p.severity == Severity::Error);
    problems.map(ToString::to_string).collect()
}

/// The text with one piece replaced by another.
fn with(text: &str, old: &str, new: &str) -> Loaded {
    assert!(text.contains(old), "{old}");
    load_str("x.yaml", &text.replacen(old, new, 1))
}

#[test]
fn upstream_is_read_whole() {
    let loaded = load_str("x.yaml", UPSTREAM);
    assert_eq!(errors(&loaded), [""; 0]);
    let policy = &loaded.objects.cluster_network_policies[0];
    assert!(policy.sound && policy.clean);
    assert_eq!((&policy.tier, &policy.priority), (&Part::Whole(Tier::Admin), &Part::Whole(30)));
    let rule = &policy.ingress.value().unwrap()[0];
    assert_eq!(rule.action, Part::Whole(Action::Accept));
    assert_eq!(rule.rule.name.as_deref(), Some("from monitoring"));
    assert_eq!(rule.rule.protocols.value().unwrap().len(), 2);
    let Part::Whole(ClusterPeer { networks: Some(networks), .. }) =
        &policy.egress.value().unwrap()[0].rule.peers.value().unwrap()[0]
    else {
        panic!("networks");
    };
    assert_eq!(networks, &["10.0.0.0/8"]);
}

#[test]
fn ours_is_read_whole() {
    let loaded = load_str("x.yaml", OURS);
    assert_eq!(errors(&loaded), [""; 0]);
    let policy = &loaded.objects.cluster_l7_policies[0];
    assert_eq!((policy.mode, &policy.tier), (Mode::Audit, &Part::Whole(Tier::Baseline)));
    let rule = &policy.ingress.value().unwrap()[0].rule;
    assert_eq!(rule.path, "spec.ingress[0]");
    assert!(rule.rules.value().unwrap().http.value().unwrap().len() == 1 && policy.egress.is_absent());
}

#[test]
fn mistakes_are_told_with_their_place_and_remedy() {
    for (text, old, new, expected) in [
        (UPSTREAM, "tier: Admin", "tier: admin", "x.yaml:5:3: spec.tier: unknown variant `admin`"),
        (UPSTREAM, "tier: Admin", "teir: Admin", "spec.teir: unknown field `teir`"),
        (
            UPSTREAM,
            "  priority: 30\n",
            "",
            "spec.priority: there is no priority; the policy denies before all",
        ),
        (UPSTREAM, "priority: 30", "priority: high", "spec.priority: invalid type: string"),
        (UPSTREAM, "action: Accept", "action: Allow", "spec.ingress[0].action: unknown variant `Allow`"),
        (UPSTREAM, "    action: Accept\n", "", "spec.ingress[0].action: the rule has no action"),
        (UPSTREAM, "protocols:", "ports:", "known here: name, action, from, protocols"),
        (UPSTREAM, "tcp:", "TCP:", "did you mean `tcp`?"),
        (UPSTREAM, "range:", "rnge:", "spec.ingress[0].protocols[0].tcp.destinationPort.rnge: unknown field"),
        (UPSTREAM, "name: base", "name: base, namespace: web", "the kind belongs to no namespace"),
        (UPSTREAM, "v1alpha2", "v1alpha1", "write policy.networking.k8s.io/v1alpha2"),
        (OURS, "    from:", "    form:", "did you mean `from`? (ClusterL7NetworkPolicy/health)"),
        (OURS, "  ingress:\n", "  ingressDeny:\n", "each with its action"),
        (OURS, "subject:", "podSelector: {}\n  subject:", "spec.podSelector: unknown field"),
        (OURS, "mode: Audit", "mode: audit", "spec.mode: unknown variant `audit`"),
        (
            OURS,
            "kind: ClusterL7NetworkPolicy",
            "kind: ClusterL7NetworkPolicies",
            "did you mean `ClusterL7NetworkPolicy`?",
        ),
    ] {
        let told = errors(&with(text, old, new));
        assert!(told.iter().any(|told| told.contains(expected)), "{new}: {told:#?}");
    }
}

#[test]
fn doubt_is_kept_where_it_is() {
    let policy = |old: &str, new: &str| with(UPSTREAM, old, new).objects.cluster_network_policies.remove(0);
    let doubted = policy("tier: Admin", "tier: admin");
    assert!(doubted.tier == Part::Bad && doubted.sound && !doubted.clean);
    assert_eq!(
        policy("    namespaces: {", "    namespaces: [").priority,
        Part::Whole(30),
        "before the break"
    );
    assert!(!policy("priority: 30", "priority: 30\n  more: 1").sound);
    let doubted = policy("action: Accept", "action: Allow");
    let rules = doubted.ingress.value().unwrap();
    assert!(doubted.sound && rules[0].action == Part::Bad && rules[0].rule.sound);
    let doubted = policy("    from:", "    form:");
    assert!(!doubted.ingress.value().unwrap()[0].rule.sound && doubted.egress.is_sound());
    // No list of rules, and rules under a name that nobody knows: nobody knows what was to be denied.
    assert!(matches!(policy("  egress:\n  - action", "  egress:\n    action").egress, Part::Bad));
    assert!(matches!(policy("  egress:\n", "  egres:\n").egress, Part::Bad));
    assert!(matches!(policy("  egress:\n", "  egressRules:\n").egress, Part::Bad));
    assert!(matches!(
        policy("  - action: Deny", "  - Deny\n  - action: Deny").egress.value().unwrap()[0].action,
        Part::Bad
    ));
    let bare = with(UPSTREAM, &UPSTREAM[UPSTREAM.find("spec:").unwrap()..], "")
        .objects
        .cluster_network_policies
        .remove(0);
    assert!(
        !bare.sound
            && !bare.subject.is_sound()
            && matches!((&bare.ingress, &bare.egress), (Part::Bad, Part::Bad))
    );
}

#[test]
fn a_break_in_the_text_closes_the_policy() {
    let loaded = with(UPSTREAM, "action: Deny", "action: [ Deny");
    let policy = &loaded.objects.cluster_network_policies[0];
    assert!(!policy.sound && !policy.clean && matches!(policy.tier, Part::Whole(Tier::Admin)));
    assert!(matches!((&policy.ingress, &policy.egress), (Part::Bad, Part::Bad)), "what follows nobody knows");
    // Not even its name is known: its kind is.
    let loaded = with(UPSTREAM, "{ name: base }", "{ name: base");
    assert_eq!(loaded.objects.cluster_network_policies[0].subject, Part::Bad);
}

#[test]
fn given_twice_the_second_accepts_nothing() {
    let loaded = load_str("x.yaml", &format!("{OURS}---\n{OURS}"));
    assert!(errors(&loaded)[0].contains("given twice, first at x.yaml:1"), "{:?}", errors(&loaded));
    let sound: Vec<bool> = loaded.objects.cluster_l7_policies.iter().map(|policy| policy.sound).collect();
    assert_eq!(sound, [true, false]);
}
