//! gRPC: grpc-go's interop client and server past the proxy and through it, grpcio, tonic.

use crate::parts::{Part, attempt, python, test};
use crate::stage::{Stage, port};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::peer::grpc_client;
use sluice_tests::world::Family;

const CLIENT: Part = Part::Go("interop-client");
const FRONTEND: &str = "shop/frontend";
/// The cases of grpc-go's client that need neither TLS nor accounts
/// (<https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md>).
const CASES: [&str; 16] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
];
/// How long one may take; at rest they take a second.
const SECONDS: u32 = 90;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("grpc-go: every case that passes directly passes through the proxy", &[CLIENT], grpc_go),
        test("grpc-go: a denied method is PERMISSION_DENIED", &[CLIENT], grpc_go_denied),
        test("grpcio: client and server", &[], grpcio),
        test("tonic: client and server", &[], tonic),
    ]
}

fn case(stage: &Stage, family: Family, port: u16, name: &str) -> Result<(String, bool)> {
    let host = format!("--server_host={}", stage.cart(family, port).ip());
    let arguments = [
        &*host,
        &format!("--server_port={port}"),
        "--use_tls=false",
        &format!("--test_case={name}"),
        "--soak_iterations=50",
        "--soak_max_failures=0",
        "--soak_per_iteration_max_acceptable_latency_ms=20000",
        "--soak_overall_timeout_seconds=60",
    ];
    attempt(stage, FRONTEND, SECONDS, CLIENT, &arguments)
}

fn grpc_go(stage: &Stage) -> Result<()> {
    let (mut direct, mut through, mut said) = (Vec::new(), Vec::new(), String::new());
    for (turn, name) in CASES.into_iter().enumerate() {
        let family = Family::BOTH[turn % 2];
        if case(stage, family, port::GRPC_DIRECT, name)?.1 {
            direct.push(name);
        }
        let (told, good) = case(stage, family, port::GRPC, name)?;
        if good {
            through.push(name);
        } else {
            said.push_str(&told);
        }
    }
    ensure!(
        direct == through,
        "directly {direct:?}\nthrough the proxy {through:?}\n{said}\n{}",
        stage.tails()
    );
    ensure!(direct.len() == CASES.len(), "only {direct:?} pass at all");
    Ok(())
}

fn grpc_go_denied(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        for name in ["empty_unary", "large_unary"] {
            let (told, good) = case(stage, family, port::GRPC_PART, name)?;
            ensure!(good, "{name}: {told}");
        }
        // Of those whose code the program prints.
        for name in ["server_streaming", "empty_stream", "unimplemented_service"] {
            let (told, good) = case(stage, family, port::GRPC_PART, name)?;
            ensure!(!good && told.contains("PermissionDenied"), "{name}: {told}");
        }
    }
    Ok(())
}

fn grpcio(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let at = match stage.cart(family, port::PYTHON_GRPC) {
            std::net::SocketAddr::V4(at) => format!("ipv4:{at}"),
            std::net::SocketAddr::V6(at) => format!("ipv6:{at}"),
        };
        python(stage, FRONTEND, "grpc_client.py", &[&at])?;
    }
    Ok(())
}

fn tonic(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let target = stage.cart(family, port::TONIC);
        let codes = stage.netns(FRONTEND).block_on(|| async {
            let mut client = grpc_client::connect(target).await?;
            let mut codes = Vec::new();
            for method in ["GetCart", "DeleteItem", "WatchCart", "DeleteItem", "GetCart"] {
                codes.push(grpc_client::call(&mut client, method, "blue", 20).await?.code);
            }
            anyhow::Ok(codes)
        })??;
        ensure!(codes == [0, 7, 0, 7, 0], "{target}: {codes:?}");
    }
    Ok(())
}
