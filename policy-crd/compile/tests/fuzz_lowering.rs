//! Lowering never panics and decides something for every object: real manifests of every kind, broken at random, as
//! values and as text.
//!
//! The manifests are those under examples/, those that the generators make, and the corpora's where they lie beside
//! the project. `PROPTEST_CASES` raises the number of cases.

mod common;
mod generate;
mod reference;

use common::corpus::folder;
use generate::{cilium, l7, network, tiers, world};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngSeed, TestCaseError};
use serde_json::{Map, Value, json};
use sluice_compile::Rollout;
use sluice_compile::query::Cluster;
use sluice_crd::{Loaded, Problem, Severity};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

/// Cases where `PROPTEST_CASES` says nothing: some seconds for each property.
const CASES: u32 = 1_500;
/// Where the cases come from when nobody asks for more.
const SEED: u64 = 1;
/// Most breaks of one manifest.
const BREAKS: usize = 4;
/// A manifest of more bytes than this is cut into none: the corpora have none.
const LARGEST: u64 = 1 << 20;

fn config() -> ProptestConfig {
    let said = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let rng_seed = if said.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    ProptestConfig {
        cases: said.unwrap_or(CASES),
        failure_persistence: None,
        rng_seed,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

/// The kinds that are policies, with their groups.
const POLICIES: [(&str, &str); 6] = [
    ("L7NetworkPolicy", "policy.sluice.dev/"),
    ("ClusterL7NetworkPolicy", "policy.sluice.dev/"),
    ("NetworkPolicy", "networking.k8s.io/"),
    ("CiliumNetworkPolicy", "cilium.io/"),
    ("CiliumClusterwideNetworkPolicy", "cilium.io/"),
    ("ClusterNetworkPolicy", "policy.networking.k8s.io/"),
];

fn kind_of(object: &Value) -> Option<&'static str> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let policy =
        POLICIES.iter().find(|(kind, group)| text("kind") == *kind && text("apiVersion").starts_with(group));
    policy.map(|(kind, _)| *kind)
}

/// The texts of every manifest there is.
static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut texts = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples"), &mut texts);
    assert!(texts.len() > 5, "the examples are there");
    read(&folder("cilium"), &mut texts);
    read(&folder("cluster-network-policy"), &mut texts);
    texts
});

fn read(folder: &Path, out: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        let small = entry.metadata().is_ok_and(|metadata| metadata.len() <= LARGEST);
        if path.is_dir() {
            read(&path, out);
        } else if small && path.extension().is_some_and(|extension| extension == "yaml") {
            out.extend(std::fs::read_to_string(&path));
        }
    }
}

/// Every policy among them that is YAML as it stands.
static OBJECTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let documents = TEXTS.iter().filter_map(|text| serde_saphyr::from_multiple::<Value>(text).ok()).flatten();
    let mut objects: Vec<Value> = documents.filter(|object| kind_of(object).is_some()).collect();
    let cases =
        std::fs::read_to_string(folder("networkpolicy/cases.json")).unwrap_or_else(|_| "[]".to_owned());
    let cases: Value = serde_json::from_str(&cases).expect("the corpus is JSON");
    let steps = cases
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|case| case["steps"].as_array().into_iter().flatten());
    for policy in steps.flat_map(|step| step["policies"].as_array().into_iter().flatten()) {
        let mut policy = policy.clone();
        policy["apiVersion"] = "networking.k8s.io/v1".into();
        policy["kind"] = "NetworkPolicy".into();
        objects.push(policy);
    }
    let kinds: BTreeSet<&str> = objects.iter().filter_map(kind_of).collect();
    assert!(kinds.contains("L7NetworkPolicy") && kinds.contains("ClusterL7NetworkPolicy"), "{kinds:?}");
    objects
});

/// Values that no field expects, or that many do.
fn odd() -> impl Strategy<Value = Value> {
    let texts = select(vec![
        "",
        " ",
        "*",
        "/",
        "//",
        "TCP",
        "UDP",
        "ANY",
        "80",
        "0",
        "-1",
        "65536",
        "http",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/33",
        "10.0.0.1",
        "In",
        "Exists",
        "Enforce",
        "enforce",
        "Deny",
        "all",
        "world",
        "((",
        "[a-z",
        "a{9999}",
        "\0",
        "é",
        "{{ .X }}",
        "kubernetes.io/metadata.name",
        "a/b/c",
        "*.example.com",
        "%2e%2e",
        "\u{202e}x",
    ]);
    prop_oneof![
        4 => texts.prop_map(Value::from),
        2 => select(vec![0, 1, -1, 80, 65535, 65536, i64::MAX, i64::MIN]).prop_map(Value::from),
        1 => select(vec![0.5, -0.0, 1e300]).prop_map(Value::from),
        2 => any::<bool>().prop_map(Value::from),
        2 => Just(Value::Null),
        2 => Just(json!({})),
        2 => Just(json!([])),
        1 => Just(json!([{}])),
        1 => Just(json!([null, [], {}])),
        1 => Just(json!({"": null, "x": {"y": []}})),
        1 => (1..9_000_usize).prop_map(|many| "x".repeat(many).into()),
        1 => (2..600_usize).prop_map(|many| Value::from(vec![json!({}); many])),
    ]
}

/// One break of a value.
#[derive(Clone, Debug)]
enum Break {
    Delete(Index),
    Replace(Index, Value),
    /// The whole, or the item, as often.
    Repeat(Index, usize),
    Rename(Index, &'static str),
    /// One place gets what stands in another.
    Copy(Index, Index),
    Wrap(Index, bool),
    Insert(Index, &'static str, Value),
}

fn breaks() -> impl Strategy<Value = Vec<Break>> {
    let at = any::<Index>;
    let names = || {
        select(vec![
            "x",
            "ports",
            "from",
            "to",
            "rules",
            "http",
            "path",
            "podSelector",
            "namespaceSelector",
            "ipBlock",
            "entities",
            "serviceAccounts",
            "toFQDNs",
            "toGroups",
            "fromRequires",
            "nodeSelector",
            "endpointSelector",
            "specs",
            "spec",
            "enableDefaultDeny",
            "icmps",
            "isolation",
            "mode",
            "tier",
            "priority",
            "subject",
            "action",
            "endPort",
            "matchExpressions",
            "cidrGroupRef",
            "tls",
            "serverNames",
            "upgrades",
            "authentication",
            "status",
        ])
    };
    let one = prop_oneof![
        3 => at().prop_map(Break::Delete),
        5 => (at(), odd()).prop_map(|(at, value)| Break::Replace(at, value)),
        2 => (at(), 2..70_usize).prop_map(|(at, many)| Break::Repeat(at, many)),
        2 => (at(), names()).prop_map(|(at, name)| Break::Rename(at, name)),
        3 => (at(), at()).prop_map(|(to, from)| Break::Copy(to, from)),
        1 => (at(), any::<bool>()).prop_map(|(at, list)| Break::Wrap(at, list)),
        2 => (at(), names(), odd()).prop_map(|(at, name, value)| Break::Insert(at, name, value)),
    ];
    prop::collection::vec(one, 1..=BREAKS)
}

/// JSON pointers to every place in a value but the whole.
fn places(value: &Value, path: &str, out: &mut Vec<String>) {
    let mut visit = |key: String, inner: &Value| {
        let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        places(inner, &path, out);
        out.push(path);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| visit(key.clone(), inner)),
        Value::Array(items) => items.iter().enumerate().for_each(|(at, inner)| visit(at.to_string(), inner)),
        _ => {}
    }
}

impl Break {
    fn apply(&self, object: &mut Value) {
        let mut all = Vec::new();
        places(object, "", &mut all);
        if all.is_empty() {
            return;
        }
        let place = |index: &Index| all[index.index(all.len())].clone();
        match self {
            Self::Delete(at) => {
                edit_parent(
                    object,
                    &place(at),
                    |fields, key| {
                        fields.remove(key);
                    },
                    |items, at| {
                        items.remove(at);
                    },
                );
            }
            Self::Rename(at, name) => edit_parent(
                object,
                &place(at),
                |fields, key| {
                    let value = fields.remove(key).unwrap_or_default();
                    fields.insert((*name).to_owned(), value);
                },
                |_, _| {},
            ),
            Self::Repeat(at, many) => edit_parent(
                object,
                &place(at),
                |fields, key| {
                    if let Some(value) = fields.get_mut(key) {
                        *value = vec![value.clone(); *many].into();
                    }
                },
                |items, at| {
                    let item = items[at].clone();
                    items.extend(vec![item; *many]);
                },
            ),
            Self::Replace(at, value) => put(object, &place(at), value.clone()),
            Self::Copy(to, from) => {
                let value = object.pointer(&place(from)).cloned().unwrap_or_default();
                put(object, &place(to), value);
            }
            Self::Wrap(at, list) => {
                let value = object.pointer(&place(at)).cloned().unwrap_or_default();
                put(object, &place(at), if *list { json!([value]) } else { json!({"x": value}) });
            }
            Self::Insert(at, name, value) => {
                if let Some(Value::Object(fields)) = object.pointer_mut(&place(at)) {
                    fields.insert((*name).to_owned(), value.clone());
                }
            }
        }
    }
}

fn put(object: &mut Value, path: &str, value: Value) {
    if let Some(place) = object.pointer_mut(path) {
        *place = value;
    }
}

fn edit_parent(
    object: &mut Value,
    path: &str,
    field: impl FnOnce(&mut Map<String, Value>, &str),
    item: impl FnOnce(&mut Vec<Value>, usize),
) {
    let Some((parent, key)) = path.rsplit_once('/') else { return };
    match object.pointer_mut(parent) {
        Some(Value::Object(fields)) => field(fields, &key.replace("~1", "/").replace("~0", "~")),
        Some(Value::Array(items)) => item(items, key.parse().expect("a number")),
        _ => {}
    }
}

/// Every policy has come to something: it is in force as it was written, or an error says why it is not.
fn decided(loaded: &Loaded, written: &[&str]) -> Result<(), TestCaseError> {
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let problems: Vec<&Problem> = loaded.problems.iter().chain(&cluster.problems).collect();
    let errors = || problems.iter().filter(|problem| problem.severity == Severity::Error);
    for state in &cluster.policies {
        let name = state.origin.to_string();
        // One without a proper name has none here, and is named to people as it stands.
        let unnamed = state.origin.name.is_empty();
        let prefix = name.trim_end_matches('/');
        let named = |object: &str| object == name || (unnamed && object.starts_with(prefix));
        let told = errors().any(|problem| problem.object.as_deref().is_some_and(named));
        prop_assert_eq!(state.accepted, !told, "{}: {:?}", name, problems);
    }
    // What has no state could not be told apart from nothing: an error says that, not silence.
    let lost = written.len().saturating_sub(cluster.policies.len());
    prop_assert!(lost <= errors().count(), "{:?}: {:?} {:?}", written, cluster.policies, problems);
    for problem in errors() {
        prop_assert!(!problem.reason.is_empty() && !problem.remedy.is_empty(), "{:?}", problem);
    }
    Ok(())
}

fn real() -> impl Strategy<Value = Value> {
    any::<Index>().prop_map(|at| OBJECTS[at.index(OBJECTS.len())].clone())
}

fn made() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => l7::policy("made".into()),
        1 => tiers::policy("made".into(), 5),
        1 => network::policy("made".into()),
        1 => cilium::policy("made".into()),
    ]
}

/// Breaks of a text: a line that goes, comes twice, moves in, or has something put in.
fn broken_text(text: &str, breaks: &[(Index, u8, &'static str)]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (at, how, word) in breaks {
        if lines.is_empty() {
            break;
        }
        let at = at.index(lines.len());
        match how % 6 {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => lines[at].insert_str(0, "  "),
            3 => lines[at].push_str(word),
            4 => lines.truncate(at),
            _ => {
                let middle =
                    lines[at].char_indices().nth(lines[at].chars().count() / 2).map_or(0, |(at, _)| at);
                lines[at].insert_str(middle, word);
            }
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_broken_object_is_decided_and_told(
        object in prop_oneof![2 => real(), 1 => made()], breaks in breaks(), world in world::world(),
    ) {
        let mut object = object;
        for one in &breaks {
            one.apply(&mut object);
        }
        let written: Vec<&str> = kind_of(&object).into_iter().collect();
        let objects: Vec<Value> = world.into_iter().chain([object.clone()]).collect();
        decided(&sluice_crd::load_value(&objects), &written)?;
    }

    #[test]
    fn broken_text_is_decided_and_told(
        at in any::<Index>(),
        breaks in prop::collection::vec(
            (any::<Index>(), any::<u8>(), select(vec!["{", "}", "[", "- ", ": ", "&a ", "*a", "!!binary ", "\"", "'", "|", "#", "\t", "\u{feff}", "\u{0}", "---\n", "? "])),
            1..=BREAKS,
        ),
    ) {
        let text = broken_text(&TEXTS[at.index(TEXTS.len())], &breaks);
        decided(&sluice_crd::load_str("broken.yaml", &text), &[])?;
    }
}

#[test]
fn whole_manifests_are_decided() {
    for text in TEXTS.iter() {
        decided(&sluice_crd::load_str("whole.yaml", text), &[]).expect("decided");
    }
}
