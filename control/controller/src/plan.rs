//! The directory as objects, what is wrong with them, and what their policies have come to.
//!
//! The one place here that loads; what it loads the compiler keeps, which makes the snapshot of each node. Same files,
//! same plan. Called by the controller's loop and by the
//! one-off check.

use crate::config::{Arguments, Cap, Dataplane};
use serde_json::{Value, json};
use sluice_compile::{Compiler, Enforcement, PolicyState, Rollout, Update};
use sluice_crd::{Problem, Severity, load_dir};
use sluice_policy::{Mode, Workload};
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
    counts: Counts,
    /// What is wrong with the objects, in form and in meaning.
    pub problems: Vec<Problem>,
    /// What each policy has come to, as JSON for the status.
    pub policies: Vec<Value>,
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    policies: usize,
    pods: usize,
    namespaces: usize,
}

impl Plan {
    /// Reads the directory into the compiler.
    ///
    /// # Errors
    /// The directory itself cannot be read: nothing is known of what it says, so what was read last stays. A file in
    /// it that cannot be read is a problem of the plan instead.
    pub fn read(settings: &Settings, compiler: &mut Compiler) -> Result<Self, Box<Problem>> {
        let loaded = load_dir(&settings.dir);
        let dir = settings.dir.display().to_string();
        if let Some(problem) =
            loaded.problems.iter().find(|problem| *problem.file == *dir && problem.line == 0)
        {
            let remedy = "what was read last stays in force; bring the directory back";
            return Err(Box::new(Problem { remedy: remedy.to_owned(), ..problem.clone() }));
        }
        let Update { mut problems, policies } = compiler.update(&loaded.objects, settings.rollout);
        problems.extend(loaded.problems);
        problems.sort();
        problems.dedup();
        let counts = Counts {
            policies: loaded.objects.policies.len(),
            pods: loaded.objects.pods.len(),
            namespaces: loaded.objects.namespaces.len(),
        };
        Ok(Self { counts, problems, policies: policies.iter().map(policy).collect() })
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
pub fn check(settings: &Settings) -> ExitCode {
    let plan = match Plan::read(settings, &mut Compiler::new()) {
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
