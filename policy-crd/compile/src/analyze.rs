//! What is probably not meant in a set of manifests: findings with codes, for people, editors and CI.
//!
//! Pure. Reading and lowering say what is wrong with an object; the checks here say what is suspicious about a
//! good one, alone or beside the others. Asks the engine itself where a verdict is concerned. Knows nothing of
//! terminals, of formats and of where the texts came from: `sluice analyze` draws what comes out.

mod codes;
mod conflicts;
mod covers;
mod effects;
mod finding;
mod overlap;
mod ports;
mod said;
mod views;
mod whom;
mod world;

pub use codes::{CODES, Code, find};
pub use finding::{Finding, MAX_FINDINGS, Related, worst};

use crate::cilium;
use crate::index::Index;
use crate::query::Cluster;
use crate::rollout::Rollout;
use finding::Findings;
use sluice_crd::{Category, Loaded, Objects, Problem};

/// What was found.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// In the order of the files.
    pub findings: Vec<Finding>,
    /// How many more there are than [`MAX_FINDINGS`].
    pub omitted: usize,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
}

/// Checks what was loaded.
#[must_use]
pub fn analyze(loaded: &Loaded, rollout: Rollout) -> Analysis {
    let objects = &loaded.objects;
    let mut findings = Findings::default();
    let cluster = Cluster::new(objects, rollout);
    // Where no namespace is given at all, that one is missing is nothing to know.
    let bare = objects.namespaces.is_empty();
    let idle = |problem: &&Problem| {
        bare && problem.category == Category::Note && problem.path == "metadata.namespace"
    };
    for problem in loaded.problems.iter().chain(&cluster.problems).filter(|problem| !idle(problem)) {
        findings.problem(codes::of_category(problem.category), problem.clone());
    }
    let policies = views::all(objects);
    let index = index(objects);
    whom::check(&policies, &index, &mut findings);
    ports::check(&policies, &index, &mut findings);
    said::check(&policies, &mut findings);
    effects::check(&policies, &cluster.policies, rollout != Rollout::AsIfEnforced, &mut findings);
    let unchecked = together(objects, &policies, &index, &mut findings);
    let (findings, omitted) = findings.finish();
    Analysis { findings, omitted, unchecked: unchecked.into_iter().collect() }
}

/// The checks that ask the engine, of a cluster with somebody for every selector. Says what could not be checked.
fn together(
    objects: &Objects,
    policies: &[views::PolicyView<'_>],
    index: &Index,
    findings: &mut Findings,
) -> Option<String> {
    let Some(inhabited) = world::inhabited(objects, policies, index) else {
        return Some("there are too many different selectors: rules are not compared with each other".into());
    };
    let cluster = Cluster::new(&inhabited, Rollout::AsIfEnforced);
    effects::dns(cluster.snapshot(), policies, index, findings);
    conflicts::check(cluster.snapshot(), policies, findings)
}

/// The pods and namespaces, with the labels that Cilium's policies read of them.
fn index(objects: &Objects) -> Index {
    // What is wrong with them the compiler has told.
    let mut told = Vec::new();
    let mut index = Index::new(objects, &mut told);
    let named = cilium::Named::new(objects, &mut told);
    let lowered: Vec<_> =
        objects.cilium.iter().flat_map(|policy| cilium::policy(policy, &named, &mut told)).collect();
    cilium::derive_labels(&mut index, lowered.iter());
    index
}
