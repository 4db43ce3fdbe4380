//! The shared cases as data: what Kubernetes is told at each step, and what must come of every pair and port.
//!
//! The cases speak IPv4 alone. Every pod has an IPv6 address beside it, with the IPv4 one in its last four bytes,
//! and every `ipBlock` a twin, so that both families have the same verdicts. Knows nothing of packets.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The ports that every pod serves, on each protocol.
pub(crate) const PORTS: [u16; 2] = [80, 81];
/// The UDP port on which everything passes: what arrives there says that what was sent before has arrived too.
pub(crate) const MARKER: u16 = 9;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "TCP" => Self::Tcp,
            "UDP" => Self::Udp,
            "SCTP" => Self::Sctp,
            other => bail!("no protocol {other}"),
        })
    }
}

/// One case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Its number and what it is about.
    pub(crate) name: String,
    /// Its steps, in order.
    pub(crate) steps: Vec<Step>,
}

/// A pod of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CasePod {
    /// `namespace/name`.
    pub(crate) key: String,
    /// Its address in the case.
    pub(crate) v4: Ipv4Addr,
}

impl CasePod {
    /// Its other address.
    pub(crate) fn v6(&self) -> Ipv6Addr {
        twin(self.v4)
    }

    /// The node it is on: neighbours in the list are on different ones.
    pub(crate) fn node(&self) -> &'static str {
        if self.v4.octets()[3].is_multiple_of(2) { "n2" } else { "n1" }
    }
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its pods.
    pub(crate) pods: Vec<CasePod>,
    /// Everything that Kubernetes has.
    pub(crate) objects: Vec<Value>,
    /// What must come of each pair and port.
    pub(crate) cells: Vec<Cell>,
}

/// One pair of pods and a port; the verdicts of both sides.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// Who opens, by its place among the pods.
    pub(crate) from: usize,
    /// To whom.
    pub(crate) to: usize,
    /// On what.
    pub(crate) protocol: Protocol,
    /// And where.
    pub(crate) port: u16,
    /// Whether the destination accepts it.
    pub(crate) ingress: bool,
    /// Whether the source may.
    pub(crate) egress: bool,
}

/// Every case of the corpus.
pub(crate) fn read(text: &str) -> Result<Vec<Case>> {
    let cases: Vec<Value> = serde_json::from_str(text).context("the corpus is JSON")?;
    cases.iter().map(case).collect()
}

fn case(case: &Value) -> Result<Case> {
    let name = format!(
        "{:03} {}",
        case["n"].as_u64().unwrap_or(0),
        case["description"].as_str().unwrap_or_default()
    );
    let steps = case["steps"].as_array().context("a case has steps")?;
    let steps = steps.iter().map(step).collect::<Result<_>>().with_context(|| name.clone())?;
    Ok(Case { name, steps })
}

fn step(step: &Value) -> Result<Step> {
    let pods = step["pods"].as_array().context("a step has pods")?;
    let pods: Vec<CasePod> = pods.iter().map(pod).collect::<Result<_>>()?;
    let place =
        |key: &str| pods.iter().position(|pod| pod.key == key).with_context(|| format!("no pod {key}"));
    let mut cells = Vec::new();
    for (service, rows) in step["table"].as_object().context("a step has a table")? {
        let (protocol, port) = service.split_once('/').context("a table is PROTOCOL/PORT")?;
        let (protocol, port) = (Protocol::parse(protocol)?, port.parse()?);
        for (from, row) in rows.as_object().context("a table has rows")? {
            let from = place(from)?;
            let words = row.as_str().context("a row is text")?.split_whitespace();
            for (to, word) in step["to_order"].as_array().context("there is an order")?.iter().zip(words) {
                let to = place(to.as_str().context("a pod is text")?)?;
                let (ingress, egress) = verdicts(word)?;
                cells.push(Cell { from, to, protocol, port, ingress, egress });
            }
        }
    }
    Ok(Step { objects: objects(step, &pods)?, pods, cells })
}

/// Ingress and egress of a cell. A pod reaches itself whatever the policies say.
fn verdicts(word: &str) -> Result<(bool, bool)> {
    Ok(match word {
        "..." | "###" => (true, true),
        "X.X" => (false, true),
        ".XX" => (true, false),
        "XXX" => (false, false),
        other => bail!("a cell {other:?}: this test knows none like it"),
    })
}

fn pod(pod: &Value) -> Result<CasePod> {
    let text = |key: &str| pod[key].as_str().with_context(|| format!("a pod has a {key}"));
    Ok(CasePod { key: text("key")?.to_owned(), v4: text("ip")?.parse()? })
}

fn objects(step: &Value, pods: &[CasePod]) -> Result<Vec<Value>> {
    let namespaces = step["namespaces"].as_object().context("a step has namespaces")?.iter().map(|(name, labels)| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    });
    let mut out: Vec<Value> = namespaces.collect();
    for (pod, of) in pods.iter().zip(step["pods"].as_array().into_iter().flatten()) {
        let (namespace, name) = pod.key.split_once('/').context("a key is namespace/name")?;
        out.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": of["labels"]},
            "spec": {"nodeName": pod.node(), "containers": [{"name": "c", "ports": ports()}]},
            "status": {"podIP": pod.v4, "podIPs": [{"ip": pod.v4}, {"ip": pod.v6()}], "phase": "Running"},
        }));
    }
    for policy in step["policies"].as_array().into_iter().flatten() {
        let mut policy = policy.clone();
        policy["apiVersion"] = "networking.k8s.io/v1".into();
        policy["kind"] = "NetworkPolicy".into();
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for rule in policy["spec"][direction].as_array_mut().into_iter().flatten() {
                if let Some(peers) = rule[peers].as_array_mut() {
                    let twins: Vec<Value> = peers.iter().filter_map(twin_block).collect();
                    peers.extend(twins);
                }
            }
        }
        out.push(policy);
    }
    out.push(marker());
    Ok(out)
}

/// The address that stands for an IPv4 one.
fn twin(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = v4.octets().map(u16::from);
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, a << 8 | b, c << 8 | d)
}

fn twin_block(peer: &Value) -> Option<Value> {
    let block = peer.get("ipBlock")?;
    let except: Vec<Value> = block["except"].as_array().into_iter().flatten().map(twin_cidr).collect();
    Some(json!({"ipBlock": {"cidr": twin_cidr(&block["cidr"]), "except": except}}))
}

fn twin_cidr(cidr: &Value) -> Value {
    let parse = || {
        let (address, length) = cidr.as_str()?.split_once('/')?;
        Some(format!("{}/{}", twin(address.parse().ok()?), length.parse::<u8>().ok()? + 96))
    };
    // What is no CIDR stays as it is: the objects' reader says what is wrong with it.
    parse().map_or_else(|| cidr.clone(), Value::from)
}

/// Lets the marker pass, whatever the case's policies say; it says nothing of another port.
fn marker() -> Value {
    let port = json!([{"udp": {"destinationPort": {"number": MARKER}}}]);
    let rule = |peers: &str| json!([{"name": "marker", "action": "Accept", peers: [{"namespaces": {}}], "protocols": port}]);
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "marker"},
        "spec": {"tier": "Admin", "priority": 0, "subject": {"namespaces": {}},
            "ingress": rule("from"), "egress": rule("to")}})
}

/// The ports with the names that the corpus gives them.
fn ports() -> Vec<Value> {
    let each = |port: u16| {
        ["TCP", "UDP", "SCTP"].into_iter().map(move |protocol| {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": port, "protocol": protocol})
        })
    };
    PORTS.into_iter().flat_map(each).collect()
}
