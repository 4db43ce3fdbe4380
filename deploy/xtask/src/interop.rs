//! Clients and servers that nobody here wrote, for the tests of interoperation: programs of Debian unpacked into the
//! cache (with the libraries that this system lacks), packages of PyPI and modules of Go by lock files with hashes.
//!
//! Where each is in the end: `interop/current` in the cache, which the tests look into first and PATH after it. The pins
//! stand in tests/interop alone; Debian's are its release's, which apt checks. Called by `setup` and by `test`.

use crate::apiserver::{Fnv, go, link};
use crate::place::Place;
use crate::step;
use anyhow::{Context as _, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The lock files, from the root.
const PINS: &str = "tests/interop";
/// Of Debian: one package a line.
const DEBIAN: &str = "debian.txt";
/// Of PyPI: with the hash of every file.
const PYTHON: &str = "requirements.txt";
/// Of Go, and what is built beside it.
const GO: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// What is built of Go, and from which package.
const GO_PROGRAMS: [(&str, &str); 3] = [
    ("interop-client", "google.golang.org/grpc/interop/client"),
    ("interop-server", "google.golang.org/grpc/interop/server"),
    ("httpd", "."),
];
/// The directory in the cache that the tests look into.
const CURRENT: &str = "interop/current";

/// Gets what is missing. Returns why it cannot be had, if it cannot: the tests of the others run.
pub(crate) fn ready(place: &Place) -> anyhow::Result<Option<String>> {
    let current = place.cache.join(CURRENT);
    fs::create_dir_all(&current).with_context(|| format!("create {}", current.display()))?;
    let mut lacking = Vec::new();
    for (name, pins, get) in [
        ("debian", &[DEBIAN][..], debian as fn(&Place, &Path) -> anyhow::Result<()>),
        ("python", &[PYTHON], python),
        ("go", &GO, go_programs),
    ] {
        let folder = place.cache.join(format!("interop/{name}-{:016x}", key(place, pins)?));
        match had(place, &folder, get) {
            Ok(()) => link(&folder, &current.join(name))?,
            Err(error) => lacking.push(format!("the peers of {name}: {error:#}")),
        }
    }
    Ok((!lacking.is_empty()).then(|| lacking.join("; ")))
}

/// A name for what these files pin.
fn key(place: &Place, pins: &[&str]) -> anyhow::Result<u64> {
    let mut key = Fnv::default();
    for pin in pins {
        let file = place.root.join(PINS).join(pin);
        key.take(&fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(key.0)
}

/// Fills a folder once. Whoever is stopped half-way leaves one that is begun anew.
fn had(place: &Place, folder: &Path, get: fn(&Place, &Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let done = folder.join(".done");
    if done.exists() {
        return Ok(());
    }
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    get(place, folder)?;
    fs::write(done, "").context("mark it as done")
}

/// The packages and what of theirs this system lacks, unpacked: installed, they would change the machine.
fn debian(place: &Place, folder: &Path) -> anyhow::Result<()> {
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "this is no Debian: have what {PINS}/{DEBIAN} names on PATH"
    );
    let list = fs::read_to_string(place.root.join(PINS).join(DEBIAN))?;
    let packages: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
    let archives = folder.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let option = format!("Dir::Cache::Archives={}", archives.display());
    let download = |what: &str| {
        let mut apt = place.command("apt-get");
        // Without locks: nothing is installed, and nobody need be kept from installing.
        apt.args(["-q", "-y", "install", "--download-only", "--no-install-recommends", "--reinstall"]);
        apt.args(["-o", &option, "-o", "Debug::NoLocking=1"]).args(&packages);
        step::command(what, apt.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let what = "apt-get download, of programs to speak with (some 100 MB)";
    if download(what).is_err() {
        step::command("apt-get update", place.command("apt-get").args(["-q", "update"]))?;
        download(what)?;
    }
    step::step("unpacking them", |_| {
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = place.command("dpkg");
                let done = unpack.arg("-x").arg(&path).arg(folder).output()?;
                ensure!(
                    done.status.success(),
                    "{}: {}",
                    path.display(),
                    String::from_utf8_lossy(&done.stderr)
                );
            }
        }
        fs::remove_dir_all(&archives).context("remove the packages")
    })
}

/// An environment with them, and nothing but what the lock file has the hash of.
fn python(place: &Place, folder: &Path) -> anyhow::Result<()> {
    let mut make = place.command("python3");
    step::command("python3 -m venv, for peers in Python", make.args(["-m", "venv", "--clear"]).arg(folder))?;
    let mut install = place.command(folder.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    install
        .args(["--only-binary", ":all:", "--require-hashes", "-r"])
        .arg(place.root.join(PINS).join(PYTHON));
    step::command("pip install, of peers in Python", &mut install)
}

/// The programs, each from the package of its own project; go.sum has the hash of every module.
fn go_programs(place: &Place, folder: &Path) -> anyhow::Result<()> {
    let (go, _) = go(place)?;
    for (name, package) in GO_PROGRAMS {
        let mut build = place.command(&go);
        build
            .current_dir(place.root.join(PINS))
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-buildvcs=false");
        build.args(["build", "-v", "-trimpath", "-mod=readonly", "-ldflags", "-s -w", "-o"]);
        let binary: PathBuf = folder.join(name);
        step::command(&format!("building {name}, a peer in Go"), build.arg(binary).arg(package))?;
    }
    Ok(())
}
