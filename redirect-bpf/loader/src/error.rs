//! What can go wrong: each names the thing that cannot be had, and what to do about it.

use std::io;
use std::path::PathBuf;

/// The node cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration makes no sense.
    #[error("{what}: {remedy}")]
    Config {
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A thing of the node that cannot be had.
    #[error("cannot {what}: {source}; {remedy}")]
    Cannot {
        /// What was tried.
        what: String,
        /// What to do.
        remedy: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A thing was set up and does not read back as it should.
    #[error("{what} is {found}, and must be {wanted}: {remedy}")]
    Unlike {
        /// What.
        what: String,
        /// As it is.
        found: String,
        /// As it must be.
        wanted: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The eBPF object cannot be loaded.
    #[error(
        "cannot load the eBPF programs: {0}; Linux 5.15 or later and CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed"
    )]
    Load(String),
    /// The programs lack a part that the loader knows of.
    #[error("the eBPF object has no {what} named {name}: rebuild it with `cargo xtask build-bpf`")]
    Object {
        /// `map` or `program`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A program cannot be attached.
    #[error("cannot attach {program} to {device}: {reason}; tcx links need Linux 6.6 or later")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
    /// A file of bpffs.
    #[error("cannot {what} {path}: {source}; is {path} on a bpffs of this node, and nobody else's?")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A newer version holds the node.
    #[error(
        "{path} is of BPF ABI version {version}, and this build speaks {ours}: nothing was touched. Start the newer sluice-proxy again, or this one with --roll-back, which takes over from it without a gap"
    )]
    Newer {
        /// Its version.
        version: u32,
        /// Where its pins are.
        path: PathBuf,
        /// Ours.
        ours: u32,
    },
    /// A map of the kernel.
    #[error(
        "cannot {what} map {map}: {reason}; another version may hold the pins: `uninstall` and start anew"
    )]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        reason: String,
    },
}

impl SetupError {
    pub(crate) fn cannot(what: impl Into<String>, remedy: &'static str) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Cannot { what, remedy, source }
    }
}

/// A snapshot cannot be put in force. The one before stays, but for [`ApplyError::Unsettled`].
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It does not fit.
    #[error(
        "{count} {what} do not fit into map {map}: at most {max} on one node; the rows before stay in force. {remedy}"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// What.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        max: u32,
        /// What to do.
        remedy: &'static str,
    },
    /// A map refuses.
    #[error("cannot {what} map {map}: {reason}; the rows before stay in force")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        reason: String,
    },
    /// What was written does not read back.
    #[error("{what} reads back as {found}, written was {written}")]
    ReadBack {
        /// What.
        what: &'static str,
        /// What is there.
        found: u64,
        /// What should be.
        written: u64,
    },
    /// It is in force, but not yet acknowledged.
    #[error(
        "the rows are in force, but a packet may still be judged by those before: the kernel cannot be waited for: {0}; apply them again"
    )]
    Unsettled(String),
    /// The pins.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Netlink, namespaces.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl ApplyError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
