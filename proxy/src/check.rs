//! `sluice-proxy check`: prints what the loader found of this node, for people and for programs.
//!
//! Looks at nothing itself; docs/check.md says what each finding means and is the contract of the JSON. Called by `cli`.

use serde_json::{Value, json};
use sluice_redirect::check::{Finding, Report, Status};
use sluice_redirect::{Hooks, NodeConfig};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// Of `--help`.
pub const EXIT_CODES: &str = "Exit code: 0 the node can run it, 1 it cannot, 2 that could not be found out \
    (not root, a wrong option).\nEach finding is explained in docs/check.md.";
/// The version of the JSON. A field may come to it without another number; none changes its meaning or goes.
const SCHEMA: u32 = 1;
/// Columns of a terminal.
const WIDTH: usize = 80;
/// Where the words of a finding begin: two spaces, its status, its name.
const INDENT: usize = 30;

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people, 80 columns wide.
    #[default]
    Table,
    /// One object.
    Json,
}

/// Looks and prints.
///
/// # Errors
/// If it cannot be printed.
pub fn run(config: &NodeConfig, output: Output) -> anyhow::Result<ExitCode> {
    let report = sluice_redirect::check::run(config);
    let text = match output {
        Output::Table => table(&report),
        Output::Json => format!("{:#}\n", json(&report)),
    };
    let mut out = std::io::stdout().lock();
    // Whoever has read enough may go; the exit code says the rest.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(ExitCode::from(code(report.worst())))
}

const fn code(worst: Status) -> u8 {
    match worst {
        Status::Ok | Status::Warn => 0,
        Status::Fail => 1,
        Status::Unknown => 2,
    }
}

const fn hooks(report: &Report) -> Option<&'static str> {
    match report.hooks {
        Some(Hooks::Clsact) => Some("clsact"),
        Some(_) => Some("tcx"),
        None => None,
    }
}

fn json(report: &Report) -> Value {
    let able = match report.worst() {
        Status::Ok | Status::Warn => Value::Bool(true),
        Status::Fail => Value::Bool(false),
        Status::Unknown => Value::Null,
    };
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "status": finding.status.as_str(),
            "found": finding.found,
            "remedy": finding.remedy,
        })
    };
    json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "scope": "node",
        "able": able,
        "kernel": report.kernel,
        "hooks": hooks(report),
        "ipv6": report.ipv6,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut area = "";
    for finding in &report.findings {
        let (of, name) = finding.check.split_once('.').unwrap_or(("", &finding.check));
        if of != area {
            let _ = writeln!(text, "{of}");
            area = of;
        }
        let head = format!("  {:<8}{name:<19} ", finding.status.as_str());
        wrap(&mut text, &head, &finding.found);
        if let Some(remedy) = &finding.remedy {
            wrap(&mut text, &format!("{:>width$}", "do: ", width = INDENT), remedy);
        }
    }
    let count = |status| report.findings.iter().filter(|finding| finding.status == status).count();
    let verdict = match report.worst() {
        Status::Ok | Status::Warn => "This node can run the datapath",
        Status::Fail => "This node cannot run the datapath",
        Status::Unknown => "It could not be found out whether this node can run the datapath",
    };
    let told = [Status::Fail, Status::Unknown, Status::Warn, Status::Ok]
        .map(|s| format!("{} {}", count(s), s.as_str()));
    let _ = writeln!(text, "\n{verdict}: {}.", told.join(", "));
    text
}

/// The words after the head, from line to line below each other. A word that is longer than a line stays whole.
fn wrap(text: &mut String, head: &str, words: &str) {
    let mut line = head.to_owned();
    let mut begun = false;
    for word in words.split_whitespace() {
        if begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = " ".repeat(INDENT);
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(statuses: &[Status]) -> Report {
        let finding = |status: &Status| Finding {
            check: format!("packets.proxy-ingress-{}", status.as_str()),
            status: *status,
            found: "a long tale of what was looked at and of how it came to be like this on this node".into(),
            remedy: (*status != Status::Ok)
                .then(|| "sysctl -w net.ipv4.ip_forward=1 and so on and on and on".into()),
        };
        let findings = statuses.iter().map(finding).collect();
        Report { kernel: "6.18".into(), hooks: Some(Hooks::Tcx), ipv6: true, findings }
    }

    #[test]
    fn the_table_fits_and_says_it_all() {
        let report = report(&[Status::Ok, Status::Warn, Status::Fail, Status::Unknown]);
        let text = table(&report);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches("do: ").count(), 3, "{text}");
        let words: Vec<&str> = text.split_whitespace().collect();
        for finding in &report.findings {
            for word in finding.found.split_whitespace() {
                assert!(words.contains(&word), "{word} is not in\n{text}");
            }
        }
        assert!(text.ends_with("cannot run the datapath: 1 fail, 1 unknown, 1 warn, 1 ok.\n"), "{text}");
    }

    #[test]
    fn the_worst_makes_the_exit_code() {
        for (statuses, wanted, able) in [
            (&[Status::Ok, Status::Warn][..], 0, Value::Bool(true)),
            (&[Status::Unknown, Status::Fail], 1, Value::Bool(false)),
            (&[Status::Unknown, Status::Ok], 2, Value::Null),
        ] {
            let report = report(statuses);
            assert_eq!(code(report.worst()), wanted);
            assert_eq!(json(&report)["able"], able);
        }
        let json = json(&report(&[Status::Ok]));
        assert_eq!((&json["schema"], &json["findings"][0]["remedy"]), (&Value::from(1), &Value::Null));
    }
}
