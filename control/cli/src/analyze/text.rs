//! Findings for people: each drawn on the lines that it is about.
//!
//! Knows nothing of how they were found.

use super::counts;
use crate::input::Text;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use sluice_compile::analyze::{Analysis, Code, Finding};
use sluice_crd::{Place, Plain, Severity};
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::ops::Range;

/// Two places of one file are drawn in one piece if they are no further apart, in lines.
const MAX_WINDOW: usize = 60;
/// Longest line that is drawn: JSON may stand in one line.
const MAX_LINE: usize = 400;

/// The whole report.
pub(super) fn report(analysis: &Analysis, texts: &[Text]) -> String {
    let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let renderer = if terminal { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let files: HashMap<&str, File<'_>> =
        texts.iter().map(|text| (text.name.as_str(), File::new(&text.text))).collect();
    let mut out = String::new();
    for finding in &analysis.findings {
        out.push_str(&renderer.render(&[group(finding, &files)]));
        out.push_str("\n\n");
    }
    out.push_str(&summary(analysis));
    out
}

fn summary(analysis: &Analysis) -> String {
    let unchecked: String = analysis.unchecked.iter().map(|what| format!("not checked: {what}\n")).collect();
    if analysis.findings.is_empty() {
        return unchecked + "nothing was found\n";
    }
    let said =
        counts(&analysis.findings).into_iter().filter(|(_, count)| *count > 0).map(|(severity, count)| {
            let plural = if count == 1 || severity == Severity::Info { "" } else { "s" };
            format!("{count} {}{plural}", severity.as_str())
        });
    let mut out = unchecked + &said.collect::<Vec<_>>().join(", ");
    if analysis.omitted > 0 {
        out.push_str(&format!("; {} more are left out", analysis.omitted));
    }
    out + "; sluice analyze --explain CODE says more of one\n"
}

/// Every code on a line.
pub(super) fn codes(codes: &[&Code]) -> String {
    codes.iter().map(|code| format!("{}  {:<7}  {}\n", code.id, code.severity.as_str(), code.title)).collect()
}

/// A text and where its lines begin.
struct File<'t> {
    text: &'t str,
    lines: Vec<usize>,
}

impl<'t> File<'t> {
    fn new(text: &'t str) -> Self {
        let after = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, lines: std::iter::once(0).chain(after).collect() }
    }

    /// The bytes of a line, without its end. Lines from 1.
    fn line(&self, number: usize) -> Option<Range<usize>> {
        let start = *self.lines.get(number.checked_sub(1)?)?;
        let end = self.lines.get(number).map_or(self.text.len(), |next| next - 1);
        let text = &self.text[start..end];
        Some(start..start + text.trim_end_matches('\r').len())
    }

    /// The bytes of a place.
    fn range(&self, place: &Place) -> Option<Range<usize>> {
        let line = self.line(place.line as usize)?;
        let text = &self.text[line.clone()];
        let at = |column: u32| {
            let chars = (column as usize).saturating_sub(1);
            text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
        };
        let start = at(place.column.max(1));
        let end = match place.end_column {
            0 => text.trim_end().len(),
            column => at(column),
        };
        Some(line.start + start..line.start + end.max(start))
    }
}

fn group<'a>(finding: &'a Finding, files: &HashMap<&str, File<'a>>) -> Group<'a> {
    let problem = &finding.problem;
    let level = match problem.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Info => Level::INFO,
    };
    let mut group = Group::with_title(level.primary_title(finding.code.title).id(finding.code.id));
    let primary =
        Mark { place: problem.place(), label: clean(&problem.reason), kind: AnnotationKind::Primary };
    let related = finding.related.iter().map(|related| Mark {
        place: related.place.clone(),
        label: match &related.object {
            Some(object) if problem.object.as_ref() != Some(object) => {
                format!("{} ({})", clean(&related.message), clean(object))
            }
            _ => clean(&related.message),
        },
        kind: AnnotationKind::Context,
    });
    for piece in pieces(std::iter::once(primary).chain(related).collect()) {
        group = draw(group, piece, files);
    }
    if let Some(object) = &problem.object {
        let of = if problem.path.is_empty() { String::new() } else { format!(", {}", clean(&problem.path)) };
        group = group.element(Level::NOTE.message(format!("{}{of}", clean(object))));
    }
    if !problem.remedy.is_empty() {
        group = group.element(Level::HELP.message(clean(&problem.remedy)));
    }
    group
}

fn clean(text: &str) -> String {
    Plain(text).to_string()
}

/// A place and what is said there.
struct Mark {
    place: Place,
    label: String,
    kind: AnnotationKind,
}

/// Marks that are drawn in one piece of a file.
fn pieces(marks: Vec<Mark>) -> Vec<Vec<Mark>> {
    let mut out: Vec<Vec<Mark>> = Vec::new();
    for mark in marks {
        let line = mark.place.line as usize;
        let near = |piece: &&mut Vec<Mark>| {
            piece.iter().all(|other| {
                other.place.file == mark.place.file
                    && (other.place.line as usize).abs_diff(line) <= MAX_WINDOW
                    && line > 0
                    && other.place.line > 0
            })
        };
        match out.iter_mut().find(near) {
            Some(piece) => piece.push(mark),
            None => out.push(vec![mark]),
        }
    }
    out
}

fn draw<'a>(mut group: Group<'a>, piece: Vec<Mark>, files: &HashMap<&str, File<'a>>) -> Group<'a> {
    let Some(first) = piece.first() else { return group };
    let name = first.place.file.to_string();
    let lines = piece.iter().map(|mark| mark.place.line as usize);
    let (from, to) = (lines.clone().min().unwrap_or_default(), lines.max().unwrap_or_default());
    let window = files.get(name.as_str()).and_then(|file| {
        let (start, end) = (file.line(from)?.start, file.line(to)?.end);
        let short = (from..=to).all(|line| file.line(line).is_some_and(|line| line.len() <= MAX_LINE));
        short.then_some((file, start, end))
    });
    let Some((file, start, end)) = window else {
        // Nothing to draw on: the place and the text alone.
        for mark in piece {
            if !name.is_empty() {
                let mut origin = Origin::path(name.clone());
                if mark.place.line > 0 {
                    origin = origin.line(mark.place.line as usize).char_column(mark.place.column as usize);
                }
                group = group.element(origin);
            }
            group = group.element(Level::NOTE.message(mark.label));
        }
        return group;
    };
    let annotations: Vec<Annotation<'a>> = piece
        .into_iter()
        .filter_map(|mark| {
            let range = file.range(&mark.place)?;
            Some(mark.kind.span(range.start - start..range.end - start).label(mark.label))
        })
        .collect();
    let snippet =
        Snippet::source(&file.text[start..end]).line_start(from).path(name).annotations(annotations);
    group.element(snippet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_by_characters() {
        let file = File::new("a: é # x\r\n\n  long: \"ß\" \n");
        let range = |line, column, end_column| {
            let place = Place { file: "".into(), line, column, end_column };
            file.range(&place).map(|range| &file.text[range])
        };
        assert_eq!(range(1, 1, 5), Some("a: é"));
        assert_eq!(range(1, 4, 0), Some("é # x"));
        assert_eq!(range(2, 1, 0), Some(""));
        assert_eq!(range(3, 3, 12), Some("long: \"ß\""));
        assert_eq!(range(3, 99, 0), Some(""));
        assert_eq!(range(9, 1, 0), None);
    }
}
