//! The proxies: how each is started with the same policy, on the same core, in the same namespace.
//!
//! All bind their side to the server to the client's address. What is not installed is left out, and said.

use crate::ours::{self, Told};
use crate::server::ports;
use crate::world::{DIRECT, NODE, PROXY_CORE, SERVER, World, pin};
use anyhow::{Context as _, Result};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::process::{Child, Command};

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Floor,
    Haproxy,
    Nginx,
    Envoy,
    Ours,
    /// With 1,000 policies.
    Many,
    /// Another build of ours, to look at a change: `SLUICE_FORMER` is its binary.
    Former,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Direct,
        Self::Floor,
        Self::Haproxy,
        Self::Nginx,
        Self::Envoy,
        Self::Ours,
        Self::Many,
        Self::Former,
    ];

    /// As an argument names it.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Floor => "floor",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Ours => "ours",
            Self::Many => "policies",
            Self::Former => "former",
        }
    }

    /// As the table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Floor => "floor: a copy",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
            Self::Ours => "sluice",
            Self::Many => "sluice, 1,000 policies",
            Self::Former => "sluice, another build",
        }
    }

    /// The program, if it is installed.
    fn program(self) -> Option<PathBuf> {
        let variable = match self {
            Self::Haproxy => "SLUICE_HAPROXY",
            Self::Nginx => "SLUICE_NGINX",
            Self::Envoy => "SLUICE_ENVOY",
            Self::Former => "SLUICE_FORMER",
            Self::Ours | Self::Many => return Some(env!("CARGO_BIN_EXE_sluice-proxy").into()),
            Self::Direct | Self::Floor => return std::env::current_exe().ok(),
        };
        let named = std::env::var_os(variable).map(PathBuf::from);
        let usual = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
        let usual = usual.iter().map(|folder| Path::new(folder).join(self.key()));
        named.into_iter().chain(usual).find(|path| path.is_file())
    }
}

/// One that runs.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) pid: Option<u32>,
    /// Where its HTTP/1.1 is served, and its HTTP/2.
    pub(crate) one: SocketAddr,
    pub(crate) two: SocketAddr,
    told: Option<Arc<Told>>,
    // Killed when dropped; the folder goes after it.
    _child: Option<Child>,
    _folder: Option<tempfile::TempDir>,
}

impl Peer {
    /// Starts it; `None`: it is not installed.
    pub(crate) async fn start(kind: Kind, place: u16, world: &World) -> Result<Option<Self>> {
        let Some(program) = kind.program() else { return Ok(None) };
        let (one, two) = ports(place);
        let server = match kind {
            Kind::Direct => DIRECT,
            // It has no way to listen for an address that is not its own.
            Kind::Nginx => NODE,
            _ => SERVER,
        };
        let at = |port| SocketAddr::new(IpAddr::V4(server), port);
        let mut peer =
            Self { kind, pid: None, one: at(one), two: at(two), told: None, _child: None, _folder: None };
        pin(PROXY_CORE)?;
        let child = match kind {
            Kind::Direct => return Ok(Some(peer)),
            Kind::Ours | Kind::Many | Kind::Former => {
                let others = if kind == Kind::Many { 999 } else { 0 };
                let (child, told) = ours::run(program, [one, two], others, world).await?;
                peer.told = Some(told);
                child
            }
            Kind::Floor => {
                let ports = [one, two].map(|port| port.to_string());
                spawn(&program, &["floor", &ports[0], &ports[1]])?
            }
            Kind::Haproxy | Kind::Nginx | Kind::Envoy => {
                let folder = tempfile::tempdir()?;
                let (config, arguments) = configured(kind, (one, two), folder.path());
                std::fs::write(folder.path().join("config.yaml"), config)?;
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                peer._folder = Some(folder);
                spawn(&program, &arguments)?
            }
        };
        peer.pid = child.id();
        peer._child = Some(child);
        Ok(Some(peer))
    }

    /// Says what was lost on the way.
    pub(crate) fn complain(&self) {
        if let Some(told) = &self.told {
            let (records, dropped) =
                (told.records.load(Ordering::Relaxed), told.dropped.load(Ordering::Relaxed));
            eprintln!("{}: {records} records came, {dropped} were dropped", self.kind.name());
        }
    }
}

/// Dies with this thread, which is the one that runs everything here.
fn spawn(program: &Path, arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    // Debian's packages may have been unpacked aside, with what they need beside them.
    if let Some(usr) =
        program.ancestors().nth(2).filter(|usr| usr.ends_with("usr") && *usr != Path::new("/usr"))
    {
        command.env("LD_LIBRARY_PATH", usr.join("lib").join(format!("{}-linux-gnu", std::env::consts::ARCH)));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().with_context(|| format!("{} does not start", program.display()))
}

fn configured(kind: Kind, ports: (u16, u16), folder: &Path) -> (String, Vec<String>) {
    let file = folder.join("config.yaml").display().to_string();
    let arguments = |all: &[&str]| all.iter().map(|argument| (*argument).to_owned()).collect();
    let place = folder.display().to_string();
    match kind {
        Kind::Haproxy => (haproxy(ports), arguments(&["-db", "-q", "-f", &file])),
        Kind::Nginx => (nginx(ports, &place), arguments(&["-p", &place, "-c", &file, "-e", "stderr"])),
        _ => (
            envoy(ports),
            arguments(&["-c", &file, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]),
        ),
    }
}

fn haproxy((one, two): (u16, u16)) -> String {
    let way = |port: u16, proto: &str, reuse: &str| {
        format!(
            "listen on{port}\n  http-reuse {reuse}\n  bind 0.0.0.0:{port} transparent{proto}\n  acl public path_reg ^/public/.*$\n\
             \x20 acl items path_reg ^/api/v[0-9]+/items$\n  http-request allow if METH_GET public\n\
             \x20 acl post method POST\n  http-request allow if post items\n  http-request deny deny_status 403\n\
             \x20 source 0.0.0.0 usesrc clientip\n  server server {SERVER}:{port}{proto} pool-low-conn 1024\n"
        )
    };
    format!(
        "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode http\n  timeout connect 10s\n\
         \x20 timeout client 60s\n  timeout server 60s\n{}{}",
        // Each as it costs least: measured.
        way(one, "", "never"),
        way(two, " proto h2", "safe")
    )
}

fn nginx((one, two): (u16, u16), folder: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {folder}/{name};\n"))
        .collect();
    format!(
        r#"user root;
worker_processes 1;
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
{temporary}  access_log off;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  http2_max_concurrent_streams 256;
  map "$request_method:$uri" $allowed {{
    default 0;
    "~^GET:/public/.*$" 1;
    "~^POST:/api/v[0-9]+/items$" 1;
  }}
  upstream one {{ server {SERVER}:{one}; keepalive 256; keepalive_requests 1000000000; }}
  upstream two {{ server {SERVER}:{two}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 0.0.0.0:{one};
    location / {{
      if ($allowed = 0) {{ return 403; }}
      proxy_pass http://one;
      proxy_bind $remote_addr transparent;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_max_temp_file_size 0;
    }}
  }}
  server {{
    listen 0.0.0.0:{two} http2;
    location / {{
      if ($allowed = 0) {{ return 403; }}
      grpc_pass grpc://two;
      grpc_bind $remote_addr transparent;
    }}
  }}
}}
"#
    )
}

fn envoy((one, two): (u16, u16)) -> String {
    let way = |port: u16, codec: &str, protocol: &str| {
        let listener = format!(
            r#"
  - name: on{port}
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: {port} }} }}
    transparent: true
    listener_filters:
    - name: envoy.filters.listener.original_src
      typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: on{port}
          codec_type: {codec}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: to{port}, timeout: 0s }} }} ]
          http_filters:
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  public:
                    principals: [ {{ any: true }} ]
                    permissions:
                    - and_rules:
                        rules:
                        - header: {{ name: ":method", string_match: {{ exact: GET }} }}
                        - url_path: {{ path: {{ safe_regex: {{ regex: "/public/.*" }} }} }}
                  items:
                    principals: [ {{ any: true }} ]
                    permissions:
                    - and_rules:
                        rules:
                        - header: {{ name: ":method", string_match: {{ exact: POST }} }}
                        - url_path: {{ path: {{ safe_regex: {{ regex: "/api/v[0-9]+/items" }} }} }}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}"#
        );
        let cluster = format!(
            r#"
  - name: to{port}
    type: STATIC
    connect_timeout: 10s
    circuit_breakers: {{ thresholds: [ {{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }} ] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol}: {{}} }}
    load_assignment:
      cluster_name: to{port}
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: {SERVER}, port_value: {port} }} }} }} }} ] }} ]"#
        );
        (listener, cluster)
    };
    let (first, second) =
        (way(one, "HTTP1", "http_protocol_options"), way(two, "HTTP2", "http2_protocol_options"));
    format!("static_resources:\n  listeners:{}{}\n  clusters:{}{}\n", first.0, second.0, first.1, second.1)
}
