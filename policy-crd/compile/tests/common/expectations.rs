//! Cilium's expectations: who may send what, judged by the engine for both ends and by the kernel's rows.
//!
//! One case is one line of the corpus, for every pair of pods that it means. Knows nothing of manifests.

use crate::clients::{End, ends, server_name};
use serde_json::Value;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_policy::port::icmp_port;
use sluice_policy::{
    Decision, Direction, Facts, Protocol, Reason, RowAction, RowEntry, SideVerdict, Verdict,
};

/// The port of a case that names none: any will do.
const ANY_PORT: u64 = 80;
/// The type of an echo request (RFC 792).
const ECHO: u8 = 8;

/// What is sent.
enum Sent {
    /// Nothing but packets.
    Packets,
    /// A request.
    Request(Said),
    /// A TLS handshake with this server name.
    Tls(&'static str),
}

/// One line of the corpus.
pub(crate) struct Case<'a> {
    line: &'a Value,
    defaults: &'a Value,
}

impl<'a> Case<'a> {
    pub(crate) fn new(line: &'a Value, defaults: &'a Value) -> Self {
        Self { line, defaults }
    }

    fn word(&self, field: &str) -> &'a str {
        let given = self.line[field].as_str().or_else(|| self.defaults[field].as_str());
        given.unwrap_or_default()
    }

    /// Judges it for every pair of ends. How many there are, or what is wrong.
    pub(crate) fn judge(&self, cluster: &Cluster) -> Result<usize, String> {
        let (from, to) = (ends(self.word("from")), ends(self.word("to")));
        let pairs: Vec<(&End, &End)> =
            from.iter().flat_map(|f| to.iter().map(move |t| (f, t))).filter(|(f, t)| f != t).collect();
        if pairs.is_empty() {
            return Err(format!("nobody is {} or {}", self.word("from"), self.word("to")));
        }
        for (from, to) in &pairs {
            self.pair(cluster, from, to).map_err(|wrong| format!("{} -> {}: {wrong}", from.name, to.name))?;
        }
        Ok(pairs.len())
    }

    fn sent(&self, to: &End) -> Result<(Protocol, u16, Sent), String> {
        if self.word("proto") == "icmp" {
            return Ok((Protocol::Icmp, icmp_port(false, ECHO), Sent::Packets));
        }
        let port = self.line["port"].as_u64().unwrap_or(ANY_PORT);
        let port = u16::try_from(port).map_err(|error| error.to_string())?;
        if !self.word("sni").is_empty() {
            let name = server_name(self.word("sni")).ok_or("nobody has this server name")?;
            return Ok((Protocol::Tcp, port, Sent::Tls(name)));
        }
        let headers = self.line["headers"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let said = Said::Http {
            method: self.word("method").to_owned(),
            target: Some(self.word("path")).filter(|path| !path.is_empty()).unwrap_or("/").to_owned(),
            host: Some(self.line["authority"].as_str().unwrap_or(&to.host).to_owned()),
            headers: headers.map(|(name, value)| (name.clone(), text(value))).collect(),
        };
        Ok((Protocol::Tcp, port, Sent::Request(said)))
    }

    fn pair(&self, cluster: &Cluster, from: &End, to: &End) -> Result<(), String> {
        let (protocol, port, sent) = self.sent(to)?;
        let ask = |said: Said| {
            let (from, to) = (from.name.clone(), to.name.clone());
            let query = Query { from, to, protocol, port: Port::Number(port), said };
            cluster.ask(&query).map_err(|error| error.to_string())
        };
        let connected = ask(Said::Nothing)?;
        let said = match sent {
            Sent::Packets => connected.clone(),
            Sent::Request(said) => ask(said)?,
            Sent::Tls(name) => {
                let address = |end: &End| end.address.parse().map_err(|_| "no address");
                let facts = Facts::Tls(Some(name));
                cluster.snapshot().judge(address(from)?, address(to)?, protocol, port, facts)
            }
        };
        let rows = Rows::of(cluster, from, to, protocol, port)?;
        self.compare(&connected, &said, &rows)
    }

    /// The verdict of the side that the corpus names, or of the one that decided.
    fn side<'v>(&self, verdict: &'v Verdict) -> &'v SideVerdict {
        match self.word("at") {
            "ingress" => &verdict.ingress,
            "egress" => &verdict.egress,
            _ => verdict.deciding(),
        }
    }

    fn compare(&self, connected: &Verdict, said: &Verdict, rows: &Rows) -> Result<(), String> {
        let dropped = |reason: Reason| {
            let side = self.side(connected);
            side.decision == Decision::Deny && side.reason == reason && rows.denied(self.word("at"))
        };
        let through = connected.decision() == Decision::Allow && rows.passed();
        let refused = |reasons: &[Reason]| {
            said.decision() == Decision::Deny && reasons.contains(&said.deciding().reason)
        };
        let want = self.word("want");
        let right = match want {
            // The application's own refusal is none of ours.
            "ok" | "app-4xx" | "200" => through && said.decision() == Decision::Allow,
            "l7-403" | "403" => {
                through && rows.proxied() && refused(&[Reason::NoRuleMatched, Reason::DenyRule])
            }
            "tls-reset" => through && rows.proxied() && refused(&[Reason::NoRuleMatched]),
            "drop-default" => dropped(Reason::DefaultDeny),
            "drop-deny" => dropped(Reason::DenyRule),
            "deny" => connected.decision() == Decision::Deny && rows.denied(""),
            other => return Err(format!("nobody knows what \"{other}\" wants")),
        };
        let judged = self.line["l7"] != true || rows.proxied();
        if right && judged {
            return Ok(());
        }
        Err(format!(
            "want {want}: connected {:?}, said {:?}, {rows:?}",
            self.side(connected),
            self.side(said)
        ))
    }
}

/// What the kernel does at each end that is an endpoint.
#[derive(Debug)]
struct Rows {
    egress: Option<RowAction>,
    ingress: Option<RowAction>,
}

impl Rows {
    fn of(cluster: &Cluster, from: &End, to: &End, protocol: Protocol, port: u16) -> Result<Self, String> {
        let snapshot = cluster.snapshot();
        let row = |end: &End, peer: &End, direction: Direction| -> Result<Option<RowAction>, String> {
            let address = |end: &End| end.address.parse().map_err(|_| "no address".to_owned());
            let Some(endpoint) = snapshot.endpoint_at(address(end)?) else { return Ok(None) };
            let class = snapshot.class_of(address(peer)?);
            let here = |row: &RowEntry| {
                row.profile == endpoint.profile
                    && row.direction == direction
                    && row.class == class
                    && row.protocol == protocol
                    && u32::from(row.ports.port) >> (16 - row.ports.len)
                        == u32::from(port) >> (16 - row.ports.len)
            };
            let longest = snapshot.rows().filter(here).max_by_key(|row| row.ports.len);
            // A key that is not there is denied.
            Ok(Some(longest.map_or(RowAction::Deny, |row| row.row.action)))
        };
        Ok(Self { egress: row(from, to, Direction::Egress)?, ingress: row(to, from, Direction::Ingress)? })
    }

    fn all(&self) -> [Option<RowAction>; 2] {
        [self.egress, self.ingress]
    }

    fn passed(&self) -> bool {
        !self.all().contains(&Some(RowAction::Deny))
    }

    fn proxied(&self) -> bool {
        self.all().contains(&Some(RowAction::ToProxy))
    }

    /// Whether this side, or any, denies.
    fn denied(&self, at: &str) -> bool {
        match at {
            "egress" => self.egress == Some(RowAction::Deny),
            "ingress" => self.ingress == Some(RowAction::Deny),
            _ => !self.passed(),
        }
    }
}
