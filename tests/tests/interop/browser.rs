//! Chromium: a page with what it needs, by HTTP/1.1, and by HTTP/2 in TLS that is judged by its server name.

use crate::parts::{Part, attempt, test};
use crate::stage::{Stage, port};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_tests::world::Family;

const CHROMIUM: Part = Part::Debian("chromium-headless-shell");
/// How long it may take; at rest two seconds.
const SECONDS: u32 = 90;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("Chromium over HTTP/1.1", &[CHROMIUM], plain),
        test("Chromium over HTTP/2 in TLS: one with ECH names nobody", &[CHROMIUM], tls),
    ]
}

/// The document after its scripts ran.
fn load(stage: &Stage, name: &str, url: &str, more: &[&str]) -> Result<String> {
    let profile = stage.dir().join(format!("chromium-{name}"));
    let profile = format!("--user-data-dir={}", profile.display());
    let mut all = vec![
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--timeout=60000",
        "--virtual-time-budget=60000",
        &profile,
    ];
    all.extend(more);
    all.extend(["--dump-dom", url]);
    Ok(attempt(stage, "shop/frontend", SECONDS, CHROMIUM, &all)?.0)
}

/// What the page found out.
fn result(document: &str) -> Result<Value> {
    let rest = document.split_once("<p id=\"result\">").context("the page did not load")?.1;
    let text = rest.split_once("</p>").context("no end")?.0;
    serde_json::from_str(text).with_context(|| format!("the page did not come to its end: {text}"))
}

fn plain(stage: &Stage) -> Result<()> {
    for (name, at) in ["v4", "v6", "service"].into_iter().zip(stage.http()) {
        let document = load(stage, name, &format!("http://{at}/items/page"), &[])?;
        let said = result(&document).with_context(|| document.clone())?;
        let list = said["list"].as_array().context("no list")?;
        ensure!(list.len() == 8 && list.iter().all(|status| *status == 200), "{at}: {said}");
        ensure!(said["styled"] == true && said["drawn"] == true, "{at}: {said}");
        ensure!(said["denied"] == 403 && said["posted"] == 403 && said["after"] == 200, "{at}: {said}");
        ensure!(said["protocols"].to_string().contains("http/1.1"), "{at}: {said}");
    }
    Ok(())
}

/// Chromium sends an extension of ECH to everybody, mostly filled with noise (RFC 9849 section 6.2), which cannot be told
/// from one that hides another name: rules by server name match neither (docs/policies.md). Where no rule reads the name,
/// the page comes.
fn tls(stage: &Stage) -> Result<()> {
    let key = format!("--ignore-certificate-errors-spki-list={}", stage.spki);
    for family in Family::BOTH {
        let at = match stage.cart(family, port::TLS).ip() {
            std::net::IpAddr::V4(at) => at.to_string(),
            std::net::IpAddr::V6(at) => format!("[{at}]"),
        };
        let names = format!("--host-resolver-rules=MAP allowed.test {at},MAP denied.test {at}");
        let page = |name: &str, port: u16| format!("https://{name}.test:{port}/items/page");
        let profile = |what: &str| format!("{what}-{family:?}");
        let document = load(stage, &profile("direct"), &page("allowed", port::TLS_DIRECT), &[&key, &names])?;
        let said = result(&document).with_context(|| document.clone())?;
        let list = said["list"].as_array().context("no list")?;
        ensure!(list.len() == 8 && list.iter().all(|status| *status == 200), "{said}");
        ensure!(said["styled"] == true && said["denied"] == 200 && said["after"] == 200, "{said}");
        ensure!(said["protocols"].to_string().contains("h2"), "{said}");
        for name in ["allowed", "denied"] {
            let document = load(stage, &profile(name), &page(name, port::TLS), &[&key, &names])?;
            ensure!(result(&document).is_err(), "{name}: a hello with ECH passed: {document}");
            ensure!(document.contains("ERR_CONNECTION_RESET"), "{name}: it was not told at once: {document}");
        }
    }
    Ok(())
}
