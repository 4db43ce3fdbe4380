//! `explain --batch`: one question a line in, one answer a line out, in order.
//!
//! A line that cannot be answered gets an error as its answer, so that answers and questions stay in step.

use crate::answer::Answer;
use crate::question::Question;
use crate::trace::Shown;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::io::{BufRead, Read, Write};

/// Longest line: a request's headers have their own limit far below it.
const MAX_LINE: u64 = 1 << 20;

/// Who answers, and how.
pub(crate) struct Answerer<'c> {
    pub(crate) shown: Shown<'c>,
    /// Every answer has its trace, whether its question asks for it or not.
    pub(crate) trace: bool,
}

/// Answers until the input ends.
pub(crate) fn run(answerer: &Answerer<'_>, mut input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).context("standard input")?;
        if read == 0 {
            return Ok(());
        }
        let answer = if line.last() != Some(&b'\n') && line.len() as u64 == MAX_LINE {
            skip_line(&mut input)?;
            Err(anyhow::anyhow!("the line has more than {MAX_LINE} bytes"))
        } else {
            answerer.answer(&line)
        };
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }).to_string());
        // Whoever asks line by line waits for each answer.
        let written = writeln!(output, "{answer}").and_then(|()| output.flush());
        match written {
            // Whoever asked has gone: nothing is left to do.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("standard output")?,
        }
    }
}

impl Answerer<'_> {
    fn answer(&self, line: &[u8]) -> Result<String> {
        let text = std::str::from_utf8(line).context("the line is not UTF-8")?.trim();
        if text.is_empty() {
            bail!("an empty line asks nothing: write a question as JSON");
        }
        let question: Question = serde_json::from_str(text).context("the line is no question")?;
        let trace = self.trace || question.trace;
        let query = question.into_query()?;
        let cluster = self.shown.cluster;
        let answer = if trace {
            Answer::traced(&query, &cluster.trace(&query)?, &self.shown)
        } else {
            Answer::new(&cluster.ask(&query)?)
        };
        Ok(serde_json::to_string(&answer.behind(cluster.behind(&query)?.as_ref()))?)
    }
}

fn skip_line(input: &mut impl BufRead) -> Result<()> {
    loop {
        let buffer = input.fill_buf().context("standard input")?;
        let (used, done) = match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(used);
        if done {
            return Ok(());
        }
    }
}
