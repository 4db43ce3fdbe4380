//! `sluice demo`: starts `sluice-demo`, which is a program of its own.
//!
//! Knows nothing of what the demo does; its arguments go on as they are.

use anyhow::{Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// The program.
const PROGRAM: &str = "sluice-demo";

/// Everything after `demo`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Arguments of the demo; `sluice demo --help` shows them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    rest: Vec<OsString>,
}

/// Becomes the demo. Returns only if it cannot be started.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Some(program) = find() else {
        bail!("{PROGRAM} is neither beside this program nor on PATH: in a checkout run `cargo xtask demo`");
    };
    let error = Command::new(&program).args(&arguments.rest).exec();
    bail!("{} cannot be started: {error}", program.display())
}

fn find() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(PROGRAM)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).collect::<Vec<_>>();
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file())
}
