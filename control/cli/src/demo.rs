//! `sluice demo`: starts `sluice-demo`, which is a program of its own.

use crate::neighbour::{Rest, become_it};
use anyhow::Result;
use std::process::ExitCode;

/// Becomes the demo. Returns only if it cannot be started.
pub(crate) fn run(rest: &Rest) -> Result<ExitCode> {
    become_it("sluice-demo", None, rest, "in a checkout run `cargo xtask demo`")
}
