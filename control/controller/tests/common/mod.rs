//! A control plane over a temporary directory, and nodes that subscribe to it over its real socket.
//!
//! Called by the tests of this crate alone.

// Each test binary uses some of it.
#![allow(dead_code)]

use serde_json::Value;
use sluice_compile::{Enforcement, Rollout};
use sluice_control::follow::Timing;
use sluice_control::plan::{Settings, Source};
use sluice_control::run::{Config, run};
use sluice_policy::Snapshot;
use sluice_wire::{ack, feed_client, hello, pb};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// Nothing here takes a tenth of this; it only ends a test that would hang.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// HTTP/2's own default; the client's would be megabytes.
const WINDOW: u32 = 65_535;

pub(crate) const WORLD: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { sluice.dev/dataplane: enabled } }
---
apiVersion: v1
kind: Pod
metadata: { name: cart, namespace: shop, labels: { app: cart } }
spec: { nodeName: node-a, containers: [ { name: c, image: c } ] }
status: { phase: Running, podIP: 10.0.1.2, podIPs: [ { ip: 10.0.1.2 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: billing, namespace: shop, labels: { app: billing } }
spec: { nodeName: node-b, containers: [ { name: c, image: c } ] }
status: { phase: Running, podIP: 10.0.2.2, podIPs: [ { ip: 10.0.2.2 } ] }
";

/// A policy for the cart, which runs on node-a.
pub(crate) fn policy(path: &str) -> String {
    format!(
        "apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: {{ name: cart, namespace: shop }}
spec:
  podSelector: {{ matchLabels: {{ app: cart }} }}
  policyTypes: [Ingress]
  ingress:
  - name: read
    from: [ {{ podSelector: {{ matchLabels: {{ app: billing }} }} }} ]
    ports: [ {{ port: 8080, protocol: TCP }} ]
    rules: {{ http: [ {{ methods: [GET], path: {{ type: PathPrefix, value: {path} }} }} ] }}
"
    )
}

/// A control plane with the world above and one policy.
pub(crate) struct Control {
    pub(crate) home: TempDir,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<anyhow::Result<()>>,
}

impl Control {
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join("objects")).expect("a directory");
        fs::write(home.path().join("objects/world.yaml"), WORLD).expect("written");
        fs::write(home.path().join("objects/policy.yaml"), policy("/api")).expect("written");
        Self::over(home, 100).await
    }

    /// Over a directory that is there.
    pub(crate) async fn over(home: TempDir, generation: u64) -> Self {
        // What an earlier control wrote would be taken for this one's word.
        let _ = fs::remove_file(home.path().join("status.json"));
        let shutdown = CancellationToken::new();
        let rollout = Rollout::AsLabelled { default_dataplane: false, max_enforcement: Enforcement::Enforce };
        let config = Config {
            settings: Settings {
                source: Source::Directory(home.path().join("objects")),
                rollout,
                namespace: String::new(),
            },
            listen: home.path().join("control.sock"),
            status_file: Some(home.path().join("status.json")),
            generation,
            timing: Timing { rescan: Duration::from_millis(200), ..Timing::default() },
        };
        let running = tokio::spawn(run(config, shutdown.clone()));
        let control = Self { home, shutdown, running };
        control.until(|status| status["reads"].as_u64() >= Some(1)).await;
        control
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes as `kubectl` and editors do: aside, then renamed.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let draft = self.path("objects/.draft");
        fs::write(&draft, text).expect("written");
        fs::rename(draft, self.path("objects").join(name)).expect("renamed");
    }

    pub(crate) fn status(&self) -> Value {
        let text = fs::read_to_string(self.path("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Waits until the status file says so.
    pub(crate) async fn until(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                let status = self.status();
                if holds(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let Ok(status) = tokio::time::timeout(DEADLINE, waiting).await else {
            panic!("the status never came to it: {:#}", self.status());
        };
        status
    }

    pub(crate) async fn node(&self, name: &str, last_generation: u64) -> Node {
        Node::subscribe(&self.path("control.sock"), hello(name, last_generation)).await.expect("subscribed")
    }

    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.running).await.expect("ends in time");
        ended.expect("no panic").expect("no error");
        self.home
    }
}

/// A node's end of the feed.
pub(crate) struct Node {
    pub(crate) to_control: mpsc::Sender<pb::FromNode>,
    pub(crate) from_control: Streaming<pb::ToNode>,
}

impl Node {
    pub(crate) async fn subscribe(socket: &Path, first: pb::FromNode) -> Result<Self, tonic::Status> {
        let socket = socket.to_owned();
        let connect = move |_: tonic::transport::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        };
        let channel = tonic::transport::Endpoint::from_static("http://control.invalid")
            // The least that HTTP/2 knows: a node that does not read is felt soon.
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect_with_connector(tower::service_fn(connect))
            .await
            .expect("connected");
        let (to_control, messages) = mpsc::channel(16);
        to_control.send(first).await.expect("open");
        let stream = feed_client(channel).subscribe(ReceiverStream::new(messages)).await?;
        Ok(Self { to_control, from_control: stream.into_inner() })
    }

    pub(crate) async fn message(&mut self) -> Result<Option<pb::ToNode>, tonic::Status> {
        tokio::time::timeout(DEADLINE, self.from_control.message()).await.expect("in time")
    }

    /// The next snapshot, decoded as a node decodes it.
    pub(crate) async fn next(&mut self) -> Snapshot {
        let message = self.message().await.expect("no error").expect("open").message;
        let Some(pb::to_node::Message::Snapshot(snapshot)) = message else { panic!("no snapshot") };
        sluice_wire::decode(snapshot).expect("control sends what nodes take")
    }

    pub(crate) async fn send(&self, message: pb::Ack) {
        self.to_control.send(ack(message)).await.expect("open");
    }

    /// As an agent does that is well.
    pub(crate) async fn applied(&self, generation: u64, attached: &str) {
        let kernel = pb::Kernel { generation, ..pb::Kernel::default() };
        self.to_control.send(sluice_wire::kernel(kernel)).await.expect("open");
        let attached = vec![attached.to_owned()];
        self.send(pb::Ack { generation, applied: true, attached, ..pb::Ack::default() }).await;
    }
}
