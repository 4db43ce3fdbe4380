//! The namespaces: a client, a node and a server behind routed veths. All goes away with the value.
//!
//! In the node's every packet that comes in is for itself, whatever its destination, so that a proxy's socket takes what
//! is meant for the server, and its own connections may bear the client's address: the way of the product's own
//! namespace, without the eBPF programs before it. What goes to [`DIRECT`] is routed.

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};
use socket2::{Domain, Socket, Type};
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

/// The client's address.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 2);
/// The client's second one: we take no more than 4,096 connections of one address.
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 3);
/// The server's.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 98, 2, 2);
/// The server's where no proxy is on the way.
pub(crate) const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 98, 2, 3);

/// The node's, for a proxy that cannot listen for others' addresses.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 1);

/// Where the proxies run.
pub(crate) const PROXY_CORE: usize = 0;
/// Where the client and the server do.
pub(crate) const LOAD_CORE: usize = 1;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// See the file's own words.
pub(crate) struct World {
    prefix: String,
    pub(crate) client: File,
    pub(crate) node: File,
    pub(crate) server: File,
}

impl World {
    /// Builds it.
    pub(crate) fn build() -> Result<Self> {
        let prefix = format!("slp-{:x}", std::process::id());
        links(&prefix).inspect_err(|_| tear_down(&prefix))?;
        let open = |role: &str| File::open(format!("/run/netns/{prefix}-{role}"));
        let (client, node, server) = (open("client")?, open("node")?, open("server")?);
        Ok(Self { prefix, client, node, server })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        tear_down(&self.prefix);
    }
}

fn tear_down(prefix: &str) {
    for role in ["client", "server", "node"] {
        let name = format!("{prefix}-{role}");
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
}

/// Moves this thread into a namespace.
pub(crate) fn enter(netns: impl AsFd) -> Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).context("enter a namespace")
}

/// Keeps this thread, and what it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).context("the benchmark needs two cores")
}

/// A listener for whatever address the server has: it answers in its name (`IP_TRANSPARENT`).
pub(crate) fn listener(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn links(prefix: &str) -> Result<()> {
    for role in ["node", "client", "server"] {
        feed(&["ip", "netns", "add", &format!("{prefix}-{role}")], "")?;
    }
    let mut node = "link set lo up\n".to_owned();
    for (role, subnet) in [("client", 1), ("server", 2)] {
        node += &format!(
            "link add v-{role} type veth peer name eth0 netns {prefix}-{role}\nlink set v-{role} up\n\
             addr add 10.98.{subnet}.1/24 dev v-{role}\n"
        );
    }
    node += &format!(
        "rule add priority 10 to {DIRECT} lookup main\nrule add priority 10 from {DIRECT} lookup main\n\
         rule add priority 20 iif v-client lookup 100\nrule add priority 20 iif v-server lookup 100\n\
         route add local default dev lo table 100\n"
    );
    feed(&["ip", "-n", &format!("{prefix}-node"), "-batch", "-"], &node)?;
    let client = format!(
        "link set lo up\nlink set eth0 up\naddr add {CLIENT}/24 dev eth0\n\
         addr add {SECOND}/24 dev eth0\nroute add default via 10.98.1.1\n"
    );
    feed(&["ip", "-n", &format!("{prefix}-client"), "-batch", "-"], &client)?;
    let server = format!(
        "link set lo up\nlink set eth0 up\naddr add {SERVER}/24 dev eth0\naddr add {DIRECT}/24 dev eth0\n\
         route add default via 10.98.2.1\n"
    );
    feed(&["ip", "-n", &format!("{prefix}-server"), "-batch", "-"], &server)?;
    // As the product has it in its namespace: no TIME_WAIT stands in the way of a port that is used again.
    let node = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets; \
        echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/v-client/rp_filter; \
        echo 0 > /proc/sys/net/ipv4/conf/v-server/rp_filter";
    let ports =
        "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range; echo 4096 > /proc/sys/net/core/somaxconn";
    for (role, script) in [("node", node), ("node", ports), ("client", ports), ("server", ports)] {
        feed(&["ip", "netns", "exec", &format!("{prefix}-{role}"), "sh", "-c", script], "")?;
    }
    Ok(())
}

/// Runs a command with this on its standard input.
fn feed(argv: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {argv:?}"))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
