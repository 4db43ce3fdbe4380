//! A real kube-apiserver over a real etcd, on loopback, with certificates and tokens of its own, for tests of the
//! control plane.
//!
//! One for a test binary; each test takes a namespace, or a server, of its own. No kubelet and no controller runs:
//! pods are what the tests say they are, and a namespace that is deleted never goes. Found as envtest finds its
//! binaries, or where `cargo xtask setup` has put them. Called by `tests/control*.rs`.

mod assets;
mod certs;
mod link;

pub use assets::{missing, program};
pub use link::Link;

use crate::world::cleanup;
use crate::world::{Process, eventually};
use anyhow::{Context as _, Result, bail, ensure};
use certs::Certificates;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long the server may take to be ready: two seconds of a CPU, on a machine that has none to spare.
const READY: Duration = Duration::from_secs(120);
/// A port that was free may be taken before the server has it.
const TRIES: usize = 5;
/// Whoever may do everything.
const ADMIN: &str = "admin-token";
/// Where the tests' own objects are, and the control plane's account.
pub const NAMESPACE: &str = "sluice-system";
/// The account of the control plane, as deploy/rbac has it.
pub const CONTROL_ACCOUNT: &str = "sluice-control";
/// What the definitions and the roles are applied as.
const MANAGER: &str = "sluice-tests";

/// A running API server. Dropping it ends both processes and removes what they wrote.
pub struct ApiServer {
    prefix: String,
    dir: PathBuf,
    etcd: Option<Process>,
    etcd_port: u16,
    server: Option<Process>,
    port: u16,
    certificates: Certificates,
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
    next: AtomicU32,
}

impl ApiServer {
    /// Starts etcd and the server, and waits until it is ready.
    ///
    /// # Errors
    /// The binaries are missing, or do not become ready; with what they said last.
    pub fn start() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        cleanup::sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("sl-{:x}-api{number:x}", std::process::id());
        let dir = cleanup::begin(&prefix)?;
        let made = Self::in_dir(prefix.clone(), dir);
        if made.is_err() {
            cleanup::end(&prefix);
        }
        made
    }

    fn in_dir(prefix: String, dir: PathBuf) -> Result<Self> {
        let certificates = Certificates::write(&dir)?;
        fs::write(dir.join("tokens.csv"), format!("{ADMIN},admin,admin,system:masters\n"))?;
        let (etcd, etcd_port) = listening(|port| start_etcd(&dir, port))?;
        let (server, port) = listening(|port| start_server(&dir, etcd_port, port))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut api = Self {
            client: runtime.block_on(async { client(&certificates, port, ADMIN) })?,
            prefix,
            dir,
            etcd: Some(etcd),
            etcd_port,
            server: Some(server),
            port,
            certificates,
            runtime,
            next: AtomicU32::new(0),
        };
        api.write_kubeconfig("admin", ADMIN)?;
        api.wait_ready()?;
        Ok(api)
    }

    /// Installs deploy/crds and deploy/rbac, and waits until the API server serves our kinds.
    ///
    /// # Errors
    /// The API server refuses one of them, with its reason.
    pub fn install(&self) -> Result<()> {
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        for folder in ["deploy/crds", "deploy/rbac"] {
            let folder = root().join(folder);
            let manager = format!("--field-manager={MANAGER}");
            self.kubectl(&["apply", "--server-side", &manager, "-f", &folder.display().to_string()])?;
        }
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", "-f"];
        let crds = root().join("deploy/crds").display().to_string();
        self.kubectl(&[&wait[..], &[&crds]].concat())?;
        // Discovery and the OpenAPI documents, which kubectl goes by, come some seconds after.
        eventually("kubectl knows our kinds", READY, || {
            let knows =
                |kind: &str| self.kubectl_with(&["explain", kind], "").map(|said| said.status.success());
            Ok(knows("l7np")? && knows("cl7np")?)
        })
    }

    /// Where its files are, and those of the tests that belong to it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A client that may do everything.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Runs something that waits for the server.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Runs something beside the test, for as long as the server is there.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.runtime.spawn(work)
    }

    /// The kubeconfig of the administrator.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// The kubeconfig of a service account, with a token that the server itself has made.
    ///
    /// # Errors
    /// The server refuses.
    pub fn account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.token(namespace, name)?;
        self.write_kubeconfig(&format!("{namespace}-{name}"), &token)
    }

    /// A token of a service account.
    ///
    /// # Errors
    /// The server refuses.
    pub fn token(&self, namespace: &str, name: &str) -> Result<String> {
        Ok(self.kubectl(&["create", "token", "-n", namespace, name])?.trim().to_owned())
    }

    /// A kubeconfig whose token is read from a file, as a pod's is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn kubeconfig_with_token_file(&self, name: &str, file: &Path) -> Result<PathBuf> {
        self.write(name, self.port, &json!({"tokenFile": file}))
    }

    /// The kubeconfig of a service account over a way of its own, which can be cut.
    ///
    /// # Errors
    /// The server refuses, or no port is free.
    pub fn account_over_a_link(&self, namespace: &str, name: &str) -> Result<(PathBuf, Link)> {
        let link = Link::to(self.port)?;
        let token = self.token(namespace, name)?;
        let config = self.write(&format!("{name}-{}", link.port()), link.port(), &json!({"token": token}))?;
        Ok((config, link))
    }

    fn write_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.write(name, self.port, &json!({"token": token}))
    }

    fn write(&self, name: &str, port: u16, user: &Value) -> Result<PathBuf> {
        let server = format!("https://127.0.0.1:{port}");
        let cluster = json!({"server": server, "certificate-authority": self.certificates.ca});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = self.dir.join(format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// kubectl as the administrator; its output.
    ///
    /// # Errors
    /// It fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_with(arguments, "")?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "kubectl {}: {out}{err}", arguments.join(" "));
        Ok(out.into_owned())
    }

    /// kubectl as the administrator, with something on its standard input.
    ///
    /// # Errors
    /// It does not start.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let kubectl = program("kubectl").context("no kubectl is found")?;
        let stdin = self.dir.join(format!("stdin-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::write(&stdin, input)?;
        let mut command = Command::new(kubectl);
        command.env("KUBECONFIG", self.admin()).env("HOME", &self.dir).args(arguments);
        let output = command.stdin(fs::File::open(&stdin)?).output().context("kubectl does not start")?;
        fs::remove_file(stdin)?;
        Ok(output)
    }

    /// `kubectl apply --server-side` of manifests.
    ///
    /// # Errors
    /// The server refuses, with its words.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let manager = format!("--field-manager={MANAGER}");
        let arguments = ["apply", "--server-side", "--force-conflicts", &manager, "-f", "-"];
        let output = self.kubectl_with(&arguments, manifests)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Applies an object and then its status, as its author and the kubelet would. The server gives it its own uid.
    ///
    /// # Errors
    /// The server refuses, with its words.
    pub fn apply_with_status(&self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        let metadata = object["metadata"].as_object_mut().context("an object has metadata")?;
        metadata.remove("uid");
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        self.apply(&object.to_string())?;
        let Some(status) = status else { return Ok(()) };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
        let namespace = text(&object["metadata"]["namespace"]);
        let patch = json!({"status": status}).to_string();
        // Server-side apply refuses a node with two addresses of one type.
        let arguments =
            ["patch", &kind, &name, "-n", &namespace, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&arguments).map(|_| ())
    }

    /// What the server says of an object that would be created; nothing is.
    ///
    /// # Errors
    /// The server refuses, with its words.
    pub fn dry_run(&self, object: &Value) -> Result<DynamicObject> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")));
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        let object = serde_json::from_value(object.clone())?;
        Ok(self.block_on(api.create(&parameters, &object))?)
    }

    /// Makes a namespace that no other test has, with these labels.
    ///
    /// # Errors
    /// The server refuses.
    pub fn namespace(&self, labels: &Value) -> Result<String> {
        let name = format!("test-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.apply(&namespace.to_string())?;
        Ok(name)
    }

    /// Ends the server as a crash would; etcd and what is in it stay.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn stop_server(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
        }
        Ok(())
    }

    /// Starts the server again, at the address that it had.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_server(&mut self) -> Result<()> {
        self.server = Some(start_server(&self.dir, self.etcd_port, self.port)?);
        self.wait_ready()
    }

    /// Makes etcd forget every version but the newest: a watch that goes on from an older one gets 410 Gone.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn compact(&self) -> Result<()> {
        self.etcd_call("kv/range", &json!({"key": "AA=="}))
            .and_then(|answer| {
                let revision = answer["header"]["revision"].as_str().context("etcd names no revision")?;
                self.etcd_call("kv/compaction", &json!({"revision": revision, "physical": true}))
            })
            .map(|_| ())
    }

    /// etcd's gateway, which speaks JSON.
    fn etcd_call(&self, path: &str, body: &Value) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/v3/{path}", self.etcd_port);
        let output =
            Command::new("curl").args(["-sS", "--max-time", "30", "-d", &body.to_string(), &url]).output()?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(answer["error"].is_null(), "etcd: {answer}");
        Ok(answer)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let (runtime, client) = (&self.runtime, &self.client);
        let ready = || {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let answer = runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await
            });
            Ok(matches!(answer, Ok(Ok(text)) if text == "ok"))
        };
        let server = &mut self.server;
        let waited = eventually("the API server is ready", READY, || {
            if let Some(server) = server
                && !server.running()?
            {
                bail!("the API server has ended");
            }
            ready()
        });
        waited.with_context(|| self.server.as_ref().map(|server| server.tail(30)).unwrap_or_default())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop((self.server.take(), self.etcd.take()));
        cleanup::end(&self.prefix);
    }
}

/// The checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Starts something on a free port, on another one if it ends at once.
fn listening(mut start: impl FnMut(u16) -> Result<Process>) -> Result<(Process, u16)> {
    let mut said = String::new();
    for _ in 0..TRIES {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut process = start(port)?;
        let listens = eventually("it listens", READY, || {
            Ok(!process.running()? || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
        });
        if listens.is_ok() && process.running()? {
            return Ok((process, port));
        }
        said = format!("{} on port {port}:\n{}", process.name(), process.tail(30));
    }
    bail!("does not listen, tried {TRIES} times: {said}")
}

fn start_etcd(dir: &Path, port: u16) -> Result<Process> {
    let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut command = Command::new(program("etcd").context("no etcd is found")?);
    let data = dir.join(format!("etcd-{port}"));
    command.arg("--data-dir").arg(&data).args(["--unsafe-no-fsync", "--logger=zap", "--log-level=warn"]);
    for (flag, port) in [
        ("--listen-client-urls", port),
        ("--advertise-client-urls", port),
        ("--listen-peer-urls", peer),
        ("--initial-advertise-peer-urls", peer),
    ] {
        command.arg(format!("{flag}=http://127.0.0.1:{port}"));
    }
    command.arg(format!("--initial-cluster=default=http://127.0.0.1:{peer}"));
    Process::start("etcd", dir, &mut command)
}

fn start_server(dir: &Path, etcd: u16, port: u16) -> Result<Process> {
    let mut command = Command::new(program("kube-apiserver").context("no kube-apiserver is found")?);
    command.args([
        &format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        &format!("--secure-port={port}"),
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=RBAC",
        // Its controller makes the accounts that it asks for, and none runs here.
        "--disable-admission-plugins=ServiceAccount",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--profiling=false",
    ]);
    for (flag, file) in [
        ("token-auth-file", "tokens.csv"),
        ("tls-cert-file", certs::SERVER),
        ("tls-private-key-file", certs::SERVER_KEY),
        ("service-account-signing-key-file", certs::ACCOUNTS_KEY),
        ("service-account-key-file", certs::ACCOUNTS),
    ] {
        command.arg(format!("--{flag}={}", dir.join(file).display()));
    }
    Process::start("kube-apiserver", dir, &mut command)
}

fn client(certificates: &Certificates, port: u16, token: &str) -> Result<kube::Client> {
    let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse()?);
    config.root_cert = Some(vec![certificates.ca_der.clone()]);
    config.auth_info.token = Some(token.to_owned().into());
    Ok(kube::Client::try_from(config)?)
}
