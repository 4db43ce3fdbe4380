//! Each test that docs/security.md names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// Names of functions that the lines before make tests.
fn tests() -> BTreeSet<String> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&home.join("src"), &mut files);
    sources(&home.join("tests"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = function.and_then(|rest| rest.split_once('(')) {
                if marked {
                    names.insert(name.to_owned());
                }
                marked = false;
            } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            }
        }
    }
    names
}

#[test]
fn each_test_that_the_threat_table_names_is_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = fs::read_to_string(path).expect("the table");
    let tests = tests();
    let mut rows = 0;
    for line in text.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |")) {
        let last = line.trim_end_matches(" |").rsplit("| ").next().expect("a cell");
        let name = last.trim_matches('`');
        assert!(tests.contains(name), "no test is named {name}: {line}");
        rows += 1;
    }
    let threats = |line: &&str| line.starts_with("| ") && !line.contains(" test |");
    let before_fuzzing = text.split("## Fuzzing").next().expect("the tables");
    assert_eq!(rows, before_fuzzing.lines().filter(threats).count(), "a row without a test");
    // Each bound that is named is one.
    let limits = include_str!("../src/limits.rs");
    for name in text.split('`').filter(|word| {
        word.len() > 6 && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    }) {
        assert!(limits.contains(&format!("pub const {name}:")), "no limit is named {name}");
    }
}
