//! Sends spans by OTLP over gRPC, in batches, from a bounded queue. A collector that is dead costs a count.
//!
//! Knows nothing of where records come from.

use super::settings::Settings;
use super::span;
use crate::record::Record;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// Spans that wait (`OTEL_BSP_MAX_QUEUE_SIZE`'s default is 2,048; a node sees more than a process).
const QUEUE: usize = 8192;

/// Spans of one export (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`'s default).
const BATCH: usize = 512;

/// How long the last export may take when the agent stops.
const LAST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Record>,
    lost: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts the task that sends. The settings must name an endpoint.
    #[must_use]
    pub fn start(settings: &Settings) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let task = tokio::spawn(export(records, settings.clone(), lost.clone()));
        Self { queue, lost, task }
    }

    /// Takes those records that have a span; drops and counts what does not fit.
    pub fn take(&self, records: &[Record]) {
        for record in records.iter().filter(|record| span::has_span(record)) {
            if self.queue.try_send(record.clone()).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Spans that were dropped or could not be sent.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Sends what waits, and ends.
    pub async fn close(self) {
        drop(self.queue);
        let _ = tokio::time::timeout(LAST, self.task).await;
    }
}

async fn export(mut records: mpsc::Receiver<Record>, settings: Settings, lost: Arc<AtomicU64>) {
    let endpoint = settings.endpoint.clone().unwrap_or_default();
    let mut client = match Endpoint::from_shared(endpoint.clone()) {
        // Lazy: a collector that is not there yet is dialled again at each export.
        Ok(target) => TraceServiceClient::new(target.timeout(settings.timeout).connect_lazy()),
        Err(error) => {
            tracing::error!(endpoint, %error, "no spans are exported: OTEL_EXPORTER_OTLP_ENDPOINT is no address");
            return;
        }
    };
    let mut failing = false;
    let mut batch = Vec::with_capacity(BATCH);
    while records.recv_many(&mut batch, BATCH).await > 0 {
        // Waits for company, not longer than told.
        let full = async { while batch.len() < BATCH && records.recv_many(&mut batch, BATCH).await > 0 {} };
        let _ = tokio::time::timeout(settings.delay, full).await;
        let spans = batch.len() as u64;
        let request =
            ExportTraceServiceRequest { resource_spans: span::resource_spans(&batch, &settings.resource) };
        batch.clear();
        match send(&mut client, request, &settings).await {
            Ok(rejected) => {
                failing = false;
                lost.fetch_add(rejected, Ordering::Relaxed);
            }
            Err(status) => {
                // Nothing is sent again: what waits behind it is newer.
                lost.fetch_add(spans, Ordering::Relaxed);
                if !failing {
                    tracing::warn!(endpoint, %status, "cannot export spans; they are dropped until it works again");
                }
                failing = true;
            }
        }
    }
}

async fn send(
    client: &mut TraceServiceClient<Channel>,
    message: ExportTraceServiceRequest,
    settings: &Settings,
) -> Result<u64, tonic::Status> {
    let mut request = tonic::Request::new(message);
    for (key, value) in &settings.headers {
        let key = key.to_ascii_lowercase();
        if let (Ok(key), Ok(value)) =
            (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value))
        {
            request.metadata_mut().insert(key, value);
        }
    }
    let sent = tokio::time::timeout(settings.timeout, client.export(request)).await;
    let response = sent.map_err(|_| tonic::Status::deadline_exceeded("no answer"))??;
    let partial = response.into_inner().partial_success;
    Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
}
