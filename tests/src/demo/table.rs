//! The demo's output: colours, columns, durations.
//!
//! Knows nothing of what is shown. Called by the demo.

use std::time::Duration;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Colours are used.
    pub colour: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// As it should be.
    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Not as it should be.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Beside the point.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// A heading.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// A line of the table.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// From whom to whom.
    pub who: String,
    /// What was sent, by which client.
    pub what: String,
    /// The verdict that had to come.
    pub expected: String,
    /// What came.
    pub got: String,
    /// The policy and rule that decided, and how that is known.
    pub decided: String,
    /// More to be said, on a line below.
    pub more: String,
    /// Whether it is as expected.
    pub good: bool,
}

/// The widths of the columns but the last; with it about 100 characters.
const WIDTHS: [usize; 4] = [18, 31, 6, 13];

/// The heading.
#[must_use]
pub fn heading(style: Style) -> String {
    let cells = ["who", "what", "expect", "got", "decided by"];
    let mut text = String::from("   ");
    for (cell, width) in cells.iter().zip(WIDTHS.iter().chain(&[26])) {
        text.push_str(&format!("{cell:<width$} "));
    }
    style.bold(text.trim_end())
}

/// A line.
#[must_use]
pub fn line(style: Style, line: &Line) -> String {
    let mark = if line.good { style.good("✓") } else { style.bad("✗") };
    let cell = |text: &str, width: usize| format!("{text:<width$}");
    let got = cell(&line.got, WIDTHS[3]);
    let got = if line.good { got } else { style.bad(&got) };
    let mut text = format!(
        " {mark} {} {} {} {got} {}",
        cell(&line.who, WIDTHS[0]),
        cell(&line.what, WIDTHS[1]),
        cell(&line.expected, WIDTHS[2]),
        line.decided
    );
    if !line.more.is_empty() {
        let indent = " ".repeat(WIDTHS[0] + 4);
        text.push_str(&style.dim(&format!("\n{indent}└ {}", line.more)));
    }
    text
}

/// A duration in milliseconds, or seconds where that is easier to read.
#[must_use]
pub fn millis(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 { format!("{millis} ms") } else { format!("{:.1} s", duration.as_secs_f64()) }
}

/// A policy's name as kubectl would have it: `l7np/cart`.
#[must_use]
pub fn short(policy: &str) -> String {
    let mut parts = policy.split('/');
    let kind = match parts.next().unwrap_or_default() {
        "L7NetworkPolicy" => "l7np",
        "NetworkPolicy" => "netpol",
        other => other,
    };
    parts.next_back().map_or_else(String::new, |name| format!("{kind}/{name}"))
}
