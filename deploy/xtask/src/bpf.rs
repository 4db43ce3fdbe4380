//! Builds the eBPF object from its source, or says whether the one in the checkout is what its source gives.
//!
//! The object is checked in, so that everybody builds the workspace with stable Rust alone. It is the same byte
//! for byte wherever it is built with the same compiler, and with no other: so the versions are fixed here, and
//! where Debian has moved on that is said and nothing is claimed. Called by `build-bpf` and by `test`.

use crate::place::Place;
use crate::{setup, step};
use anyhow::{Context as _, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's compiler and the sources of its `core`: a pair, where rustup's toolchains lack the second half.
const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "llvm-22-dev"];
const RUSTC: &str = "/usr/bin/rustc";
const LLVM: &str = "/usr/lib/llvm-22";
/// What the object in the checkout was built with.
const RUSTC_VERSION: &str = "1.96.0";
const LLVM_VERSION: &str = "22.1.8";
const LINKER_VERSION: &str = "0.13.0";
/// Where the object is, and what cargo calls it.
const OBJECT: &str = "redirect-bpf/loader/src/sluice.bpf.o";
const PROGRAMS: &str = "redirect-bpf/programs";
/// What only benchmarks load: never checked in, never shipped.
const TRIALS: &str = "redirect-bpf/trials";
const TARGET: &str = "bpfel-unknown-none";
/// How the compiler begins the name of a function.
const MANGLED: &[u8] = b"_RNv";

/// Builds it into the checkout, or with `check` beside it and compares. Returns why it cannot be known, if it
/// cannot.
pub(crate) fn run(place: &Place, check: bool) -> anyhow::Result<Option<String>> {
    if let Some(lacking) = packages(place)? {
        return Ok(Some(lacking));
    }
    let other = other_versions(place)?;
    if let (Some(other), true) = (&other, check) {
        return Ok(Some(other.clone()));
    }
    let linker = linker(place)?;
    let built = build(place, &linker, PROGRAMS, "sluice")?;
    let object = place.root.join(OBJECT);
    if !check {
        std::fs::write(&object, &built).with_context(|| format!("write {}", object.display()))?;
        step::say(&format!("{OBJECT}: {} bytes", built.len()));
        return Ok(other.map(|other| format!("the object is built, but {other}")));
    }
    let there = std::fs::read(&object).with_context(|| format!("read {}", object.display()))?;
    if there == built {
        return Ok(None);
    }
    let kept = place.cache.join("sluice.bpf.o.built");
    std::fs::write(&kept, &built)?;
    bail!(
        "{OBJECT} is not what its source gives ({} bytes there, {} built, kept as {}): run `cargo xtask build-bpf` \
         and commit the object",
        there.len(),
        built.len(),
        kept.display()
    )
}

/// Builds the programs of the benchmarks' trials, out of the checkout: where they are.
pub(crate) fn trials(place: &Place) -> anyhow::Result<PathBuf> {
    if let Some(lacking) = packages(place)? {
        bail!("the benchmark's own eBPF programs cannot be built: {lacking}");
    }
    let built = build(place, &linker(place)?, TRIALS, "trials")?;
    let path = place.target.join("trials.bpf.o");
    std::fs::write(&path, built).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Installs the compiler where it is missing; why not, where it may not.
fn packages(place: &Place) -> anyhow::Result<Option<String>> {
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| version(package).is_none()).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    step::say("the eBPF toolchain: some 220 MB to download");
    setup::install(place, &missing)
}

/// The version of an installed package, without epoch and Debian's part.
fn version(package: &str) -> Option<String> {
    let mut query = Command::new("dpkg-query");
    let output = query.args(["-W", "-f=${db:Status-Status} ${Version}", package]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    upstream(text.strip_prefix("installed ")?)
}

/// `1:22.1.8-1~deb12u1` is 22.1.8, `1.96.0+dfsg1-1` is 1.96.0.
fn upstream(version: &str) -> Option<String> {
    let (_, version) = version.split_once(':').unwrap_or(("", version));
    version.split(['-', '+', '~']).next().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Why the bytes cannot be the same here.
fn other_versions(place: &Place) -> anyhow::Result<Option<String>> {
    let output =
        place.command(RUSTC).arg("--version").output().with_context(|| format!("{RUSTC} does not start"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rustc = text.split(' ').nth(1).unwrap_or("?").to_owned();
    let llvm = version("llvm-22-dev").unwrap_or_default();
    if rustc == RUSTC_VERSION && llvm == LLVM_VERSION {
        return Ok(None);
    }
    Ok(Some(format!(
        "{RUSTC} is {rustc} with LLVM {llvm}, and the object in the checkout is made by {RUSTC_VERSION} with LLVM \
         {LLVM_VERSION}: its bytes cannot be compared here"
    )))
}

/// bpf-linker, built once per version.
fn linker(place: &Place) -> anyhow::Result<PathBuf> {
    let root = place.cache.join(format!("tools/bpf-linker-{LINKER_VERSION}-llvm22"));
    let linker = root.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    let arguments =
        ["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"];
    let mut install = place.cargo(&arguments);
    install.args(["--features", "llvm-22", "--root"]).arg(&root);
    install.current_dir(&place.cache).env("CARGO_TARGET_DIR", place.cache.join("bpf-linker"));
    install.env("LLVM_PREFIX", LLVM).env("LLVM_SYS_221_PREFIX", LLVM);
    step::command("cargo install bpf-linker", &mut install)?;
    ensure!(linker.exists(), "{} was not installed", linker.display());
    Ok(linker)
}

/// The bytes of a crate's object.
fn build(place: &Place, linker: &Path, programs: &str, binary: &str) -> anyhow::Result<Vec<u8>> {
    // Beside what else this checkout builds: two checkouts that share a target directory take each other's artefacts.
    let own = place.target != place.cache.join("target");
    let target = if own { &place.target } else { &place.cache }.join("bpf");
    // Before the flags, which name the registry's directories.
    let mut fetch = place.cargo(&["fetch", "--locked"]);
    step::command("the eBPF programs' crates", fetch.current_dir(place.root.join(programs)))?;
    let mut cargo =
        place.cargo(&["build", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"]);
    cargo.current_dir(place.root.join(programs)).env("CARGO_TARGET_DIR", &target);
    cargo.env("RUSTC", RUSTC).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(place, linker)?.join("\x1f"));
    step::command("the eBPF programs", &mut cargo)?;
    let stripped = target.join(binary).with_extension("bpf.o");
    std::fs::copy(target.join(TARGET).join("release").join(binary), &stripped).context("the built object")?;
    // BTF stays: the maps are in it. DWARF is of no use to the kernel and half a megabyte.
    let mut strip = place.command(Path::new(LLVM).join("bin/llvm-strip"));
    step::command("llvm-strip", strip.arg("-g").arg(&stripped))?;
    let object = std::fs::read(&stripped).context("the stripped object")?;
    // A mangled name has a hash of the checkout's place in it.
    let mangled = object.windows(MANGLED.len()).any(|window| window == MANGLED);
    ensure!(
        !mangled,
        "a function of the eBPF programs was not inlined, so its name differs from place to place: \
         mark it #[inline(always)], or give it a name of its own with #[unsafe(no_mangle)]"
    );
    Ok(object)
}

/// The compiler's flags. Whatever depends on where things are on this machine gets another name.
fn flags(place: &Place, linker: &Path) -> anyhow::Result<Vec<String>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=/sluice", place.root.display()),
    ];
    // Each registry's directory has a hash of its address in its name.
    for registry in std::fs::read_dir(&sources).into_iter().flatten().flatten() {
        flags.push(format!("--remap-path-prefix={}=/crates", registry.path().display()));
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_version_is_what_counts() {
        assert_eq!(upstream("1:22.1.8-1~deb12u1").as_deref(), Some("22.1.8"));
        assert_eq!(upstream("1.96.0+dfsg1-1~deb12u2").as_deref(), Some("1.96.0"));
        assert_eq!(upstream(""), None);
    }
}
