//! The demo as people run it: its exit code, what it leaves behind, and that it can fail.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{NETNS_DIR, Process, STATE_DIR, binary};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

fn main() -> ExitCode {
    let needs = [
        Need::Bpf,
        Need::Binary("sluice-demo"),
        Need::Binary("sluice-peer"),
        Need::Binary("sluice-control"),
        Need::Binary("sluice-proxy"),
    ];
    let tests: Vec<Trial> = vec![
        harness::test("every line is as expected", needs.clone(), as_expected),
        harness::test("another policy is not as expected", needs.clone(), not_as_expected),
        harness::test("-o json tells programs the same", needs.clone(), json),
        harness::test("--keep leaves it up until Ctrl-C", needs.clone(), keep),
        harness::test("Ctrl-C in the middle takes it down", needs, interrupted),
    ];
    harness::main(2, tests)
}

/// Far beyond what the demo takes.
const LONG: Duration = Duration::from_secs(120);

fn start(arguments: &[&str]) -> Result<(Process, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(binary("sluice-demo")?);
    command.args(arguments).arg("--examples").arg(sluice_tests::cluster::repository().join("examples/shop"));
    Ok((Process::start("demo", dir.path(), &mut command)?, dir))
}

/// Nothing of that process's worlds is left.
fn nothing_left(demo: &Process) -> Result<()> {
    let prefix = format!("sl-{:x}-", demo.id());
    for place in [NETNS_DIR, STATE_DIR] {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        let left: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        ensure!(!left.iter().any(|name| name.starts_with(&prefix)), "left in {place}: {left:?}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&prefix), "mounts are left");
    Ok(())
}

fn as_expected() -> Result<()> {
    let (mut demo, _dir) = start(&["--no-color"])?;
    let status = demo.wait(LONG)?;
    ensure!(status.success(), "{status}:\n{}", demo.tail(80));
    let lines = demo.lines_since(0);
    let long: Vec<&String> = lines.iter().filter(|line| line.chars().count() > 110).collect();
    ensure!(long.is_empty(), "too wide to read: {long:#?}");
    ensure!(lines.iter().all(|line| !line.contains('\x1b')), "there are colours");
    let good = lines.iter().filter(|line| line.starts_with(" ✓")).count();
    ensure!(good >= 25, "only {good} lines were played:\n{}", demo.tail(80));
    let text = std::fs::read_to_string(sluice_tests::cluster::repository().join("README.md"))?;
    let block =
        text.split("<!-- demo:begin -->\n```text\n").nth(1).and_then(|rest| rest.split("```\n").next());
    let readme: Vec<String> =
        block.context("no block of the demo in README.md")?.lines().map(timeless).collect();
    let here = format!("{}/", sluice_tests::cluster::repository().display());
    let printed: Vec<String> = lines.iter().map(|line| timeless(&line.replace(&here, ""))).collect();
    let differ = readme.iter().find(|line| !printed.contains(line));
    ensure!(differ.is_none(), "README.md says {differ:?}, which the demo does not print: {lines:#?}");
    let missing = printed.iter().find(|line| line.contains('✓') && !readme.contains(line));
    ensure!(missing.is_none(), "README.md lacks {missing:?}: put in what the demo prints");
    nothing_left(&demo)
}

/// A line without what differs from run to run: how long things took, and how many requests there were meanwhile.
fn timeless(line: &str) -> String {
    let ends = [" ms", " s"].iter().any(|unit| line.ends_with(unit));
    if !ends && !line.contains("in force after") {
        return line.to_owned();
    }
    let mut text = String::new();
    for part in line.split(|c: char| c.is_ascii_digit() || c == '.') {
        text.push_str(part);
        if !text.ends_with('#') {
            text.push('#');
        }
    }
    text.trim_end_matches('#').replace("# s", "# ms").trim_end().to_owned()
}

/// The same lines under a policy that says otherwise: the demo must notice.
fn not_as_expected() -> Result<()> {
    let examples = tempfile::tempdir()?;
    for entry in std::fs::read_dir(sluice_tests::cluster::repository().join("examples/shop"))? {
        let entry = entry?;
        let text = std::fs::read_to_string(entry.path())?;
        let text = text.replace("methods: [ GET ]", "methods: [ GET, HEAD ]");
        std::fs::write(examples.path().join(entry.file_name()), text)?;
    }
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(binary("sluice-demo")?);
    command.arg("--no-color").arg("--examples").arg(examples.path());
    let mut demo = Process::start("demo", dir.path(), &mut command)?;
    let status = demo.wait(LONG)?;
    ensure!(status.code() == Some(1), "{status}:\n{}", demo.tail(80));
    let wrong: Vec<String> = demo.lines_since(0).into_iter().filter(|line| line.starts_with(" ✗")).collect();
    ensure!(wrong.len() == 1 && wrong[0].contains("HEAD"), "{wrong:#?}");
    nothing_left(&demo)
}

fn json() -> Result<()> {
    let mut command = Command::new(binary("sluice-demo")?);
    let examples = sluice_tests::cluster::repository().join("examples/shop");
    let output = command.args(["-o", "json", "--examples"]).arg(examples).output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |part: &str| lines.iter().filter(|line| line["part"] == part).count();
    ensure!(of("table") >= 20 && of("edit") == 2 && of("audit") >= 3, "{text}");
    ensure!(lines.iter().all(|line| line["good"] == true), "{text}");
    let head = lines.iter().find(|line| line["what"].as_str().is_some_and(|what| what.starts_with("HEAD")));
    let head = head.context("no HEAD")?;
    ensure!(head["decidedBy"] == "l7np/cart" && head["toldBy"] == "record", "{head}");
    ensure!(head["more"] == "method HEAD not in [GET]", "{head}");
    Ok(())
}

fn keep() -> Result<()> {
    let (mut demo, _dir) = start(&["--no-color", "--keep"])?;
    demo.wait_line(0, LONG, "how to take it down", |line| line.contains("Press Ctrl-C"))?;
    let lines = demo.lines_since(0);
    let ask = lines.iter().find_map(|line| line.trim().strip_prefix("ask the cart"));
    let ask = ask.context("no command to ask the cart")?.trim();
    let output = Command::new("sh").args(["-c", ask]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("200 OK"), "`{ask}`: {output:?}");
    demo.signal(Signal::INT)?;
    demo.wait(Duration::from_secs(30))?;
    nothing_left(&demo)
}

fn interrupted() -> Result<()> {
    let (mut demo, _dir) = start(&["--no-color"])?;
    demo.wait_line(0, LONG, "the first lines", |line| {
        Path::new(STATE_DIR).exists() && line.starts_with(" ✓")
    })?;
    demo.signal(Signal::INT)?;
    let status = demo.wait(Duration::from_secs(30))?;
    ensure!(status.code() == Some(130), "{status}");
    nothing_left(&demo)
}
