//! Where the API server is, and as whom it is spoken to.
//!
//! Knows nothing of what is asked. Called once at start.

use anyhow::Context as _;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::PathBuf;
use std::time::Duration;

/// A connection that is not there by then is tried again: a network that drops packets answers nothing.
const CONNECT: Duration = Duration::from_secs(10);

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As a pod: the address from the environment, the token from its service account, read again as it is renewed.
    InCluster,
    /// By a kubeconfig, and a context of it other than its current one.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// The context.
        context: Option<String>,
    },
}

/// The way to an API server. What it is made of is the business of this folder, and of the module that writes.
pub struct Client(pub(super) kube::Client);

impl Client {
    /// What it is made of.
    pub(crate) fn client(&self) -> kube::Client {
        self.0.clone()
    }
}

impl Access {
    /// A client. Nothing is asked yet, so that an API server that is away is no error.
    ///
    /// # Errors
    /// The kubeconfig, the token or the certificates cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut config = match self {
            Self::InCluster => Config::incluster().context(
                "not in a pod of a cluster with a service account's token: give --kubeconfig, or --dir",
            )?,
            Self::Kubeconfig { file, context } => {
                let given = Kubeconfig::read_from(file)
                    .with_context(|| format!("{}: no kubeconfig", file.display()))?;
                let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                Config::from_custom_kubeconfig(given, &options)
                    .await
                    .with_context(|| format!("{}: not a usable kubeconfig", file.display()))?
            }
        };
        config.connect_timeout = Some(CONNECT);
        let client = kube::Client::try_from(config);
        client.map(Client).context("the API server's certificates or credentials cannot be used")
    }
}
