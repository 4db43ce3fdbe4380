//! The checks that run no code: format, lints, edges, bans, licences, sources.
//!
//! Knows nothing of tests. Called by `lint` and `test`.

use crate::place::Place;
use crate::step;

/// The version whose output and configuration deny.toml was written for. Compiles on Rust 1.88 and newer.
const CARGO_DENY: &str = "0.20.2";

/// One check by its name.
pub(crate) type Check = (&'static str, fn(&Place) -> anyhow::Result<()>);

/// All of them, cheap ones first.
pub(crate) const CHECKS: &[Check] =
    &[("format", format), ("lints", clippy), ("bans, licences, sources", deny)];

fn format(place: &Place) -> anyhow::Result<()> {
    step::command("cargo fmt --check", &mut place.cargo(&["fmt", "--all", "--check"]))
}

fn clippy(place: &Place) -> anyhow::Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step::command("cargo clippy", &mut place.cargo(&arguments))
}

/// Advisories are not among them: their database may be out of reach, and a landing must not hang on it.
fn deny(place: &Place) -> anyhow::Result<()> {
    let root = place.cache.join("tools").join(format!("cargo-deny-{CARGO_DENY}"));
    let binary = root.join("bin/cargo-deny");
    if !binary.exists() {
        let mut install =
            place.cargo(&["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"]);
        install.arg(&root).env("CARGO_TARGET_DIR", root.join("build"));
        step::command(&format!("installing cargo-deny {CARGO_DENY} (once; some minutes)"), &mut install)?;
        // What it was built from takes ten times its own room; that it stays does no harm.
        let _ = std::fs::remove_dir_all(root.join("build"));
    }
    let mut check = place.command(binary);
    check.args(["--all-features", "check", "bans", "licenses", "sources"]);
    step::command("cargo deny check bans licenses sources", &mut check)
}
