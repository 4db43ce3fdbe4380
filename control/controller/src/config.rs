//! The command line, and what it means.
//!
//! Knows nothing of how the parts work. Called by `main`.

use crate::cluster::Access;
use crate::plan::Source;
use clap::{ArgGroup, Parser, ValueEnum};
use std::path::PathBuf;

const AFTER: &str = "\
The cluster is one of three: --in-cluster (a pod's own service account), --kubeconfig, or --dir. Of an API server it
lists and watches Namespaces, Nodes, Pods, Services, EndpointSlices, NetworkPolicies, our kinds, and Cilium's policies
and ClusterNetworkPolicy where they are defined, and writes the status of our kinds and Events, if it holds the Lease;
deploy/rbac has the role for that. Nothing is sent to a node before every kind is listed once, and while the API server is
away what was known stays in force.";

/// The control plane of sluice: what a cluster says, compiled for each node and sent to it.
#[derive(Debug, Parser)]
#[command(name = "sluice-control", version, after_help = AFTER)]
#[command(group(ArgGroup::new("cluster").required(true).args(["dir", "kubeconfig", "in_cluster"])))]
pub struct Arguments {
    /// The directory of Kubernetes manifests that is the cluster; changes are followed
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The cluster of this kubeconfig
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than its current one
    #[arg(long, value_name = "NAME", requires = "kubeconfig", conflicts_with_all = ["dir", "in_cluster"])]
    pub context: Option<String>,
    /// The cluster that this pod is in, as the pod's service account
    #[arg(long)]
    pub in_cluster: bool,
    /// The namespace of the Lease by which one of several control planes writes to the API server
    #[arg(long, value_name = "NAME", default_value = "sluice-system", conflicts_with = "dir")]
    pub namespace: String,
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
    #[arg(long, requires_all = ["check", "dir"], conflicts_with_all = ["kubeconfig", "in_cluster"])]
    pub once: bool,
    /// With --once: compile for every node, print the problems; exit code 1 if one is an error
    #[arg(long, requires = "once")]
    pub check: bool,
}

impl Arguments {
    /// Where the objects are.
    #[must_use]
    pub fn source(&self) -> Source {
        match (&self.dir, &self.kubeconfig) {
            (Some(dir), _) => Source::Directory(dir.clone()),
            (None, Some(file)) => {
                Source::Cluster(Access::Kubeconfig { file: file.clone(), context: self.context.clone() })
            }
            (None, None) => Source::Cluster(Access::InCluster),
        }
    }
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

    #[test]
    fn there_is_one_cluster() {
        let parse = |line: &str| {
            let line = format!("sluice-control {line} --listen unix:/run/s");
            Arguments::try_parse_from(line.split_whitespace()).map(|given| given.source())
        };
        assert!(matches!(parse("--dir d"), Ok(Source::Directory(_))));
        assert!(matches!(parse("--in-cluster"), Ok(Source::Cluster(Access::InCluster))));
        let Ok(Source::Cluster(Access::Kubeconfig { file, context })) = parse("--kubeconfig k --context c")
        else {
            panic!("a kubeconfig with a context");
        };
        assert_eq!((file, context), ("k".into(), Some("c".to_owned())));
        assert!(parse("").is_err());
        assert!(parse("--dir d --in-cluster").is_err());
        assert!(parse("--dir d --kubeconfig k").is_err());
        assert!(parse("--in-cluster --context c").is_err());
        assert!(parse("--in-cluster --once --check").is_err());
    }
}
