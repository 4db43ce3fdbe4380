//! What kube-proxy writes into a node, for a list of Services: its chains and rules, in both of its modes.
//!
//! By the rules that kube-proxy 1.33 prints, for ClusterIP and external addresses; no node ports, no affinity.

use anyhow::Result;
use sluice_policy::{Backend, Protocol, Service};
use sluice_tests::world::Family;
use sluice_tests::{World, world::Netns};
use std::fmt::Write;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

/// How kube-proxy translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `--proxy-mode=nftables`: a table of its own with verdict maps.
    Nftables,
    /// `--proxy-mode=iptables`: `KUBE-*` chains, written with `iptables-restore`.
    Iptables,
}

impl Mode {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];
}

fn of<T>(family: Family, v4: T, v6: T) -> T {
    if family == Family::V4 { v4 } else { v6 }
}

/// Where pods have their addresses (`--cluster-cidr`): what comes from elsewhere is masqueraded.
fn cluster(family: Family) -> &'static str {
    of(family, "10.77.0.0/16", "fd77::/48")
}

/// One port of one address, as rules have it.
struct Port<'a> {
    /// Stands for kube-proxy's hash.
    id: String,
    name: String,
    address: IpAddr,
    protocol: &'static str,
    port: u16,
    backends: Vec<&'a Backend>,
}

fn ports(services: &[Service], family: Family) -> Vec<Port<'_>> {
    let is = |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
    let mut out = Vec::new();
    for service in services {
        for address in service.addresses.iter().filter(|address| is(address)) {
            for port in &service.ports {
                let backends: Vec<&Backend> = port.backends.iter().filter(|b| is(&b.address)).collect();
                let protocol = match port.protocol {
                    Protocol::Udp => "udp",
                    Protocol::Sctp => "sctp",
                    _ => "tcp",
                };
                let name = format!("{}/{}", service.namespace, service.name);
                let id = format!("{:08X}", out.len());
                out.push(Port { id, name, address: *address, protocol, port: port.port, backends });
            }
        }
    }
    out
}

/// Puts the rules for these Services in force on a node, in place of those before.
pub(crate) fn translate(world: &World, node: &str, mode: Mode, services: &[Service]) -> Result<()> {
    let netns = &world.node(node).netns;
    for family in Family::BOTH {
        let ports = ports(services, family);
        match mode {
            Mode::Nftables => feed(netns, &["nft", "-f", "-"], &nftables(family, &ports))?,
            Mode::Iptables => {
                let program = of(family, "iptables-restore", "ip6tables-restore");
                feed(netns, &[program, "--noflush"], &iptables(family, &ports))?;
            }
        }
    }
    Ok(())
}

fn feed(netns: &Netns, command: &[&str], text: &str) -> Result<()> {
    let mut child =
        netns.command(command[0]).args(&command[1..]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().expect("piped").write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn nftables(family: Family, ports: &[Port<'_>]) -> String {
    let (table, kind) = of(family, ("ip", "ipv4_addr"), ("ip6", "ipv6_addr"));
    let mut chains = String::new();
    let (mut vips, mut empty) = (Vec::new(), Vec::new());
    for Port { id, name, address, protocol, port, backends } in ports {
        let at = format!("{address} . {protocol} . {port}");
        if backends.is_empty() {
            empty.push(format!("{at} comment \"{name}\" : goto reject-chain"));
            continue;
        }
        let service = format!("service-{id}-{name}/{protocol}/");
        vips.push(format!("{at} : goto {service}"));
        let mut choices = Vec::new();
        for (number, backend) in backends.iter().enumerate() {
            let chain = format!("endpoint-{id}-{name}/{protocol}/__{number}");
            let to = SocketAddr::new(backend.address, backend.port);
            _ = write!(
                chains,
                "chain {chain} {{
                    {table} saddr {} jump mark-for-masquerade
                    meta l4proto {protocol} dnat to {to}
                }}\n",
                backend.address
            );
            choices.push(format!("{number} : goto {chain}"));
        }
        _ = write!(
            chains,
            "chain {service} {{
                {table} daddr {address} {protocol} dport {port} {table} saddr != {} jump mark-for-masquerade
                numgen random mod {} vmap {{ {} }}
            }}\n",
            cluster(family),
            backends.len(),
            choices.join(", ")
        );
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        some => format!("elements = {{ {} }}", some.join(", ")),
    };
    format!(
        "table {table} kube-proxy
        delete table {table} kube-proxy
        table {table} kube-proxy {{
            chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
            chain reject-chain {{ reject; }}
            {chains}
            map service-ips {{ type {kind} . inet_proto . inet_service : verdict; {} }}
            map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; {} }}
            chain services {{ {table} daddr . meta l4proto . th dport vmap @service-ips; }}
            chain masquerading {{
                meta mark & 0x4000 == 0 return
                meta mark set meta mark xor 0x4000
                masquerade fully-random
            }}
            chain service-endpoints-check {{ {table} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
            chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
            chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
            chain filter-forward {{
                type filter hook forward priority -110;
                ct state new jump service-endpoints-check
            }}
        }}",
        elements(&vips),
        elements(&empty)
    )
}

fn iptables(family: Family, ports: &[Port<'_>]) -> String {
    let (mut filter, mut chains, mut nat) = (String::new(), String::new(), String::new());
    let host = |address: IpAddr| format!("{address}/{}", of(family, 32, 128));
    for Port { id, name, address, protocol, port, backends } in ports {
        let comment = format!("-m comment --comment \"{name} cluster IP\"");
        let matched = format!("-m {protocol} -p {protocol} -d {} --dport {port}", host(*address));
        if backends.is_empty() {
            _ = writeln!(
                filter,
                "-A KUBE-SERVICES -m comment --comment \"{name} has no endpoints\" {matched} -j REJECT"
            );
            continue;
        }
        _ = writeln!(chains, ":KUBE-SVC-{id} - [0:0]");
        _ = writeln!(nat, "-A KUBE-SERVICES {comment} {matched} -j KUBE-SVC-{id}");
        _ = writeln!(nat, "-A KUBE-SVC-{id} {comment} {matched} ! -s {} -j KUBE-MARK-MASQ", cluster(family));
        for (number, backend) in backends.iter().enumerate() {
            let sep = format!("KUBE-SEP-{id}-{number}");
            let to = SocketAddr::new(backend.address, backend.port);
            let left = backends.len() - number;
            let by = match left {
                1 => String::new(),
                _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            _ = writeln!(chains, ":{sep} - [0:0]");
            _ = writeln!(nat, "-A KUBE-SVC-{id} -m comment --comment \"{name} -> {to}\" {by}-j {sep}");
            _ = writeln!(
                nat,
                "-A {sep} -m comment --comment {name} -s {} -j KUBE-MARK-MASQ",
                host(backend.address)
            );
            _ = writeln!(
                nat,
                "-A {sep} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT --to-destination {to}"
            );
        }
    }
    tables(&filter, &chains, &nat)
}

/// The tables with these rules in them.
fn tables(filter: &str, chains: &str, nat: &str) -> String {
    format!(
        "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
-F FORWARD
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
{filter}-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}-F PREROUTING
-F OUTPUT
-F POSTROUTING
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
{nat}COMMIT
"
    )
}
