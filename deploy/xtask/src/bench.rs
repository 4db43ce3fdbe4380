//! Runs the benchmarks that have their tables in docs/performance.md.
//!
//! Builds them with optimisations, in cargo's own profile for that. Knows nothing of what is measured.

use crate::place::Place;
use crate::setup::{self, Machine};
use crate::step;
use anyhow::{Context as _, bail};
use clap::ValueEnum;

/// The document that has the tables.
const DOCUMENT: &str = "docs/performance.md";

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// The eBPF datapath, beside nothing and beside nftables
    Datapath,
}

/// Measures, prints, and writes where it is asked to.
pub(crate) fn run(place: &Place, what: What, write: bool) -> anyhow::Result<()> {
    let What::Datapath = what;
    if !setup::is_root() {
        bail!("the benchmark creates network namespaces and loads eBPF programs: run it as root");
    }
    if let Machine::Lacking(what) = setup::machine(place)? {
        bail!("the benchmark needs tools that are missing: {what}");
    }
    let bench = ["bench", "--locked", "--package", "sluice-redirect", "--bench", "datapath"];
    step::command("building with optimisations", place.cargo(&bench).arg("--no-run"))?;
    let output = place.cargo(&bench).stderr(std::process::Stdio::inherit()).output()?;
    let tables = String::from_utf8(output.stdout).context("the tables are text")?;
    print!("{tables}");
    if !output.status.success() {
        bail!("the benchmark failed");
    }
    if write {
        let path = place.root.join(DOCUMENT);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {DOCUMENT}"))?;
        std::fs::write(&path, replaced(&text, tables.trim())?)
            .with_context(|| format!("write {DOCUMENT}"))?;
    }
    Ok(())
}

/// The document with other tables between its marks.
fn replaced(text: &str, tables: &str) -> anyhow::Result<String> {
    const MARKS: [&str; 2] = ["<!-- cargo xtask bench datapath --write -->", "<!-- end -->"];
    let [begin, end] = MARKS;
    let (before, rest) = text.split_once(begin).with_context(|| format!("{DOCUMENT} has no {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("{DOCUMENT} has no {end} after it"))?;
    Ok(format!("{before}{begin}\n{tables}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn what_stands_between_the_marks_is_replaced() {
        let text = "a\n<!-- cargo xtask bench datapath --write -->\nold\n<!-- end -->\nb\n";
        let new = replaced(text, "new").expect("the marks are there");
        assert_eq!(new, "a\n<!-- cargo xtask bench datapath --write -->\nnew\n<!-- end -->\nb\n");
        assert!(replaced("a", "new").is_err());
    }
}
