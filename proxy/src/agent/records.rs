//! Where records go once the agent has them: lines of JSON, spans, reports to control. Each is bounded and lossy.
//!
//! No verdict depends on any of it, and nothing here waits for a reader.

use crate::record::{Record, now_unix_ns};
use crate::telemetry::export::Exporter;
use crate::telemetry::settings::Settings;
use sluice_wire::pb;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Batches that wait to be written: a disk that hangs must not hold up the agent.
const BATCHES: usize = 64;

/// How often drops are spoken of.
const COMPLAIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Records {
    lines: Option<(SyncSender<Vec<Record>>, JoinHandle<()>)>,
    exporter: Option<Exporter>,
    dropped: u64,
    /// The worker's count when it was last heard.
    worker_dropped: u64,
    complained: (u64, u64),
}

impl Records {
    /// With this file, `-` for standard output, and the exporter that the environment asks for.
    pub(super) fn open(file: Option<&Path>, settings: &Settings) -> io::Result<Self> {
        let lines = file.map(open).transpose()?.map(|out| {
            let (sender, receiver) = sync_channel(BATCHES);
            // A thread of its own: files block.
            (sender, std::thread::spawn(move || write_lines(&receiver, out)))
        });
        let exporter = settings.endpoint.as_ref().map(|_| Exporter::start(settings));
        Ok(Self { lines, exporter, dropped: 0, worker_dropped: 0, complained: (0, 0) })
    }

    /// Takes a batch. Returns the report for control.
    pub(super) fn take(&mut self, records: Vec<Record>, worker_dropped: u64) -> Option<pb::FromNode> {
        // A new worker counts anew.
        let lost = worker_dropped.checked_sub(self.worker_dropped).unwrap_or(worker_dropped);
        self.worker_dropped = worker_dropped;
        if let Some(exporter) = &self.exporter {
            exporter.take(&records);
        }
        self.write(records, lost)
    }

    /// The same of what has no span: flows that the kernel decides.
    pub(super) fn write(&mut self, records: Vec<Record>, lost: u64) -> Option<pb::FromNode> {
        self.dropped += lost;
        if records.is_empty() && lost == 0 {
            return None;
        }
        let records_of = records.iter().map(flow_record).collect();
        let report = pb::Report { records: records_of, dropped: lost, kernel: None };
        if let Some((lines, _)) = &self.lines
            && let Err(TrySendError::Full(lost)) = lines.try_send(records)
        {
            self.dropped += lost.len() as u64;
        }
        self.complain();
        Some(pb::FromNode { message: Some(pb::from_node::Message::Report(report)) })
    }

    fn complain(&mut self) {
        let every = u64::try_from(COMPLAIN.as_nanos()).unwrap_or(u64::MAX);
        let now = now_unix_ns();
        if self.dropped > self.complained.0 && now.saturating_sub(self.complained.1) > every {
            self.complained = (self.dropped, now);
            tracing::warn!(dropped = self.dropped, "records were dropped: more came than could be written");
        }
    }

    /// Writes and exports what is left.
    pub(super) async fn close(&mut self) {
        if let Some((lines, writer)) = self.lines.take() {
            drop(lines);
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        if let Some(exporter) = self.exporter.take() {
            exporter.close().await;
        }
    }
}

fn open(file: &Path) -> io::Result<Box<dyn Write + Send>> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    Ok(Box::new(std::fs::OpenOptions::new().create(true).append(true).open(file)?))
}

fn write_lines(batches: &Receiver<Vec<Record>>, out: impl Write) {
    let mut out = io::BufWriter::new(out);
    while let Ok(batch) = batches.recv() {
        let written = batch
            .iter()
            .try_for_each(|record| writeln!(out, "{}", record.to_json()))
            .and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write records");
        }
    }
}

/// What carries it: what the proxy reads comes over TCP.
fn transport(protocol: &str) -> String {
    match protocol {
        "udp" | "sctp" => protocol.to_ascii_uppercase(),
        "icmp" | "icmpv6" => "ICMP".to_owned(),
        other if other.is_empty() || other.bytes().all(|byte| byte.is_ascii_digit()) => "other".to_owned(),
        _ => "TCP".to_owned(),
    }
}

/// As control reports it.
fn flow_record(record: &Record) -> pb::FlowRecord {
    let name = |end: &crate::record::End| {
        if end.pod.is_empty() { end.ip.clone() } else { format!("{}/{}", end.namespace, end.pod) }
    };
    pb::FlowRecord {
        time_unix_nano: record.end_unix_ns,
        source: name(&record.source),
        destination: name(&record.destination),
        port: record.destination.port,
        protocol: transport(&record.protocol),
        method: record.method.clone(),
        path: record.path.clone(),
        verdict: record.verdict.clone(),
        reason: record.reason.clone(),
        policy: record.policy.clone(),
        rule: record.rule.clone(),
        nearest_miss: record.nearest_miss.clone(),
        service: record
            .service
            .as_ref()
            .map_or_else(String::new, |service| format!("{}/{}", service.namespace, service.name)),
    }
}
