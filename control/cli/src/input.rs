//! Manifests as texts: files, directories, standard input.
//!
//! A text is kept as it was read, so that what is wrong in it can be drawn, and standard input is read once. Knows
//! nothing of what is in a manifest.

use anyhow::{Context, Result, bail, ensure};
use sluice_crd::{Loaded, MAX_FILE_BYTES};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What standard input is called in findings.
pub(crate) const STDIN: &str = "<stdin>";

/// One text and the name of its file.
pub(crate) struct Text {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Reads every path, `-` for standard input, in this order.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Text>> {
    let mut out = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            ensure!(
                out.iter().all(|text: &Text| text.name != STDIN),
                "standard input is given twice: read it once"
            );
            out.push(Text { name: STDIN.to_owned(), text: stdin()? });
            continue;
        }
        let files = match sluice_crd::manifests(path) {
            Ok(files) if files.is_empty() => {
                bail!("{} has no *.yaml, *.yml or *.json: give a directory of manifests", path.display())
            }
            Ok(files) => files,
            Err(problem) => bail!("{problem}"),
        };
        for file in files {
            match sluice_crd::read_manifest(&file) {
                Ok(text) => out.push(Text { name: file.display().to_string(), text }),
                Err(problem) => bail!("{problem}"),
            }
        }
    }
    Ok(out)
}

/// Loads the texts as one cluster, so that an object given in two of them is told.
/// Policies that name no namespace are of this one, if one is given.
pub(crate) fn load(texts: &[Text], namespace: Option<&str>) -> Loaded {
    sluice_crd::load_texts_in(texts.iter().map(|text| (text.name.as_str(), text.text.as_str())), namespace)
}

fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).context("standard input")?;
    ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "standard input has more than {MAX_FILE_BYTES} bytes");
    String::from_utf8(bytes).context("standard input is not UTF-8: give manifests")
}
