//! The command line, and what it means.
//!
//! Knows nothing of how the parts work. Called by `main`.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// The control plane of sluice over a directory of manifests.
#[derive(Debug, Parser)]
#[command(name = "sluice-control", version)]
pub struct Arguments {
    /// The directory of Kubernetes manifests that is the cluster; changes are followed
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Where nodes subscribe, as unix:/run/sluice/control.sock
    #[arg(long, value_name = "unix:PATH", value_parser = unix_path, required_unless_present = "once")]
    pub listen: Option<PathBuf>,
    /// Whether namespaces without the label sluice.dev/dataplane are in the dataplane
    #[arg(long, value_enum, default_value_t = Dataplane::Disabled)]
    pub default_dataplane: Dataplane,
    /// The strictest mode that any policy may have, whatever it and its namespace say
    #[arg(long, value_enum, default_value_t = Cap::Enforce)]
    pub max_enforcement: Cap,
    /// Replace this file with the state, as JSON, whenever it changes
    #[arg(long, value_name = "PATH")]
    pub status_file: Option<PathBuf>,
    /// With --check: read the directory once instead of following it
    #[arg(long, requires = "check")]
    pub once: bool,
    /// With --once: compile for every node, print the problems; exit code 1 if one is an error
    #[arg(long, requires = "once")]
    pub check: bool,
}

/// Whether a namespace is in the dataplane by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dataplane {
    /// It is.
    Enabled,
    /// It is not.
    Disabled,
}

/// The cluster's cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cap {
    /// Nothing is judged.
    Off,
    /// Everything is judged, nothing refused.
    Audit,
    /// As the policies say.
    Enforce,
}

fn unix_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("write unix: and the path of the socket, as unix:/run/sluice/control.sock".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_needed_unless_the_directory_is_only_checked() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let given = parse("sluice-control --dir d --listen unix:/run/s").expect("complete");
        assert_eq!(given.listen, Some("/run/s".into()));
        assert_eq!((given.default_dataplane, given.max_enforcement), (Dataplane::Disabled, Cap::Enforce));
        assert!(parse("sluice-control --dir d").is_err());
        assert!(parse("sluice-control --dir d --listen /run/s").is_err());
        assert!(parse("sluice-control --dir d --once").is_err());
        assert!(parse("sluice-control --dir d --once --check").is_ok());
    }
}
