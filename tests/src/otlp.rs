//! An OTLP receiver: what a collector would be sent, kept for the test to look at.
//!
//! gRPC by tonic, the messages by opentelemetry-proto; nothing of the proxy's own encoder is in it. Called by the
//! span tests.

use crate::world::Netns;
use anyhow::{Result, bail};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as AnyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span with the resource it came under.
#[derive(Clone, Debug)]
pub struct Received {
    /// The resource's attributes.
    pub resource: Vec<KeyValue>,
    /// The span.
    pub span: Span,
}

impl Received {
    /// An attribute of the span, as text.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<String> {
        find(&self.span.attributes, key)
    }

    /// An attribute of the resource, as text.
    #[must_use]
    pub fn resource_attribute(&self, key: &str) -> Option<String> {
        find(&self.resource, key)
    }
}

fn find(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    Some(match value.value.as_ref()? {
        AnyValue::StringValue(text) => text.clone(),
        AnyValue::IntValue(number) => number.to_string(),
        AnyValue::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    })
}

#[derive(Clone, Debug, Default)]
struct Store(Arc<Mutex<Vec<Received>>>);

impl Store {
    fn all(&self) -> Vec<Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl TraceService for Store {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource_spans in request.into_inner().resource_spans {
            let resource = resource_spans.resource.unwrap_or_default().attributes;
            for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                all.push(Received { resource: resource.clone(), span });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A receiver that listens on loopback of a namespace. Dropping it stops it.
#[derive(Debug)]
pub struct Receiver {
    store: Store,
    endpoint: String,
    // Dropping the runtime ends the server.
    _runtime: tokio::runtime::Runtime,
}

impl Receiver {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(netns: &Netns) -> Result<Self> {
        let listener = netns.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let store = Store::default();
        let service = TraceServiceServer::new(store.clone());
        let listener = runtime.block_on(async { tokio::net::TcpListener::from_std(listener) })?;
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Ok(Self { store, endpoint, _runtime: runtime })
    }

    /// Where it listens, as `OTEL_EXPORTER_OTLP_ENDPOINT` wants it.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Everything received so far.
    #[must_use]
    pub fn all(&self) -> Vec<Received> {
        self.store.all()
    }

    /// Waits for a span that satisfies the condition.
    ///
    /// # Errors
    /// After the deadline, with the spans there were.
    pub fn wait(&self, what: &str, deadline: Duration, is: impl Fn(&Received) -> bool) -> Result<Received> {
        let end = Instant::now() + deadline;
        loop {
            let all = self.all();
            if let Some(found) = all.iter().find(|received| is(received)) {
                return Ok(found.clone());
            }
            if Instant::now() > end {
                bail!("no span of {what} within {deadline:?}; there were {}: {all:#?}", all.len());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
