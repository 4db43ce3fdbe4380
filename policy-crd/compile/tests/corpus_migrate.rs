//! Cilium's own manifests, migrated: the result is without errors, and gives the verdicts that the original gave but
//! where the losses say otherwise. Questions are made from what each manifest says.
//!
//! Each is taken with the namespace that most of them leave to kubectl, its templates filled. The corpus lies beside
//! the project, or where `SLUICE_CORPUS` says. Where it is absent the test is shown as ignored; with
//! `SLUICE_REQUIRE_ALL=1` it fails.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

#[path = "common/corpus.rs"]
mod corpus;
mod migrated;

use corpus::Tally;
use libtest_mimic::{Arguments, Failed, Trial};
use migrated::around::{Asker, Dice, Words, world};
use migrated::{Pair, is_ciliums};
use serde_json::Value;
use sluice_compile::migrate::{LossKind, Outcome};
use sluice_policy::Decision;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// Questions about one manifest.
const QUESTIONS: usize = 1500;
/// The namespace of manifests that name none: that of Cilium's connectivity tests.
const HOME: &str = "cilium-test";

/// What became of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Every policy in it converts without loss.
    Whole,
    /// The result says the same today, and does not follow what changes.
    Frozen,
    /// Something is widened, narrowed or dropped.
    WithLoss,
    /// A policy in it cannot be read.
    Refused,
}

static TALLY: Tally = Tally::new("cilium/migrate", "manifests");

#[derive(Default)]
struct Counts {
    questions: BTreeMap<Class, [usize; 5]>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = corpus::folder("cilium");
    let mut files = Vec::new();
    for folder in ["connectivity", "examples", "extra"] {
        manifests(&root.join(folder), &mut files);
    }
    files.sort();
    if files.is_empty() {
        return libtest_mimic::run(&arguments, vec![corpus::absent("cilium", &root, &"no manifests")])
            .exit_code();
    }
    let counts = Arc::new(Mutex::new(Counts::default()));
    let trial = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        let counts = counts.clone();
        Trial::test(name, move || counted(judge(&std::fs::read_to_string(&path)?, &counts)))
    };
    let conclusion = libtest_mimic::run(&arguments, files.into_iter().map(trial).collect());
    if arguments.list {
        return conclusion.exit_code();
    }
    TALLY.print();
    let counts = counts.lock().unwrap();
    for (class, [manifests, asked, granted, denied, changed]) in &counts.questions {
        println!(
            "corpus cilium/migrate: {class:?}: {manifests} manifests, {asked} questions, {granted} let through by a rule and {denied} denied by the \
             originals, {changed} answered otherwise by the results"
        );
    }
    conclusion.exit_code()
}

/// Counts what was judged.
fn counted(outcome: Result<Option<()>, Failed>) -> Result<(), Failed> {
    match outcome {
        Ok(None) => Ok(()),
        Ok(Some(())) => TALLY.take(Ok(())),
        Err(failed) => TALLY.take(Err(failed)),
    }
}

fn manifests(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            manifests(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            out.push(path);
        }
    }
}

/// Templates filled with what Cilium's tests would put there; lines that only steer the template go.
fn filled(text: &str) -> String {
    let word = |inner: &str| match inner {
        _ if inner.contains("ClusterNameRemote") => "other",
        _ if inner.contains("ClusterName") => "default",
        _ if inner.contains("TestNamespace") => HOME,
        _ if inner.contains("OtherIPv6") && inner.contains("ipToCIDR") => "2001:db8::2/128",
        _ if inner.contains("OtherIPv4") && inner.contains("ipToCIDR") => "203.0.113.2/32",
        _ if inner.contains("IPv6") && inner.contains("ipToCIDR") => "2001:db8::1/128",
        _ if inner.contains("IPv4") && inner.contains("ipToCIDR") => "203.0.113.1/32",
        _ if inner.contains("OtherIPv6") => "2001:db8::2",
        _ if inner.contains("OtherIPv4") => "203.0.113.2",
        _ if inner.contains("IPv6") => "2001:db8::1",
        _ if inner.contains("IPv4") => "203.0.113.1",
        _ if inner.contains("CIDRv6") => "2001:db8::/64",
        _ if inner.contains("CIDRv4") => "203.0.113.0/24",
        _ if inner.contains("K8sCIDR") => "10.96.0.0/12",
        _ if inner.contains("Mask") => "32",
        _ if inner.contains("$i.IP") => "198.51.100.7",
        _ if inner.contains("Port") => "8443",
        _ if inner.contains("Wildcard") => "*.example.com",
        _ if inner.contains("Target") => "one.example.com",
        _ => "198.51.100.0/24",
    };
    let mut out = String::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        let steers = |line: &str| {
            let inner = line.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
            inner.is_some_and(|inner| {
                ["range", "end"].iter().any(|word| inner.trim_matches([' ', '-']).starts_with(word))
            })
        };
        if steers(&line) {
            continue;
        }
        while let Some((head, (inner, tail))) =
            line.split_once("{{").and_then(|(head, rest)| Some((head, rest.split_once("}}")?)))
        {
            line = format!("{head}{}{tail}", word(inner));
        }
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// The manifest's objects, in a namespace where their kind has one and they name none.
fn objects(text: &str) -> Result<Vec<Value>, Failed> {
    let all: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| Failed::from(error.to_string()))?;
    let mut all: Vec<Value> = all.into_iter().filter(Value::is_object).collect();
    for object in &mut all {
        let kind = object["kind"].as_str().unwrap_or_default();
        if matches!(kind, "CiliumNetworkPolicy" | "NetworkPolicy")
            && object["metadata"]["namespace"].is_null()
        {
            object["metadata"]["namespace"] = HOME.into();
        }
    }
    Ok(all)
}

/// Judges one manifest. `None`: there is nothing to judge, and that is counted.
fn judge(text: &str, counts: &Mutex<Counts>) -> Result<Option<()>, Failed> {
    // What is no YAML even with its templates filled is refused by the reader.
    let Ok(given) = objects(&filled(text)) else {
        TALLY.skipped(1, "no YAML");
        return Ok(None);
    };
    let ours = |object: &Value| object["kind"].as_str().is_some_and(|kind| kind.ends_with("NetworkPolicy"));
    if !given.iter().any(|object| is_ciliums(object) && ours(object)) {
        TALLY.skipped(1, "no policy of Cilium in it");
        return Ok(None);
    }
    let words = Words::of(&given);
    let home = given.iter().find_map(|object| object["metadata"]["namespace"].as_str()).unwrap_or(HOME);
    let around = world(&words, home);
    let pair = Pair::new(&around.iter().chain(&given).cloned().collect::<Vec<_>>());
    let class = match pair.migrated.originals.iter().map(|original| original.outcome).max() {
        Some(Outcome::Refused) => Class::Refused,
        _ if pair.lost(&[LossKind::Widened, LossKind::Narrowed, LossKind::Dropped]) => Class::WithLoss,
        _ if pair.lost(&[LossKind::Frozen]) => Class::Frozen,
        _ => Class::Whole,
    };
    if !pair.errors.is_empty() {
        return Err(format!("the result has errors: {:#?}\n{:#?}", pair.errors, pair.result).into());
    }
    if class == Class::Refused {
        TALLY.skipped(1, "refused: a field that does not exist, or a selector that cannot be read");
        return Ok(None);
    }
    let mut asker = Asker::new(&words, &around);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    asker.look_at(&pair.before, &mut dice);
    let (mut granted, mut denied, mut changed) = (0, 0, 0);
    for _ in 0..QUESTIONS {
        let ([was, is], by_rule) = pair.judge(&asker.question(&mut dice))?;
        granted += usize::from(by_rule);
        denied += usize::from(was == Decision::Deny);
        changed += usize::from(was != is);
    }
    // A policy that limits nothing whatever is asked would make this test say nothing.
    if class <= Class::Frozen && !pair.migrated.manifests.is_empty() && denied == 0 {
        return Err(format!("nothing is ever denied: {:#?}", pair.result).into());
    }
    let mut counts = counts.lock().unwrap();
    let sums = counts.questions.entry(class).or_default();
    for (sum, one) in sums.iter_mut().zip([1, QUESTIONS, granted, denied, changed]) {
        *sum += one;
    }
    Ok(Some(()))
}
