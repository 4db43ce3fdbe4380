//! YAML (and so JSON) text into value trees that remember where every field stood.
//!
//! The text is cut at `---` first and each document is parsed alone, so that a broken one costs itself only.
//! Duplicate keys, odd tags and the like are flaws of their place, not of the document. Knows nothing of
//! Kubernetes.

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Deepest nesting: an object of ours has 12 levels, a Pod about 20.
const MAX_DEPTH: usize = 64;
/// Most nodes of one document, counted after aliases are filled in: a list of every pod of a big cluster fits,
/// a "billion laughs" does not.
const MAX_NODES: usize = 4_000_000;

/// The key whose value's fields are taken over, as kubectl does.
const MERGE: &str = "<<";

/// What stands below the innermost part that is not whole.
pub(crate) const BREAK: &str = ".?";

/// Line and column, from 1.
pub(crate) type Position = (u32, u32);

/// What a field takes up of the line that it begins on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where its key begins, or, of an item of a list, the item.
    pub(crate) at: Position,
    /// The column after its value if that ends on the same line, else after its key; 0: the rest of the line.
    pub(crate) end: u32,
}

/// Where the fields of one document stood.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Spans(HashMap<String, Extent>);

impl Spans {
    /// The place of the field, or of the nearest part around it that has one.
    pub(crate) fn find(&self, path: &str) -> Option<Extent> {
        let mut path = path;
        loop {
            if let Some(extent) = self.0.get(path) {
                return Some(*extent);
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => return self.0.get("").copied(),
            }
        }
    }

    /// Whether the field is written.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// One place for everything.
    pub(crate) fn at(extent: Option<Extent>) -> Self {
        Self(extent.map(|extent| (String::new(), extent)).into_iter().collect())
    }

    fn set_end(&mut self, path: &str, end: u32) {
        if let Some(extent) = self.0.get_mut(path) {
            extent.end = end;
        }
    }
}

/// Something wrong at one place of a document that can be read otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) path: String,
    pub(crate) at: Position,
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

/// One document, as far as it could be read.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) spans: Arc<Spans>,
    pub(crate) flaws: Vec<Flaw>,
    /// Where it stopped being YAML. What stood before is in `value`; the flaw at [`Broken::path`] is not.
    pub(crate) broken: Option<Broken>,
}

/// Where and why a document cannot be read on.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) at: Position,
    pub(crate) reason: String,
    /// [`BREAK`] below the innermost part that is not whole.
    pub(crate) path: String,
}

/// Reads every document of a text. Empty documents are left out.
pub(crate) fn documents(text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    for (first_line, chunk) in chunks(text) {
        read_chunk(chunk, first_line, &mut out);
    }
    out
}

/// Cuts before every `---` at the start of a line: nothing else in YAML can begin so.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut cuts = vec![(0, 0)];
    let mut offset = 0;
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let marker = content.strip_prefix("---");
        if offset > 0
            && marker.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        {
            cuts.push((line, offset));
        }
        offset += content.len();
    }
    let ends = cuts.iter().skip(1).map(|(_, at)| *at).chain([text.len()]).collect::<Vec<_>>();
    cuts.iter()
        .zip(ends)
        .map(|((line, start), end)| (*line, &text[*start..end]))
        // Comments and directives alone are no document.
        .filter(|(_, chunk)| {
            chunk.lines().any(|line| {
                let line = line.trim();
                !(line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "...")
            })
        })
        .collect()
}

fn read_chunk(chunk: &str, first_line: usize, out: &mut Vec<Document>) {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(chunk, options),
        first_line,
        anchors: HashMap::new(),
        nodes: 0,
        end: Marker::new(0, 0, 0),
        spans: Spans::default(),
        flaws: Vec::new(),
        broken: None,
    };
    while let Some(document) = reader.document() {
        let broken = document.broken.is_some();
        if broken || !document.value.is_null() {
            out.push(document);
        }
        if broken {
            return;
        }
    }
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    first_line: usize,
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
    /// Where the value read last ends.
    end: Marker,
    spans: Spans,
    flaws: Vec<Flaw>,
    /// Once set, nothing more is read: what is open is closed as it is.
    broken: Option<Broken>,
}

impl<'t> Reader<'t> {
    fn position(&self, marker: Marker) -> Position {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (number(marker.line() + self.first_line), number(marker.col() + 1))
    }

    fn begin(&mut self, path: &str, at: Marker, end: u32) {
        let extent = Extent { at: self.position(at), end };
        self.spans.0.insert(path.to_owned(), extent);
    }

    /// The column after the value read last, if it ends on this line.
    fn end_on(&self, line: u32) -> Option<u32> {
        let (last, column) = self.position(self.end);
        (last == line).then_some(column)
    }

    fn stop(&mut self, at: Marker, path: &str, reason: String) {
        let broken = Broken { at: self.position(at), reason, path: format!("{path}{BREAK}") };
        self.broken.get_or_insert(broken);
    }

    fn next(&mut self, path: &str) -> Option<(Event<'t>, Span)> {
        if self.broken.is_some() {
            return None;
        }
        match self.parser.next_event()? {
            Ok(event) => Some(event),
            Err(error) => {
                self.stop(*error.marker(), path, error.info());
                None
            }
        }
    }

    fn document(&mut self) -> Option<Document> {
        while let Some((event, span)) = self.next("") {
            match event {
                Event::StreamEnd => return None,
                Event::DocumentStart(..) => {
                    self.anchors.clear();
                    self.nodes = 0;
                }
                Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) | Event::Alias(_) => {
                    self.begin("", span.start, 0);
                    let value = self.node(event, span, &mut String::new(), 0);
                    return Some(self.finish(value));
                }
                _ => {}
            }
        }
        // Broken before anything could be read, or the end.
        self.broken.is_some().then(|| self.finish(Value::Null))
    }

    fn finish(&mut self, value: Value) -> Document {
        Document {
            value,
            spans: Arc::new(std::mem::take(&mut self.spans)),
            flaws: std::mem::take(&mut self.flaws),
            broken: self.broken.take(),
        }
    }

    fn count(&mut self, nodes: usize, span: Span, path: &str) -> bool {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            let reason = format!("more than {MAX_NODES} values in one document, aliases filled in");
            self.stop(span.start, path, reason);
        }
        self.broken.is_none()
    }

    fn node(&mut self, event: Event<'t>, span: Span, path: &mut String, depth: usize) -> Value {
        if depth > MAX_DEPTH {
            self.stop(span.start, path, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        if !self.count(1, span, path) {
            return Value::Null;
        }
        let before = self.nodes;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.end = span.end;
                (anchor, self.scalar(&text, style, tag.as_deref(), span, path))
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", span, path);
                (anchor, self.sequence(path, depth))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", span, path);
                (anchor, self.mapping(path, depth))
            }
            Event::Alias(id) => {
                self.end = span.end;
                let size = self.anchors.get(&id).map_or(0, |(_, size)| *size);
                if !self.count(size, span, path) {
                    return Value::Null;
                }
                (0, self.anchors.get(&id).map_or(Value::Null, |(value, _)| value.clone()))
            }
            _ => {
                self.stop(span.start, path, "a value was expected here".to_owned());
                return Value::Null;
            }
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), self.nodes - before));
        }
        value
    }

    fn sequence(&mut self, path: &mut String, depth: usize) -> Value {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next(path) {
            if event == Event::SequenceEnd {
                self.end = span.end;
                break;
            }
            let len = path.len();
            path.push_str(&format!("[{}]", items.len()));
            self.begin(path, span.start, 0);
            items.push(self.node(event, span, path, depth + 1));
            let (line, _) = self.position(span.start);
            if let Some(end) = self.end_on(line) {
                self.spans.set_end(path, end);
            }
            path.truncate(len);
        }
        Value::Array(items)
    }

    fn mapping(&mut self, path: &mut String, depth: usize) -> Value {
        let mut fields = Map::new();
        let mut merged = Vec::new();
        while let Some((event, span)) = self.next(path) {
            let key = match event {
                Event::MappingEnd => {
                    self.end = span.end;
                    break;
                }
                Event::Scalar(text, ..) => text,
                other => {
                    self.node(other, span, path, depth + 1);
                    self.flaw(path, span, "a key that is no string", "write plain field names".to_owned());
                    Cow::Borrowed("")
                }
            };
            let len = path.len();
            if len > 0 {
                path.push('.');
            }
            path.push_str(&key);
            let twice = fields.contains_key(&*key);
            if twice {
                let first = self.spans.0.get(&*path).map_or(0, |extent| extent.at.0);
                let reason = format!("the key `{key}` is given twice, first on line {first}");
                self.flaw(path, span, &reason, "keep one of them".to_owned());
            } else {
                let (_, end) = self.position(span.end);
                self.begin(path, span.start, end);
            }
            let value = match self.next(path) {
                Some((event, span)) => self.node(event, span, path, depth + 1),
                None => Value::Null,
            };
            let (line, _) = self.position(span.start);
            if let (false, Some(end)) = (twice, self.end_on(line)) {
                self.spans.set_end(path, end);
            }
            path.truncate(len);
            if key == MERGE && (value.is_object() || value.is_array()) {
                merged.push(value);
            } else if !twice {
                fields.insert(key.into_owned(), value);
            }
        }
        merge(&mut fields, merged);
        Value::Object(fields)
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span, path: &str) -> Value {
        match tag {
            Some(tag) if tag.is_yaml_core_schema_tag("str") => Value::String(text.to_owned()),
            Some(_) => {
                self.flaw(
                    path,
                    span,
                    "a YAML tag that Kubernetes manifests do not have",
                    "remove it".to_owned(),
                );
                Value::Null
            }
            None if style == ScalarStyle::Plain => plain(text),
            None => Value::String(text.to_owned()),
        }
    }

    fn check_tag(&mut self, tag: Option<&Tag>, expected: &str, span: Span, path: &str) {
        if tag.is_some_and(|tag| !tag.is_yaml_core_schema_tag(expected)) {
            self.flaw(path, span, "a YAML tag that Kubernetes manifests do not have", "remove it".to_owned());
        }
    }

    fn flaw(&mut self, path: &str, span: Span, reason: &str, remedy: String) {
        let at = self.position(span.start);
        self.flaws.push(Flaw { path: path.to_owned(), at, reason: reason.to_owned(), remedy });
    }
}

/// Takes over the fields of merged mappings. What is written here, and what came earlier, holds.
fn merge(fields: &mut Map<String, Value>, merged: Vec<Value>) {
    let mappings = merged.into_iter().flat_map(|value| match value {
        Value::Array(items) => items,
        other => vec![other],
    });
    for mapping in mappings {
        match mapping {
            Value::Object(inner) => {
                for (key, value) in inner {
                    fields.entry(key).or_insert(value);
                }
            }
            // No mapping: the field that nobody knows is told.
            other => {
                fields.insert(MERGE.to_owned(), other);
            }
        }
    }
}

/// A plain scalar by YAML's core schema. `yes`, `no`, `on` and `off` are booleans as they are to kubectl, so
/// that a label which kubectl refuses is refused here too.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let starts_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    if starts_number {
        if let Some(hex) = text.strip_prefix("0x") {
            if let Ok(number) = u64::from_str_radix(hex, 16) {
                return Value::Number(number.into());
            }
        } else if let Some(octal) = text.strip_prefix("0o")
            && let Ok(number) = u64::from_str_radix(octal, 8)
        {
            return Value::Number(number.into());
        }
        if let Ok(number) = text.parse::<i64>() {
            return Value::Number(number.into());
        }
        if text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
            && let Some(number) = text.parse::<f64>().ok().and_then(Number::from_f64)
        {
            return Value::Number(number);
        }
    }
    Value::String(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(text: &str) -> Document {
        let mut all = documents(text);
        assert_eq!(all.len(), 1, "{text}");
        assert!(all[0].broken.is_none(), "{text}: {:?}", all[0].broken);
        all.remove(0)
    }

    fn at(document: &Document, path: &str) -> Option<Position> {
        document.spans.find(path).map(|extent| extent.at)
    }

    #[test]
    fn places_have_an_end_on_their_line() {
        let text = "a: 1 # one\nb:\n- x: [yes, \"é\"]\n  y: {z: 2, w: [3]}\n- 'v'\nc: |\n  long\nd: *x\n";
        let doc = one(&format!("k: &x 1\n{text}"));
        let end = |path: &str| doc.spans.find(path).map(|extent| extent.end);
        for (path, column) in [
            ("a", 5),
            ("b", 2),
            ("b[0]", 0),
            ("b[0].x", 16),
            ("b[0].x[1]", 15),
            ("b[0].y", 20),
            ("b[0].y.w", 19),
            ("b[1]", 6),
            ("c", 2),
            ("d", 6),
        ] {
            assert_eq!(end(path), Some(column), "{path}");
        }
    }

    #[test]
    fn values_and_places() {
        let doc = one("a: 1\nb:\n- x: [yes, \"yes\", 1.5, null]\n- !!str 5\n");
        assert_eq!(doc.value, json!({"a": 1, "b": [{"x": [true, "yes", 1.5, null]}, "5"]}));
        assert_eq!(at(&doc, "a"), Some((1, 1)));
        assert_eq!(at(&doc, "b[0].x"), Some((3, 3)));
        assert_eq!(at(&doc, "b[0].x[1]"), Some((3, 12)));
        assert_eq!(at(&doc, "b[0].missing.deeper"), Some((3, 3)));
        assert!(doc.flaws.is_empty());
    }

    #[test]
    fn json_is_yaml() {
        let doc = one("{\n\t\"a\": {\"b\": [1, true, \"\\u00e9\"]}\n}\n");
        assert_eq!(doc.value, json!({"a": {"b": [1, true, "é"]}}));
        assert_eq!(at(&doc, "a.b"), Some((2, 8)));
    }

    #[test]
    fn a_broken_document_costs_itself_only() {
        let all = documents("a: 1\n---\nb: [\n---\nc: {d: 2}\n...\n---\n# nothing\n---\ne: 3\n");
        let whole: Vec<bool> = all.iter().map(|document| document.broken.is_none()).collect();
        assert_eq!(whole, [true, false, true, true]);
        let broken = all[1].broken.as_ref().unwrap();
        assert!(broken.at.0 >= 3 && broken.at.0 <= 4, "{broken:?}");
        assert_eq!(at(&all[2], "c.d"), Some((5, 5)));
    }

    #[test]
    fn what_stood_before_the_break_is_kept() {
        for (text, value, path) in [
            ("a: 1\nb: {c: 2, d: [3\n", json!({"a": 1, "b": {"c": 2, "d": []}}), "b.d.?"),
            ("a: {b: 1}\nc: \"x\n", json!({"a": {"b": 1}, "c": null}), "c.?"),
            ("a:\n  b: 1\n  c\n", json!({"a": {"b": 1}}), "a.?"),
        ] {
            let all = documents(text);
            assert_eq!(all.len(), 1, "{text}");
            assert_eq!(all[0].value, value, "{text}");
            assert_eq!(all[0].broken.as_ref().unwrap().path, path, "{text}");
        }
    }

    #[test]
    fn duplicate_keys_are_flaws_of_their_place() {
        let doc = one("spec:\n  a: 1\n  b: 2\n  a: 3\n");
        assert_eq!(doc.value, json!({"spec": {"a": 1, "b": 2}}));
        assert_eq!(doc.flaws.len(), 1);
        assert_eq!((doc.flaws[0].path.as_str(), doc.flaws[0].at), ("spec.a", (4, 3)));
        assert!(doc.flaws[0].reason.contains("first on line 2"));
    }

    #[test]
    fn aliases_are_filled_in_and_bounded() {
        assert_eq!(one("a: &x {k: v}\nb: *x\n").value, json!({"a": {"k": "v"}, "b": {"k": "v"}}));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let refs = vec![format!("*a{}", n - 1); 10].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
        }
        assert!(documents(&bomb)[0].broken.as_ref().unwrap().reason.contains("more than"));
    }

    #[test]
    fn merge_keys_take_over_what_is_not_written() {
        let doc =
            one("a: &x {k: v, l: w}\nb:\n  <<: *x\n  k: own\nc:\n  <<: [*x, {m: 1, l: 2}]\nd: {<<: 5}\n");
        assert_eq!(doc.value["b"], json!({"k": "own", "l": "w"}));
        assert_eq!(doc.value["c"], json!({"k": "v", "l": "w", "m": 1}));
        assert_eq!(doc.value["d"], json!({"<<": 5}));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}x{}", "[".repeat(100), "]".repeat(100));
        assert!(documents(&deep)[0].broken.is_some());
    }

    #[test]
    fn odd_tags_and_keys_are_flaws() {
        assert_eq!(one("a: !!binary aGk=\n").flaws[0].path, "a");
        assert_eq!(one("? [x]\n: 1\n").flaws.len(), 1);
    }
}
