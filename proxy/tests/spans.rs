//! Spans as a collector gets them: names, parents, resources; and a collector that is not there.

mod common;

use common::{OK, Recorder, World, shop, soon};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use sluice_proxy::telemetry::export::Exporter;
use sluice_proxy::telemetry::settings::Settings;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn settings(endpoint: &str) -> Settings {
    Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.to_owned()),
        "OTEL_BSP_SCHEDULE_DELAY" => Some("10".to_owned()),
        "OTEL_RESOURCE_ATTRIBUTES" => Some("k8s.cluster.name=here".to_owned()),
        _ => None,
    })
    .expect("fine")
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let value = attributes.iter().find(|a| a.key == key).and_then(|a| a.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text,
        _ => "",
    }
}

fn number(span: &Span, key: &str) -> i64 {
    let value = span.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::IntValue(number)) => *number,
        _ => -1,
    }
}

#[tokio::test]
async fn a_request_is_one_span_under_its_caller() {
    let (sender, mut exports) = mpsc::channel(4);
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let endpoint = format!("http://{}", incoming.local_addr().expect("bound"));
    tokio::spawn(
        Server::builder()
            .add_service(TraceServiceServer::new(Collector(sender)))
            .serve_with_incoming(incoming),
    );
    let settings = settings(&endpoint);
    let exporter = Exporter::start(&settings);
    let server = Recorder::start(OK).await;
    let mut world = World::sampled(&shop(), server.at, settings.sampler()).await;
    let mut client = world.connect().await;
    let parent =
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: v=1\r\n";
    client.ask(format!("GET /api/v1?x=y HTTP/1.1\r\nHost: cart:80\r\n{parent}\r\n")).await;
    client.ask("BREW /pot HTTP/1.1\r\nHost: cart\r\n\r\n").await;
    let records = [world.record().await, world.record().await];
    exporter.take(&records);
    let mut spans = Vec::new();
    while spans.len() < 2 {
        let export = soon("an export", exports.recv()).await.expect("the collector lives");
        for of in export.resource_spans {
            let resource = of.resource.expect("a resource");
            assert_eq!(text(&resource.attributes, "k8s.pod.name"), "cart", "the observed workload");
            assert_eq!(text(&resource.attributes, "k8s.namespace.name"), "shop");
            assert_eq!(text(&resource.attributes, "service.name"), "cart");
            assert_eq!(text(&resource.attributes, "k8s.cluster.name"), "here");
            spans.extend(of.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let [allowed, denied] = spans.try_into().expect("two");
    assert_eq!((allowed.name.as_str(), allowed.kind), ("GET", SpanKind::Server.into()));
    assert_eq!(sluice_proxy::record::hex(&allowed.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(sluice_proxy::record::hex(&allowed.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(allowed.trace_state, "v=1");
    assert!(
        server.seen().contains(&sluice_proxy::record::hex(&allowed.span_id)),
        "the server's parent is this span"
    );
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/api/v1"),
        ("url.scheme", "http"),
        ("server.address", "cart"),
        ("client.address", "127.0.0.9"),
        ("network.protocol.version", "1.1"),
        ("security_rule.name", "frontend"),
        ("security_rule.ruleset.name", "L7NetworkPolicy/shop/cart"),
        ("sluice.verdict", "allow"),
        ("sluice.verdict.reason", "rule_matched"),
        ("error.type", ""),
    ] {
        assert_eq!(text(&allowed.attributes, key), value, "{key}");
    }
    assert_eq!(number(&allowed, "http.response.status_code"), 200);
    assert!(allowed.start_time_unix_nano > 0 && allowed.end_time_unix_nano >= allowed.start_time_unix_nano);
    assert_eq!((denied.name.as_str(), text(&denied.attributes, "http.request.method")), ("HTTP", "_OTHER"));
    assert_eq!(text(&denied.attributes, "sluice.verdict"), "deny");
    assert_eq!(text(&denied.attributes, "sluice.verdict.reason"), "no_rule_matched");
    assert_eq!(number(&denied, "http.response.status_code"), 403);
    assert!(denied.parent_span_id.is_empty(), "a root span");
    assert_eq!(exporter.lost(), 0);
    exporter.close().await;
}

#[tokio::test]
async fn a_dead_collector_costs_a_count() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let exporter = Exporter::start(&settings(&format!("http://{closed}")));
    let record = sluice_proxy::record::Record {
        trace_id: vec![1; 16],
        span_id: vec![1; 8],
        ..sluice_proxy::record::Record::default()
    };
    exporter.take(&vec![record; 20_000]);
    assert!(exporter.lost() > 0, "what does not fit is counted, and nobody waits");
    soon("every span is accounted for", async {
        while exporter.lost() < 20_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
