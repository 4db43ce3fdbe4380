//! `sluice check`: starts `sluice-proxy check`, which is what will run on the node and has what it takes to try it out.
//!
//! Knows nothing of eBPF. Its exit codes are the program's.

use crate::neighbour::{Rest, become_it};
use anyhow::Result;
use std::process::ExitCode;

/// What to do where there is none.
const OTHERWISE: &str = "run `sluice-proxy check` as root on the node itself, or in the node's proxy: \
    `kubectl -n NAMESPACE exec POD -- sluice-proxy check`";

/// Becomes the check. Returns only if it cannot be started.
pub(crate) fn run(rest: &Rest) -> Result<ExitCode> {
    become_it("sluice-proxy", Some("check"), rest, OTHERWISE)
}
