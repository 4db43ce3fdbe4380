//! Runs the benchmarks that have their tables in docs/performance.md.
//!
//! Builds them with optimisations, in cargo's own profile for that. Knows nothing of what is measured.

use crate::bpf;
use crate::peers;
use crate::place::Place;
use crate::setup::{self, Machine};
use crate::step;
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use std::process::Command;

/// The document that has the tables.
const DOCUMENT: &str = "docs/performance.md";

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// The eBPF datapath, beside nothing and beside nftables
    Datapath,
    /// The two places for the proxy's sockets: a network namespace of its own, and the node's
    Arrangements,
    /// The proxy, beside others and beside none
    Proxy,
    /// The proxy's two legs joined in the kernel, beside ways of copying
    Sockmap,
    /// How long it takes to put rows in force: the last table of the datapath's alone
    Sync,
}

impl What {
    /// As it is typed.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What of it is measured, and how it is told.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// For programs as well.
    pub(crate) json: bool,
    /// The benchmark's own words.
    pub(crate) only: Vec<String>,
}

/// The command of a benchmark, built with optimisations.
fn built(place: &Place, what: What, form: &Form) -> anyhow::Result<Command> {
    let (package, name) = if what == What::Proxy {
        ("sluice-proxy", "peers")
    } else {
        if form.json || !form.only.is_empty() {
            bail!("only `bench proxy` takes more than --write");
        }
        ("sluice-redirect", "datapath")
    };
    let bench = ["bench", "--locked", "--package", package, "--bench", name];
    step::command("building with optimisations", place.cargo(&bench).arg("--no-run"))?;
    let mut run = place.cargo(&bench);
    match what {
        What::Proxy => {
            run.envs(peers::ready(place)).arg("--").args(form.json.then_some("--json")).args(&form.only);
        }
        What::Datapath => {}
        What::Sync => {
            run.args(["--", "sync"]);
        }
        What::Arrangements | What::Sockmap => {
            run.env("SLUICE_TRIALS", bpf::trials(place)?).args(["--", &what.name()]);
        }
    }
    Ok(run)
}

/// Measures, prints, and writes where it is asked to.
pub(crate) fn run(place: &Place, what: What, write: bool, form: &Form) -> anyhow::Result<()> {
    if write && what == What::Sync {
        bail!("{DOCUMENT} has the tables of one run: leave --write out, or measure the datapath");
    }
    if !setup::is_root() {
        bail!("the benchmark creates network namespaces and loads eBPF programs: run it as root");
    }
    if let Machine::Lacking(what) = setup::machine(place)? {
        bail!("the benchmark needs tools that are missing: {what}");
    }
    let mut run = built(place, what, form)?;
    let output = run.stderr(std::process::Stdio::inherit()).output()?;
    let tables = String::from_utf8(output.stdout).context("the tables are text")?;
    print!("{tables}");
    if !output.status.success() {
        bail!("the benchmark failed");
    }
    if write {
        let path = place.root.join(DOCUMENT);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {DOCUMENT}"))?;
        let tables: String =
            tables.lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, replaced(&text, tables.trim(), &what.name())?)
            .with_context(|| format!("write {DOCUMENT}"))?;
    }
    Ok(())
}

/// The document with other tables between its marks.
fn replaced(text: &str, tables: &str, what: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- cargo xtask bench {what} --write -->"), "<!-- end -->");
    let (before, rest) = text.split_once(&begin).with_context(|| format!("{DOCUMENT} has no {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("{DOCUMENT} has no {end} after it"))?;
    Ok(format!("{before}{begin}\n{tables}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn what_stands_between_the_marks_is_replaced() {
        let other = "<!-- cargo xtask bench sockmap --write -->\nother\n<!-- end -->\n";
        let text =
            |old| format!("{other}<!-- cargo xtask bench datapath --write -->\n{old}\n<!-- end -->\nb\n");
        let new = replaced(&text("old"), "new", "datapath").expect("the marks are there");
        assert_eq!(new, text("new"));
        assert!(replaced("a", "new", "datapath").is_err());
    }
}
