//! The cluster's objects, what is wrong with them, and what their policies have come to.
//!
//! The one place here that loads, from a directory or from what the API server told; what it loads the compiler keeps,
//! which makes the snapshot of each node. Same objects, same plan. Called by the controller's loop and by the one-off
//! check.

use crate::cluster::store::PolicyMeta;
use crate::cluster::{Access, Shared};
use crate::config::{Arguments, Cap, Dataplane};
use crate::write::{Facts, facts};
use serde_json::{Value, json};
use sluice_compile::{Compiler, Enforcement, PolicyState, Rollout, Update};
use sluice_crd::{Loaded, Problem, Severity, load_dir};
use sluice_policy::{Mode, Workload};
use std::hash::RandomState;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// What is compiled, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the objects are.
    pub source: Source,
    /// How the namespaces' labels count.
    pub rollout: Rollout,
    /// Where the Lease is, over an API server.
    pub namespace: String,
}

/// Where the objects are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a directory of manifests.
    Directory(PathBuf),
    /// In a cluster.
    Cluster(Access),
}

/// What objects are read from, again and again.
#[derive(Clone)]
pub enum Objects {
    /// A directory of manifests.
    Directory(PathBuf),
    /// What the API server told.
    Cluster(Shared),
}

impl Objects {
    /// Everything that there is, and the policies among it as an API server knows them.
    ///
    /// # Errors
    /// Nothing is known of it: the directory itself cannot be read, or the API server has not listed everything yet.
    fn load(&self) -> Result<(Loaded, Vec<PolicyMeta>), Box<Problem>> {
        match self {
            Self::Directory(dir) => {
                let loaded = load_dir(dir);
                let name = dir.display().to_string();
                let of_all = |problem: &&Problem| *problem.file == *name && problem.line == 0;
                match loaded.problems.iter().find(of_all) {
                    Some(problem) => {
                        let remedy = "what was read last stays in force; bring the directory back";
                        Err(Box::new(Problem { remedy: remedy.to_owned(), ..problem.clone() }))
                    }
                    None => Ok((loaded, Vec::new())),
                }
            }
            Self::Cluster(shared) => shared.loaded().ok_or_else(|| {
                let reason = "not every kind is listed yet: nodes keep what they have";
                let source = sluice_crd::Source::of_object("");
                let remedy = "the status says of each kind what keeps it";
                Box::new(Problem { object: None, ..source.problem(Severity::Info, "", reason, remedy) })
            }),
        }
    }

    /// The policies as an API server knows them now; those of a directory it does not.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyMeta> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::Cluster(shared) => shared.policies(),
        }
    }

    /// What is known of its kinds, for the status; a directory is read as a whole.
    #[must_use]
    pub fn status(&self) -> Value {
        match self {
            Self::Directory(_) => Value::Null,
            Self::Cluster(shared) => shared.status(),
        }
    }
}

impl From<&Arguments> for Settings {
    fn from(arguments: &Arguments) -> Self {
        let rollout = Rollout::AsLabelled {
            default_dataplane: arguments.default_dataplane == Dataplane::Enabled,
            max_enforcement: match arguments.max_enforcement {
                Cap::Off => Enforcement::Off,
                Cap::Audit => Enforcement::Audit,
                Cap::Enforce => Enforcement::Enforce,
            },
        };
        Self { source: arguments.source(), rollout, namespace: arguments.namespace.clone() }
    }
}

/// One reading of the objects.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    counts: Counts,
    /// What is wrong with the objects, in form and in meaning.
    pub problems: Vec<Problem>,
    /// What each policy has come to, as JSON for the status.
    pub policies: Vec<Value>,
    /// What each policy of an API server has come to.
    pub facts: Vec<Facts>,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    policies: usize,
    pods: usize,
    namespaces: usize,
}

impl Plan {
    /// Reads the objects into the compiler.
    ///
    /// # Errors
    /// Nothing is known of them, so what was read last stays. A file or an object that cannot be read is a problem of
    /// the plan instead.
    pub fn read(
        objects: &Objects,
        rollout: Rollout,
        compiler: &mut Compiler,
        marks: &RandomState,
    ) -> Result<Self, Box<Problem>> {
        let (loaded, known) = objects.load()?;
        let Update { mut problems, policies } = compiler.update(&loaded.objects, rollout);
        problems.extend(loaded.problems);
        problems.sort();
        problems.dedup();
        let counts = Counts {
            policies: loaded.objects.policies.len(),
            pods: loaded.objects.pods.len(),
            namespaces: loaded.objects.namespaces.len(),
        };
        let facts = facts::facts(known, &policies, &problems, marks);
        Ok(Self { counts, problems, policies: policies.iter().map(policy).collect(), facts })
    }

    /// What was read, in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
        let Counts { policies, pods, namespaces } = self.counts;
        format!("{policies} policies, {pods} pods, {namespaces} namespaces, {errors} errors")
    }
}

fn policy(state: &PolicyState) -> Value {
    let names = |pods: &[Arc<Workload>]| -> Vec<String> {
        pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.pod)).collect()
    };
    json!({
        "policy": state.origin.to_string(),
        "effectiveMode": match state.mode {
            Some(Mode::Enforce) => "Enforce",
            Some(Mode::Audit) => "Audit",
            None => "Off",
        },
        "accepted": state.accepted,
        "selectedPods": names(&state.selected),
        "notEnforced": names(&state.not_enforced),
    })
}

/// `--once --check`: every problem on standard output; fails if one is an error.
#[must_use]
pub fn check(dir: &Path, rollout: Rollout) -> ExitCode {
    let plan = match Plan::read(
        &Objects::Directory(dir.to_owned()),
        rollout,
        &mut Compiler::new(),
        &RandomState::new(),
    ) {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("{}: {}: give a directory of manifests", problem.file, problem.reason);
            return ExitCode::from(2);
        }
    };
    for problem in &plan.problems {
        println!("{}: {problem}", problem.severity.as_str());
    }
    println!("{}", plan.summary());
    let bad = plan.problems.iter().any(|problem| problem.severity == Severity::Error);
    if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
