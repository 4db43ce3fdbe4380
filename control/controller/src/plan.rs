//! The directory as objects, what is wrong with them, and the snapshot of each node.
//!
//! The one place here that loads and compiles. Same files, same plan. Called by the controller's loop and by the
//! one-off check.

use crate::config::{Arguments, Cap, Dataplane};
use serde_json::{Value, json};
use sluice_compile::{Compiled, Enforcement, NodeScope, Options, PolicyState, Rollout, compile};
use sluice_crd::{Objects, Problem, Severity, load_dir};
use sluice_policy::{Mode, Snapshot, Workload};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// What is compiled, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory.
    pub dir: PathBuf,
    /// How the namespaces' labels count.
    pub rollout: Rollout,
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
        Self { dir: arguments.dir.clone(), rollout }
    }
}

/// One reading of the directory.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    objects: Objects,
    /// What is wrong with the objects, in form and in meaning.
    pub problems: Vec<Problem>,
    /// What each policy has come to, as JSON for the status.
    pub policies: Vec<Value>,
}

impl Plan {
    /// Reads the directory.
    ///
    /// # Errors
    /// The directory itself cannot be read: nothing is known of what it says, so what was read last stays. A file in
    /// it that cannot be read is a problem of the plan instead.
    pub fn read(settings: &Settings) -> Result<Self, Box<Problem>> {
        let loaded = load_dir(&settings.dir);
        let dir = settings.dir.display().to_string();
        if let Some(problem) =
            loaded.problems.iter().find(|problem| *problem.file == *dir && problem.line == 0)
        {
            let remedy = "what was read last stays in force; bring the directory back";
            return Err(Box::new(Problem { remedy: remedy.to_owned(), ..problem.clone() }));
        }
        let mut plan = Self { objects: loaded.objects, problems: loaded.problems, policies: Vec::new() };
        let compiled = plan.compile(settings, NodeScope::All);
        plan.problems.extend(compiled.problems);
        plan.problems.sort();
        plan.problems.dedup();
        plan.policies = compiled.policies.iter().map(policy).collect();
        Ok(plan)
    }

    fn compile(&self, settings: &Settings, node: NodeScope) -> Compiled {
        // The generation is given on publication, if there is anything new.
        compile(&self.objects, &Options { node, rollout: settings.rollout, generation: 0 })
    }

    /// The snapshot of a node, without a generation.
    #[must_use]
    pub fn snapshot(&self, settings: &Settings, node: &str) -> Snapshot {
        self.compile(settings, NodeScope::Named(node.into())).snapshot
    }

    /// What was read, in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
        format!(
            "{} policies, {} pods, {} namespaces, {errors} errors",
            self.objects.policies.len(),
            self.objects.pods.len(),
            self.objects.namespaces.len()
        )
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
pub fn check(settings: &Settings) -> ExitCode {
    let plan = match Plan::read(settings) {
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
