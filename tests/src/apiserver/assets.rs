//! Where the binaries of a control plane are: what envtest's variables name, PATH, and last what xtask has made.
//!
//! Knows nothing of how they are started. Called by the API server's start and by the harness.

use std::path::{Path, PathBuf};

/// What an API server for tests is made of.
const PROGRAMS: [&str; 3] = ["kube-apiserver", "etcd", "kubectl"];

/// A program by its name.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let asset = var(&format!("TEST_ASSET_{}", name.to_uppercase().replace('-', "_")));
    let assets = var("KUBEBUILDER_ASSETS").map(|folder| folder.join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name)).collect::<Vec<_>>();
    let cache = var("SLUICE_CACHE").or_else(|| var("HOME").map(|home| home.join(".cache/sluice")));
    let made = cache.map(|cache| cache.join("apiserver/current").join(name));
    asset.into_iter().chain(assets).chain(on_path).chain(made).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Which of them is missing, and how it is had.
#[must_use]
pub fn missing() -> Option<String> {
    let lacking = PROGRAMS.into_iter().find(|name| program(name).is_none())?;
    Some(format!("needs {lacking}: run `cargo xtask setup`, or set KUBEBUILDER_ASSETS as for envtest"))
}
