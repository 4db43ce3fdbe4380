//! Bad input: every kind of mistake is told with file, line, column, field and remedy, and costs itself alone.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use proptest::prelude::*;
use sluice_crd::{Loaded, Part, Severity, load_dir, load_files, load_str, load_value};
use std::path::Path;

const POLICY: &str = "\
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata:
  name: cart
  namespace: shop
spec:
  podSelector:
    matchLabels: { app: cart }
  ingress:
  - name: a
    from:
    - podSelector: { matchLabels: { app: frontend } }
    ports:
    - { port: 8080 }
    rules:
      http:
      - methods: [ GET ]
        path: { type: PathPrefix, value: /items }
  ingressDeny:
  - name: b
    rules:
      http:
      - path: { type: Exact, value: /admin }
";

/// The policy with one text replaced by another.
fn with(old: &str, new: &str) -> Loaded {
    assert!(POLICY.contains(old), "{old}");
    load_str("cart.yaml", &POLICY.replacen(old, new, 1))
}

/// The one error, displayed.
fn error(loaded: &Loaded) -> String {
    let errors: Vec<String> =
        loaded.problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}

#[test]
fn a_good_policy_has_no_problem() {
    let loaded = load_str("cart.yaml", POLICY);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let policy = &loaded.objects.policies[0];
    assert!(policy.sound && policy.clean);
    assert!(matches!(&policy.ingress, Part::Whole(rules) if rules.len() == 1));
}

#[test]
fn mistakes_are_told_with_their_place_and_remedy() {
    for (old, new, expected) in [
        (
            "  ingress:\n",
            "  ingres:\n",
            "cart.yaml:9:3: spec.ingres: unknown field `ingres`; the policy isolates what it selects and grants nothing: did you mean `ingress`? (L7NetworkPolicy/shop/cart)",
        ),
        (
            "    from:",
            "    form:",
            "cart.yaml:11:5: spec.ingress[0].form: unknown field `form`; the rule grants nothing: did you mean `from`? (L7NetworkPolicy/shop/cart)",
        ),
        (
            "methods:",
            "method:",
            "cart.yaml:17:9: spec.ingress[0].rules.http[0].method: unknown field `method`; the rule grants nothing: did you mean `methods`? (L7NetworkPolicy/shop/cart)",
        ),
        (
            "[ GET ]",
            "GET",
            "cart.yaml:17:9: spec.ingress[0].rules.http[0].methods: invalid type: string \"GET\", expected a sequence; the rule grants nothing: write a list, each item after a `-` (L7NetworkPolicy/shop/cart)",
        ),
        (
            "type: PathPrefix",
            "type: Prefix",
            "cart.yaml:18:17: spec.ingress[0].rules.http[0].path.type: unknown variant `Prefix`, expected one of `Exact`, `PathPrefix`, `RegularExpression`; the rule grants nothing: write one of these words (L7NetworkPolicy/shop/cart)",
        ),
        (
            "type: PathPrefix, ",
            "",
            "cart.yaml:18:9: spec.ingress[0].rules.http[0].path: missing field `type`; the rule grants nothing: add it (L7NetworkPolicy/shop/cart)",
        ),
        (
            "app: frontend",
            "app: yes",
            "cart.yaml:12:37: spec.ingress[0].from[0].podSelector.matchLabels.app: invalid type: boolean `true`, expected a string; the rule grants nothing: put it in quotes (L7NetworkPolicy/shop/cart)",
        ),
        (
            "  name: cart\n",
            "  name: cart\n  name: other\n",
            "cart.yaml:5:3: metadata.name: the key `name` is given twice, first on line 4: keep one of them (L7NetworkPolicy/shop/cart)",
        ),
        (
            "  namespace: shop\n",
            "",
            "cart.yaml:3:1: metadata.namespace: the policy names no namespace; it is not in force: write metadata.namespace (L7NetworkPolicy/cart)",
        ),
        (
            "kind: L7NetworkPolicy",
            "kind: L7NetworkPolcy",
            "cart.yaml:2:1: kind: policy.sluice.dev has no kind L7NetworkPolcy; the object is not in force: did you mean `L7NetworkPolicy`? (L7NetworkPolcy/shop/cart)",
        ),
        (
            "v1alpha1",
            "v1",
            "cart.yaml:1:1: apiVersion: policy.sluice.dev/v1 is no version of L7NetworkPolicy; the object is not in force: write policy.sluice.dev/v1alpha1 (L7NetworkPolicy/shop/cart)",
        ),
        (
            "  ingress:\n",
            "  isolation: Listed\n  ingress:\n",
            "cart.yaml:9:3: spec.isolation: unknown variant `Listed`, expected one of `Direction`, `ListedPorts`, `None`; Direction holds, which isolates every port: write one of these words (L7NetworkPolicy/shop/cart)",
        ),
        (
            "/admin",
            "/admin, x: 1",
            "cart.yaml:23:45: spec.ingressDeny[0].rules.http[0].path.x: unknown field `x`; the rule denies as if this did not limit it: remove it; known here: type, value (L7NetworkPolicy/shop/cart)",
        ),
    ] {
        assert_eq!(error(&with(old, new)), expected, "{new}");
    }
}

#[test]
fn a_doubtful_part_is_marked_and_the_others_are_whole() {
    let loaded = with("    from:", "    form:");
    let policy = &loaded.objects.policies[0];
    assert!(policy.sound && !policy.clean);
    let rules = policy.ingress.value().unwrap();
    assert!(!rules[0].sound);
    assert!(policy.ingress_deny.value().unwrap()[0].sound);

    let policy = &with("    matchLabels: { app: cart }", "    matchLabels: [ app ]").objects.policies[0];
    assert_eq!(policy.pod_selector, Part::Bad);
}

#[test]
fn a_duplicate_key_spoils_the_part_it_is_in() {
    let loaded = with("    ports:\n", "    ports: []\n    ports:\n");
    let rule = &loaded.objects.policies[0].ingress.value().unwrap()[0];
    assert_eq!(rule.ports, Part::Bad);
    assert!(rule.peers.is_sound());
}

#[test]
fn a_broken_document_leaves_the_others_in_force() {
    let text = format!("{POLICY}---\nspec: [\n---\n{}", POLICY.replace("name: cart", "name: second"));
    let loaded = load_str("cart.yaml", &text);
    assert_eq!(loaded.objects.policies.len(), 2);
    let error = error(&loaded);
    assert!(error.starts_with("cart.yaml:2"), "{error}");
    assert!(error.contains("the document is not YAML"), "{error}");
    assert_eq!(loaded.objects.policies[1].name.as_ref(), "second");
}

#[test]
fn a_policy_that_breaks_off_stays_in_force_on_the_closed_side() {
    let loaded = with("    ports:\n", "    ports: [ { port: 80 }\n");
    let told = error(&loaded);
    assert!(told.contains("until it is corrected the policy closes what it selects"), "{told}");
    assert!(told.ends_with("(L7NetworkPolicy/shop/cart)"), "{told}");
    let policy = &loaded.objects.policies[0];
    assert!(!policy.sound && !policy.clean);
    assert!(matches!(policy.pod_selector, Part::Whole(_)), "it stood before the break");
    assert_eq!((&policy.policy_types, policy.ingress_deny.is_sound()), (&Part::Bad, false));
    // Not even its selector is known: the whole namespace.
    let policy =
        &with("    matchLabels: { app: cart }\n", "    matchLabels: { app: cart\n").objects.policies[0];
    assert_eq!(policy.pod_selector, Part::Bad);
    // Not even its namespace is known: an error, and nothing else to do.
    assert!(with("  name: cart\n", "  name: { cart\n").objects.policies.is_empty());
}

#[test]
fn policies_of_other_kinds_are_told_and_other_objects_noted() {
    for (api, kind, severity) in [
        ("cilium.io/v1", "CiliumNetworkPolicy", Severity::Error),
        ("cilium.io/v2alpha1", "CiliumClusterwideNetworkPolicy", Severity::Error),
        ("policy.networking.k8s.io/v1alpha1", "ClusterNetworkPolicy", Severity::Error),
        ("cilium.io/v3", "CiliumCIDRGroup", Severity::Error),
        ("cilium.io/v2", "CiliumEnvoyConfig", Severity::Info),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", Severity::Error),
        ("crd.projectcalico.org/v1", "NetworkPolicy", Severity::Error),
        ("networking.k8s.io/v1beta1", "NetworkPolicy", Severity::Error),
        ("apps/v1", "Deployment", Severity::Info),
        ("v1", "ConfigMap", Severity::Info),
    ] {
        let loaded = load_str(
            "x.yaml",
            &format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{ name: a, namespace: b }}\n"),
        );
        assert_eq!(loaded.problems.len(), 1, "{kind}");
        assert_eq!(loaded.problems[0].severity, severity, "{kind}");
    }
    for text in ["kind: Pod\n", "apiVersion: v1\n", "hello\n", "[]\n", "a: 1\n"] {
        let loaded = load_str("x.yaml", text);
        assert_eq!(loaded.problems.len(), 1, "{text}");
        assert_eq!(loaded.problems[0].severity, Severity::Error, "{text}");
    }
}

#[test]
fn network_policy_fields_are_known_one_by_one() {
    let policy = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: a, namespace: b }
spec:
  podSelector: {}
  ingress:
  - from:
    - ipBlock: { cidr: 10.0.0.0/8, excpt: [10.1.0.0/16] }
  - ports: [ { port: 80, endport: 90 } ]
  - to: []
";
    let loaded = load_str("np.yaml", policy);
    let told: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(
        told[0].starts_with("np.yaml:8:36: spec.ingress[0].from[0].ipBlock.excpt: unknown field"),
        "{}",
        told[0]
    );
    assert!(told[0].contains("did you mean `except`?"));
    assert!(told[1].contains("did you mean `endPort`?"));
    assert!(told[2].contains("spec.ingress[2].to: unknown field `to`"), "{}", told[2]);
}

#[test]
fn an_object_given_twice_grants_once() {
    let text = format!("{POLICY}---\n{POLICY}");
    let loaded = load_str("cart.yaml", &text);
    assert!(error(&loaded).contains("given twice, first at cart.yaml:1"));
    let sound: Vec<bool> = loaded.objects.policies.iter().map(|policy| policy.sound).collect();
    assert_eq!(sound, [true, false]);
}

#[test]
fn lists_are_their_items() {
    let list = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: { name: a }
- apiVersion: v1
  kind: Pod
  metadata: { name: p, namespace: a, labels: { x: 5 } }
";
    let loaded = load_str("list.yaml", list);
    assert_eq!(loaded.objects.namespaces.len(), 1);
    // What can be read of the pod holds; the label cannot.
    assert_eq!(loaded.objects.pods[0].object.metadata.labels.as_ref().unwrap().len(), 0);
    assert!(
        error(&loaded).starts_with("list.yaml:9:48: metadata.labels.x: invalid type"),
        "{}",
        error(&loaded)
    );
    let typed = "{\"apiVersion\":\"v1\",\"kind\":\"PodList\",\"items\":[{\"metadata\":{\"name\":\"p\",\"namespace\":\"a\"}}]}";
    assert_eq!(load_str("list.json", typed).objects.pods.len(), 1);
}

#[test]
fn a_pod_does_not_lose_its_policies_over_an_annotation() {
    let pod = "\
apiVersion: v1
kind: Pod
metadata: { name: p, namespace: a, annotations: { x: 5 } }
spec: { containers: [ { name: c, image: 7, ports: [ { containerPort: 80, name: http } ] } ] }
status: { podIP: 10.0.0.1 }
";
    let loaded = load_str("pod.yaml", pod);
    assert!(error(&loaded).contains("the rest of the object holds"));
    let pod = &loaded.objects.pods[0].object;
    assert_eq!(pod.status.as_ref().unwrap().pod_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(pod.spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap()[0].container_port, 80);
}

#[test]
fn no_mistake_takes_a_namespace_out_of_the_dataplane() {
    for text in [
        "metadata: { name: shop, labels: { sluice.dev/dataplane: yes, team: web, n: 5 } }\n",
        "metadata: { name: shop, labels: 5 }\n",
        "metadata:\n  name: shop\n  labels:\n    team: web\n    sluice.dev/dataplane: [\n",
        "metadata:\n  name: shop\n  labels:\n    team: web\n  }\n",
    ] {
        let loaded = load_str("ns.yaml", &format!("apiVersion: v1\nkind: Namespace\n{text}"));
        let _ = error(&loaded);
        let labels = loaded.objects.namespaces[0].object.metadata.labels.clone().unwrap();
        // No word that this label has, so that it counts as the strictest.
        assert_eq!(labels.get("sluice.dev/dataplane").map(String::as_str), Some("unreadable"), "{text}");
        assert_eq!(labels.contains_key("team"), text.contains("team"), "{text}");
        assert!(!labels.contains_key("n"));
    }
}

#[test]
fn a_misspelt_label_section_is_warned_of_and_a_newer_field_noted() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: { name: p, namespace: a, lables: { x: y } }\nspec: { newField: 1, containers: [] }\n";
    let loaded = load_str("pod.yaml", text);
    let told: Vec<(Severity, String)> =
        loaded.problems.iter().map(|problem| (problem.severity, problem.to_string())).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter().any(|(s, t)| *s == Severity::Warning && t.contains("did you mean `labels`?")),
        "{told:?}"
    );
    assert!(told.iter().any(|(s, t)| *s == Severity::Info && t.contains("spec.newField")), "{told:?}");
    assert_eq!(loaded.objects.pods.len(), 1);
}

#[test]
fn directories_are_read_in_order_and_bad_files_cost_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("b.yml", POLICY.replace("name: cart", "name: second").as_bytes());
    write("a.yaml", POLICY.as_bytes());
    write("c.json", br#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}"#);
    write("d.yaml", b"a: \xff\n");
    write(".hidden.yaml", POLICY.as_bytes());
    write("notes.txt", b"nothing");
    std::os::unix::fs::symlink("nowhere.yaml", dir.path().join("e.yaml")).unwrap();
    std::fs::create_dir(dir.path().join("f.yaml")).unwrap();
    let loaded = load_dir(dir.path());
    let names: Vec<&str> = loaded.objects.policies.iter().map(|policy| &*policy.name).collect();
    assert_eq!(names, ["cart", "second"]);
    assert_eq!(loaded.objects.namespaces.len(), 1);
    let told: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].contains("d.yaml") && told[0].contains("not UTF-8"));
    assert!(told[1].contains("e.yaml") && told[1].contains("cannot be read"));
    assert!(
        load_dir(Path::new("/nowhere")).problems[0].to_string().contains("give a directory of manifests")
    );
    assert!(load_files(&[]).problems.is_empty());
}

#[test]
fn values_of_an_api_server_need_no_file() {
    let value = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "a", "namespace": "b"}, "spec": {"podSelectr": {}},
    });
    let loaded = load_value([&value]);
    assert!(error(&loaded).starts_with("spec.podSelectr: unknown field"), "{}", error(&loaded));
}

/// Edits that people and disks make.
fn edits() -> impl Strategy<Value = Vec<(usize, usize, String)>> {
    let text = prop_oneof![
        Just(String::new()),
        "[ -~]{1,4}",
        prop::sample::select(vec![
            "\n", "\t", "- ", "---\n", ": ", "{", "[", "&a ", "*a", "<<: ", "!!x ", "\"", "'", "#", "|", "? "
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec((0..POLICY.len(), 0..12_usize, text), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever stands in a file: it is read or told, and a good document after it is read.
    #[test]
    fn no_text_stops_the_reader(edits in edits()) {
        let mut text = POLICY.to_owned();
        for (at, len, new) in edits {
            let at = at.min(text.len());
            let end = (at + len).min(text.len());
            text.replace_range(at..end, &new);
        }
        let after = POLICY.replace("name: cart", "name: after");
        let loaded = load_str("x.yaml", &format!("{text}\n---\n{after}"));
        let found = loaded.objects.policies.iter().any(|policy| &*policy.name == "after");
        prop_assert!(found, "{text}\n{:?}", loaded.problems);
        let known = loaded.objects.policies.len() > 1 || !loaded.problems.is_empty();
        prop_assert!(known, "nothing is told of {text}");
    }
}
