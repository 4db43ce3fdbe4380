//! What is wrong with an object, and where: the one form in which every finding is shown.
//!
//! Knows nothing of who reports it. Reading and lowering make problems; the CLI prints them, control puts them
//! into status.

use crate::object::Source;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The object is not judged as its author meant it.
    Error,
    /// It is, and something about it will surprise.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// `error`, `warning` or `info`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// What kind of thing is wrong; `sluice analyze` has a code for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// A file or a document that cannot be read.
    Unreadable,
    /// A field that does not exist at its place.
    UnknownField,
    /// A field that is missing, or of another type than it has.
    Shape,
    /// A value that has the right type and cannot be taken.
    Value,
    /// A field that exists, and that is not honoured here.
    Unsupported,
    /// An object of a kind or version that is not read.
    NotRead,
    /// Two objects with one name.
    Twice,
    /// Pods, namespaces and nodes that contradict each other, or that nobody can know.
    Cluster,
    /// A rule about requests on a port that is not TCP.
    NotTcp,
    /// A method that is not in upper case.
    MethodCase,
    /// It does less, or more, than it seems to.
    Surprise,
    /// Worth knowing.
    Note,
}

impl Category {
    /// What a problem of this severity is, unless it is said.
    #[must_use]
    pub const fn usual(severity: Severity) -> Self {
        match severity {
            Severity::Error => Self::Value,
            Severity::Warning => Self::Surprise,
            Severity::Info => Self::Note,
        }
    }
}

/// A part of one line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, or what stands for it; empty if the object came from elsewhere.
    pub file: Arc<str>,
    /// The line, from 1; 0 if unknown.
    pub line: u32,
    /// The first column, in characters from 1; 0 if unknown.
    pub column: u32,
    /// The column after the last; 0: the rest of the line.
    pub end_column: u32,
}

/// One finding. Displays as `file:line:column: path: reason: remedy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// The file, or what stands for it; empty if the object came from elsewhere.
    pub file: Arc<str>,
    /// The line, from 1; 0 if unknown.
    pub line: u32,
    /// The column, from 1; 0 if unknown.
    pub column: u32,
    /// How bad it is.
    pub severity: Severity,
    /// The object, as `Kind/namespace/name`.
    pub object: Option<Arc<str>>,
    /// The field, as `spec.ingress[0].from`; empty for the whole object.
    pub path: String,
    /// What is wrong, and what follows from it.
    pub reason: String,
    /// What to do.
    pub remedy: String,
    /// The column after the last of what is wrong on its line; 0: the rest of the line.
    pub end_column: u32,
    /// What kind of thing is wrong.
    pub category: Category,
}

impl Problem {
    /// The same problem, of this category.
    #[must_use]
    pub fn of(self, category: Category) -> Self {
        Self { category, ..self }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { file: self.file.clone(), line: self.line, column: self.column, end_column: self.end_column }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", Plain(&self.path))?;
        }
        Plain(&self.reason).fmt(f)?;
        if !self.remedy.is_empty() {
            write!(f, ": {}", Plain(&self.remedy))?;
        }
        if let Some(object) = &self.object {
            write!(f, " ({})", Plain(object))?;
        }
        Ok(())
    }
}

/// Most problems told of one object: enough to correct it by, and no flood.
const MAX_PROBLEMS: usize = 64;

/// The problems of one object as they are found. Bounded, and no error is ever hidden by what is less than one.
#[derive(Debug, Default)]
pub struct Problems {
    kept: Vec<Problem>,
    errors: usize,
    hidden: usize,
}

impl Problems {
    /// Adds one. Beyond the bound an error takes the place of what is less, and anything else is counted.
    pub fn add(&mut self, problem: Problem) {
        let error = problem.severity == Severity::Error;
        self.errors += usize::from(error);
        if self.kept.len() < MAX_PROBLEMS {
            self.kept.push(problem);
            return;
        }
        self.hidden += 1;
        let less = self.kept.iter().rposition(|kept| kept.severity != Severity::Error);
        if let (true, Some(less)) = (error, less) {
            self.kept.remove(less);
            self.kept.push(problem);
        }
    }

    /// How many errors were added, kept or not.
    #[must_use]
    pub const fn errors(&self) -> usize {
        self.errors
    }

    /// What was found, and how much more there is.
    #[must_use]
    pub fn into_list(mut self, source: &Source) -> Vec<Problem> {
        if self.hidden > 0 {
            let error = self.kept.iter().all(|kept| kept.severity == Severity::Error);
            let severity = if error { Severity::Error } else { Severity::Warning };
            let reason = format!("{} more problems are not shown", self.hidden);
            self.kept.push(source.problem(severity, "", reason, "correct these first"));
        }
        self.kept
    }
}

/// Text of a manifest, without what would steer a terminal or begin a line of a log.
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_debug())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_warnings_hides_no_error() {
        let source = Source::of_object("Pod/a/b");
        let mut problems = Problems::default();
        for number in 0..2 * MAX_PROBLEMS {
            problems.add(source.problem(Severity::Warning, "", format!("w{number}"), ""));
        }
        for number in 0..3 {
            problems.add(source.problem(Severity::Error, "", format!("e{number}"), ""));
        }
        assert_eq!(problems.errors(), 3);
        let list = problems.into_list(&source);
        let errors = list.iter().filter(|problem| problem.severity == Severity::Error).count();
        assert_eq!((list.len(), errors), (MAX_PROBLEMS + 1, 3));
        assert_eq!(list[MAX_PROBLEMS].reason, format!("{} more problems are not shown", MAX_PROBLEMS + 3));
    }

    #[test]
    fn a_flood_of_errors_is_counted() {
        let source = Source::of_object("Pod/a/b");
        let mut problems = Problems::default();
        for number in 0..=MAX_PROBLEMS {
            problems.add(source.problem(Severity::Error, "", format!("e{number}"), ""));
        }
        problems.add(source.problem(Severity::Warning, "", "w", ""));
        assert_eq!(problems.errors(), MAX_PROBLEMS + 1);
        let list = problems.into_list(&source);
        assert_eq!(
            (list.len(), &*list[MAX_PROBLEMS].reason),
            (MAX_PROBLEMS + 1, "2 more problems are not shown")
        );
        assert_eq!(list[MAX_PROBLEMS].severity, Severity::Error);
    }

    #[test]
    fn a_manifest_steers_no_terminal() {
        let problem = Problem {
            file: "a.yaml".into(),
            line: 1,
            column: 2,
            severity: Severity::Error,
            object: Some("Pod/a/\u{1b}[2J".into()),
            path: "spec.\n\r".into(),
            reason: "é".into(),
            remedy: String::new(),
            end_column: 0,
            category: Category::Value,
        };
        assert_eq!(problem.to_string(), "a.yaml:1:2: spec.\\n\\r: é (Pod/a/\\u{1b}[2J)");
    }
}
