//! The demo's second half: a policy edited while traffic runs, and one switched to Audit.
//!
//! Called by the demo.

use crate::demo::stage::Stage;
use crate::demo::table::{Style, millis, short};
use crate::demo::{say, tell};
use crate::peer::{Ask, Version, http_client};
use crate::world::Family;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an edit may take to show.
const DEADLINE: Duration = Duration::from_secs(10);
/// Requests that must be seen before and after an edit, so that there is traffic around it.
const AROUND: usize = 20;
/// The pause between two requests.
const PACE: Duration = Duration::from_millis(2);

/// One request of the running traffic.
#[derive(Clone, Copy, Debug)]
struct Seen {
    sent: Instant,
    answered: Instant,
    /// 0 where there was no answer.
    status: u16,
}

/// Edits the cart's policy twice while the frontend keeps asking.
///
/// # Errors
/// When the file cannot be edited or the traffic does not run.
pub fn edit(stage: &mut Stage, style: Style) -> Result<bool> {
    say(&style.bold("A policy is edited while traffic runs"));
    say("   frontend → cart: GET /api/v1/items without pause, over one keep-alive connection");
    let (from, to) = ("value: /api/v1/items", "value: /api/v2/items");
    let narrow = run_through(stage, 403, || stage.edit("cart.yaml", from, to))?;
    let narrow_good = report(style, "cart.yaml: allow and deny moved to /api/v2/items", "403", &narrow);
    let widen = run_through(stage, 200, || stage.edit("cart.yaml", to, from))?;
    let widen_good = report(style, "cart.yaml: put back", "200", &widen);
    say("");
    Ok(narrow_good && widen_good)
}

/// What happened around one edit.
struct Change {
    /// From the file's change to the first answer under the new policy.
    took: Duration,
    before: usize,
    after: usize,
    /// Requests that got no answer, or one that neither policy gives.
    lost: usize,
    /// Requests that were sent after the change was seen and still judged by the old policy.
    late: usize,
}

fn report(style: Style, what: &str, status: &str, change: &Change) -> bool {
    let good = change.lost == 0 && change.late == 0;
    let mark = if good { style.good("✓") } else { style.bad("✗") };
    say(&format!(" {mark} {what}"));
    say(&format!(
        "   in force after {}: {} requests before, {} answered {status} after, {} lost, {} by the old policy",
        style.bold(&millis(change.took)),
        change.before,
        change.after,
        change.lost,
        change.late,
    ));
    tell(&json!({
        "part": "edit",
        "what": what,
        "inForceMs": change.took.as_secs_f64() * 1000.0,
        "before": change.before,
        "after": change.after,
        "lost": change.lost,
        "late": change.late,
        "good": good,
    }));
    good
}

/// Keeps asking, makes the change, goes on until enough requests got the new answer.
fn run_through(stage: &Stage, becomes: u16, change: impl FnOnce() -> Result<()>) -> Result<Change> {
    let frontend = stage.cluster.world.pod("shop/frontend");
    let target = SocketAddr::new(stage.cluster.world.pod("shop/cart").ip(Family::V4), 8080);
    let seen = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let changed = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| frontend.netns.block_on(|| traffic(target, &seen, &stop))?);
        let count = |status: Option<u16>| {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.iter().filter(|request: &&Seen| status.is_none_or(|status| request.status == status)).count()
        };
        let wait = |status: Option<u16>| {
            let end = Instant::now() + DEADLINE;
            while count(status) < AROUND {
                if Instant::now() > end || traffic.is_finished() {
                    return false;
                }
                std::thread::sleep(PACE);
            }
            true
        };
        let before = wait(None);
        let at = Instant::now();
        let done = change();
        let after = before && done.is_ok() && wait(Some(becomes));
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done?;
        if !after {
            bail!("the edit was not in force within {DEADLINE:?}\n{}", stage.cluster.tails());
        }
        Ok(at)
    })?;
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let first = seen.iter().find(|request| request.sent >= changed && request.status == becomes);
    let first = first.context("no request was judged by the new policy")?.answered;
    let other = if becomes == 200 { 403 } else { 200 };
    Ok(Change {
        took: first - changed,
        before: seen.iter().filter(|request| request.answered < first && request.status == other).count(),
        after: seen.iter().filter(|request| request.sent >= changed && request.status == becomes).count(),
        lost: seen.iter().filter(|request| ![200, 403].contains(&request.status)).count(),
        late: seen.iter().filter(|request| request.sent > first && request.status == other).count(),
    })
}

/// Asks again and again over one connection, or a new one where the mesh closed it.
async fn traffic(target: SocketAddr, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) -> Result<()> {
    let mut connection = http_client::Connection::open(target).await?;
    let ask = Ask::new("GET", "/api/v1/items");
    while !stop.load(Ordering::Relaxed) {
        if !connection.is_open().await {
            connection = http_client::Connection::open(target).await?;
        }
        let sent = Instant::now();
        let status = connection.send(&ask).await.map_or(0, |answer| answer.status);
        let answered = Instant::now();
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen { sent, answered, status });
        if status == 0 {
            connection = http_client::Connection::open(target).await?;
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// Switches the cart's policy to Audit and shows what would have been denied.
///
/// # Errors
/// When the file cannot be edited.
pub fn audit(stage: &mut Stage, style: Style) -> Result<bool> {
    say(&style.bold("The same policy in mode Audit: everything passes, and what it would deny is told"));
    stage.edit("cart.yaml", "mode: Enforce", "mode: Audit")?;
    let asks = [
        ("shop/frontend", "GET", "/api/v1/items", "allow"),
        ("shop/frontend", "DELETE", "/api/v1/items", "audit"),
        ("shop/frontend", "GET", "/admin", "audit"),
        ("shop/frontend", "POST", "/api/v1/checkout", "audit"),
    ];
    wait_until_passes(stage)?;
    let target = SocketAddr::new(stage.cluster.world.pod("shop/cart").ip(Family::V4), 8080);
    let mut good = true;
    for (from, method, path, verdict) in asks {
        let mark = stage.cluster.mark();
        let pod = stage.cluster.world.pod(from);
        let list = [Ask::new(method, path)];
        let answers = pod.netns.block_on(|| http_client::ask(target, Version::Http1, &list))??;
        let status = answers.first().map_or(0, |answer| answer.status);
        let ip = pod.v4.to_string();
        let record = stage.cluster.wait_record(&mark, &format!("{method} {path}"), |record| {
            record["source"]["ip"] == ip.as_str() && record["method"] == method && record["path"] == path
        });
        let record = record.unwrap_or_default();
        let right = status == 200 && record["verdict"] == verdict;
        good &= right;
        tell(&json!({
            "part": "audit",
            "from": from,
            "what": format!("{method} {path}"),
            "expected": verdict,
            "got": status,
            "verdict": record["verdict"],
            "wouldDeny": record["wouldDeny"],
            "good": right,
        }));
        let mark = if right { style.good("✓") } else { style.bad("✗") };
        let who = format!("{} → cart", pod.short_name());
        let what = format!("{method} {path}");
        say(&format!(" {mark} {who:<18} {what:<31} {verdict:<6} {status:<13} {}", would(&record)));
    }
    stage.edit("cart.yaml", "mode: Audit", "mode: Enforce")?;
    Ok(good)
}

/// Audit is in force when what was denied passes.
fn wait_until_passes(stage: &Stage) -> Result<()> {
    let pod = stage.cluster.world.pod("shop/frontend");
    let target = SocketAddr::new(stage.cluster.world.pod("shop/cart").ip(Family::V4), 8080);
    crate::world::eventually("the policy in mode Audit lets requests pass", DEADLINE, || {
        let list = [Ask::new("GET", "/not-yet")];
        let answers = pod.netns.block_on(|| http_client::ask(target, Version::Http1, &list))?;
        Ok(answers.is_ok_and(|answers| answers.first().is_some_and(|answer| answer.status == 200)))
    })
}

/// What the record says would have been.
fn would(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = record["wouldDeny"].as_array().cloned().unwrap_or_default();
    let Some(finding) = findings.first() else {
        return match record["verdict"].as_str() {
            Some("allow") => "nobody would deny it".to_owned(),
            Some(other) => format!("verdict {other}"),
            None => "the proxy reported nothing".to_owned(),
        };
    };
    let (rule, miss) = (text(&finding["rule"]), text(&finding["nearestMiss"]));
    let policy = short(&text(&finding["policy"]));
    let mut said = if rule.is_empty() { policy } else { format!("{policy} {rule}") };
    said.push_str(" would deny");
    if !miss.is_empty() {
        said = format!("{said}\n                      └ {miss}");
    }
    said
}
