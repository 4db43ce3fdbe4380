//! `sluice-peer`: servers and clients for the tests and the demo, in one binary.
//!
//! `serve` prints one line of JSON for each connection and request; the clients print one for each answer.
//! Knows nothing of policies.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use serde_json::json;
use sluice_tests::peer::ledger::say;
use sluice_tests::peer::{Ask, Ledger, Version, echo, grpc_client, http_client, raw_client, server};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// What a server says that speaks first, as SMTP does.
const GREETING: &str = "220 hello\r\n";

/// Real servers and clients to try policies with.
#[derive(Debug, Parser)]
#[command(name = "sluice-peer", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves HTTP/1.1, HTTP/2 and gRPC (shop.v1.Cart), and echoes TCP and UDP.
    Serve {
        /// HTTP and gRPC on this address, as [::]:8080; may be given more than once.
        #[arg(long)]
        http: Vec<SocketAddr>,
        /// TCP echo on this address.
        #[arg(long)]
        tcp: Vec<SocketAddr>,
        /// TCP echo that speaks first on this address.
        #[arg(long)]
        greet: Vec<SocketAddr>,
        /// UDP echo on this address.
        #[arg(long)]
        udp: Vec<SocketAddr>,
        /// The server's name in its answers.
        #[arg(long, default_value = "peer")]
        name: String,
    },
    /// Sends HTTP requests over one connection.
    Http {
        /// Where to, as 10.0.0.1:8080.
        target: SocketAddr,
        /// HTTP/2 with prior knowledge, all requests at once.
        #[arg(long)]
        h2: bool,
        /// Requests: `GET /path`, or JSON with method, path, host, headers and body.
        #[arg(required = true)]
        requests: Vec<String>,
    },
    /// Calls a method of shop.v1.Cart.
    Grpc {
        /// Where to, as 10.0.0.1:9090.
        target: SocketAddr,
        /// GetCart, WatchCart or DeleteItem.
        method: String,
        /// The cart's name.
        #[arg(long, default_value = "blue")]
        cart: String,
        /// Replies asked of WatchCart; 0 is without end.
        #[arg(long, default_value_t = 3)]
        count: u32,
    },
    /// Sends bytes over TCP or UDP.
    Raw {
        /// Where to, as 10.0.0.1:7.
        target: SocketAddr,
        /// UDP instead of TCP.
        #[arg(long)]
        udp: bool,
        /// The bytes as text.
        #[arg(long, default_value = "")]
        text: String,
        /// The bytes in hexadecimal; sent after the text.
        #[arg(long, default_value = "")]
        hex: String,
        /// Stop after so many bytes of answer.
        #[arg(long, default_value_t = usize::MAX)]
        enough: usize,
        /// Milliseconds to wait.
        #[arg(long, default_value_t = 2000)]
        wait_ms: u64,
    },
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match Cli::parse().verb {
        Verb::Serve { http, tcp, greet, udp, name } => {
            runtime.block_on(serve(&http, &tcp, &greet, &udp, &name))
        }
        Verb::Http { target, h2, requests } => {
            let asks = requests.iter().map(|text| parse_ask(text)).collect::<Result<Vec<Ask>>>()?;
            let version = if h2 { Version::Http2 } else { Version::Http1 };
            for answer in runtime.block_on(http_client::ask(target, version, &asks))? {
                say(&json!(answer));
            }
            Ok(())
        }
        Verb::Grpc { target, method, cart, count } => runtime.block_on(async {
            let mut client = grpc_client::connect(target).await?;
            say(&json!(grpc_client::call(&mut client, &method, &cart, count).await?));
            Ok(())
        }),
        Verb::Raw { target, udp, text, hex, enough, wait_ms } => {
            let mut payload = text.into_bytes();
            payload.extend(parse_hex(&hex)?);
            let wait = Duration::from_millis(wait_ms);
            let answer = if udp {
                raw_client::udp(target, &payload, wait)?
            } else {
                raw_client::tcp(target, &payload, enough, wait)
            };
            let text = answer.text();
            say(
                &json!({"connected": answer.connected, "closed": answer.closed, "error": answer.error, "text": text}),
            );
            Ok(())
        }
    }
}

async fn serve(
    http: &[SocketAddr],
    tcp: &[SocketAddr],
    greet: &[SocketAddr],
    udp: &[SocketAddr],
    name: &str,
) -> Result<()> {
    let ledger = Arc::new(Ledger::default());
    let mut tasks = tokio::task::JoinSet::new();
    for address in http {
        let listener = server::bind(*address)?;
        tasks.spawn(server::serve(listener, name.to_owned(), Arc::clone(&ledger)));
    }
    let silent = tcp.iter().map(|address| (address, ""));
    for (address, greeting) in silent.chain(greet.iter().map(|address| (address, GREETING))) {
        let listener = server::bind(*address)?;
        tasks.spawn(echo::tcp(listener, greeting.to_owned(), Arc::clone(&ledger)));
    }
    for address in udp {
        let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
        tasks.spawn(echo::udp(socket, Arc::clone(&ledger)));
    }
    say(&json!({"event": "ready", "name": name}));
    match tasks.join_next().await {
        None => bail!("nothing to serve: give --http, --tcp, --greet or --udp"),
        Some(ended) => ended?,
    }
}

/// `GET /path` or JSON.
fn parse_ask(text: &str) -> Result<Ask> {
    if text.starts_with('{') {
        return serde_json::from_str(text).with_context(|| format!("{text} is no request"));
    }
    let (method, path) = text.split_once(' ').with_context(|| format!("\"{text}\": write `GET /path`"))?;
    Ok(Ask::new(method, path))
}

fn parse_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair)?;
        u8::from_str_radix(pair, 16).with_context(|| format!("\"{pair}\" is not hexadecimal"))
    });
    pairs.collect()
}
