//! Verbs that are programs of their own: they are started in this one's place.
//!
//! Knows nothing of what they do; their arguments go on as they are. Called by `demo` and `check`.

use anyhow::{Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Everything after the verb.
#[derive(clap::Args)]
pub(crate) struct Rest {
    /// Arguments of the program that does the work; `--help` shows them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Becomes the program, which is beside this one or on PATH. Returns only if it cannot be started.
pub(crate) fn become_it(program: &str, verb: Option<&str>, rest: &Rest, otherwise: &str) -> Result<ExitCode> {
    let Some(path) = find(program) else {
        bail!("{program} is neither beside this program nor on PATH: {otherwise}");
    };
    let error = Command::new(&path).args(verb).args(&rest.arguments).exec();
    bail!("{} cannot be started: {error}", path.display())
}

fn find(program: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(program)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(program)).collect::<Vec<_>>();
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file())
}
