//! What the documents show is what the program prints: every command of [`VERBS`] in their console blocks is run.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The verbs that only read files.
const VERBS: [&str; 3] = ["explain", "analyze", "migrate"];

/// A command and the lines that shall follow it.
#[derive(Debug)]
struct Shown {
    command: String,
    output: Vec<String>,
}

fn shown(text: &str) -> Vec<Shown> {
    let mut out: Vec<Shown> = Vec::new();
    let (mut inside, mut ours) = (false, false);
    for line in text.lines() {
        match line {
            "```console" => (inside, ours) = (true, false),
            "```" => inside = false,
            _ if !inside => {}
            _ if line.starts_with("$ ") => {
                ours = VERBS.iter().any(|verb| line.starts_with(&format!("$ sluice {verb} ")));
                if let (true, Some(command)) = (ours, line.strip_prefix("$ sluice ")) {
                    out.push(Shown { command: command.into(), output: Vec::new() });
                }
            }
            _ if ours => out.last_mut().unwrap().output.push(line.into()),
            _ => {}
        }
    }
    out
}

/// Words of a shell line with single quotes, `< file` and `2>/dev/null`.
fn words(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            out.last_mut().unwrap().push_str(part);
            continue;
        }
        for (index, word) in part.split(' ').enumerate() {
            if index > 0 {
                out.push(String::new());
            }
            out.last_mut().unwrap().push_str(word);
        }
    }
    out.retain(|word| !word.is_empty());
    out
}

fn run(line: &str) -> Vec<String> {
    let mut words = words(line);
    let quiet = words.iter().any(|word| word == "2>/dev/null");
    words.retain(|word| word != "2>/dev/null");
    let mut input = Stdio::null();
    if let Some(at) = words.iter().position(|word| word == "<") {
        input = File::open(root().join(&words[at + 1])).unwrap().into();
        words.truncate(at);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(words)
        .current_dir(root())
        .stdin(input)
        .output()
        .unwrap();
    let mut text = if quiet { String::new() } else { String::from_utf8(output.stderr).unwrap() };
    text.push_str(&String::from_utf8(output.stdout).unwrap());
    text.lines().map(str::to_owned).collect()
}

#[test]
fn documents_show_what_is_printed() {
    let mut documents: Vec<PathBuf> = VERBS.map(|verb| root().join(format!("docs/{verb}.md"))).into();
    documents.push(root().join("README.md"));
    for folder in std::fs::read_dir(root().join("examples")).unwrap() {
        documents.push(folder.unwrap().path().join("README.md"));
    }
    documents.retain(|path| path.is_file());
    assert!(documents.len() > 3, "{documents:?}");
    let mut run_count = 0;
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        for Shown { command, output } in shown(&text) {
            assert_eq!(run(&command), output, "{}: sluice {command}", path.display());
            run_count += 1;
        }
    }
    assert!(run_count > 15, "{run_count}");
}
