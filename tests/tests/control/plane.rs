//! A control plane over the API server: the product's own process, its status file, and a node that subscribes.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sluice_tests::apiserver::ApiServer;
use sluice_tests::world::{Process, binary};
use sluice_wire::{feed_client, hello, pb};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Nothing takes a tenth of this on a machine that does nothing else.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A control plane. Dropping it kills it.
pub(crate) struct Plane {
    pub(crate) process: Process,
    dir: PathBuf,
}

impl Plane {
    /// One over a cluster.
    pub(crate) fn over(server: &ApiServer, kubeconfig: &Path) -> Result<Self> {
        Self::start(server, &["--kubeconfig", &kubeconfig.display().to_string()])
    }

    pub(crate) fn start(server: &ApiServer, source: &[&str]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = server.dir().join(format!("control-{number}"));
        std::fs::create_dir(&dir)?;
        let mut command = Command::new(binary("sluice-control")?);
        command.args(source).env("RUST_LOG", "info").env("HOME", &dir);
        command.arg(format!("--listen=unix:{}", dir.join("s").display()));
        command.arg("--status-file").arg(dir.join("status.json"));
        let process = Process::start(format!("control-{number}"), server.dir(), &mut command)?;
        Ok(Self { process, dir })
    }

    /// Where nodes subscribe.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub(crate) fn status(&self) -> Value {
        let text = std::fs::read_to_string(self.dir.join("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Waits until its status says so.
    pub(crate) fn until(
        &mut self,
        what: &str,
        within: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + within;
        loop {
            let status = self.status();
            if is(&status) {
                return Ok(status);
            }
            if Instant::now() > end || !self.process.running()? {
                bail!("not so within {within:?}: {what}\n{status:#}\n{}", self.process.tail(30));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it has compiled something.
    pub(crate) fn ready(&mut self) -> Result<Value> {
        self.until("the objects are compiled", DEADLINE, |status| status["reads"].as_u64() > Some(0))
    }

    /// The snapshot that a node gets which subscribes now.
    pub(crate) fn snapshot(&self, server: &ApiServer, node: &str) -> Result<pb::Snapshot> {
        let socket = self.socket();
        let work = async {
            let connect = move |_: tonic::transport::Uri| {
                let socket = socket.clone();
                async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
            };
            let channel = tonic::transport::Endpoint::from_static("http://control.invalid")
                .connect_with_connector(tower::service_fn(connect))
                .await?;
            let (say, said) = mpsc::channel(4);
            say.send(hello(node, 0)).await?;
            let mut stream = feed_client(channel).subscribe(ReceiverStream::new(said)).await?.into_inner();
            let message = stream.message().await?.and_then(|message| message.message);
            let Some(pb::to_node::Message::Snapshot(snapshot)) = message else { bail!("no snapshot") };
            Ok(snapshot)
        };
        server.block_on(async { tokio::time::timeout(DEADLINE, work).await })?
    }

    /// How often it has listed a kind.
    pub(crate) fn lists(&self, kind: &str) -> usize {
        let begins = format!("{kind}: listed");
        self.process.lines_since(0).iter().filter(|line| line.contains(&begins)).count()
    }
}

/// The policy's line in the status, by its `Kind/namespace/name`.
pub(crate) fn policy<'s>(status: &'s Value, name: &str) -> Option<&'s Value> {
    status["policies"].as_array()?.iter().find(|policy| policy["policy"] == name)
}

/// A pod that runs on a node, with an address.
pub(crate) fn pod(server: &ApiServer, namespace: &str, name: &str, app: &str, address: &str) -> Result<()> {
    server.apply_with_status(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "c",
            "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }))
}

/// A policy for the pods of an app.
pub(crate) fn l7(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"name": "read", "ports": [{"port": "http"}],
            "rules": {"http": [{"methods": ["GET"], "path": {"type": "PathPrefix", "value": "/api"}}]}}]},
    })
}
