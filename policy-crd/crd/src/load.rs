//! Files, texts and single values into objects: where control and the CLI come in.
//!
//! Never fails as a whole: what cannot be read is a problem, the rest is loaded. Files are read here and
//! nowhere else in this crate.

use crate::cilium::CiliumKind;
use crate::decode::broken_namespace;
use crate::kinds::{Form, policy_form, unread};
use crate::object::{Objects, Source, Sourced};
use crate::problem::{Category, Problem, Severity};
use crate::read::Reader;
use crate::tiered::TieredObject;
use crate::yaml::{self, Broken, Flaw};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file: the dump of a big cluster's pods has some tens of megabytes.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Most files of one directory.
const MAX_FILES: usize = 10_000;

/// What was read, and what was wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The objects.
    pub objects: Objects,
    /// The problems, in the order of the files.
    pub problems: Vec<Problem>,
}

/// Reads every `*.yaml`, `*.yml` and `*.json` of a directory, sorted by name, or one file. Sub-directories and
/// hidden files are left out, as `kubectl apply -f` leaves them out.
#[must_use]
pub fn load_dir(path: &Path) -> Loaded {
    match manifests(path) {
        Ok(files) => load_files(&files),
        Err(problem) => Loaded { objects: Objects::default(), problems: vec![*problem] },
    }
}

/// Reads these files, in this order.
#[must_use]
pub fn load_files(files: &[PathBuf]) -> Loaded {
    let mut loader = Loader::default();
    for path in files {
        let name: Arc<str> = path.display().to_string().into();
        match read_manifest(path) {
            Ok(text) => loader.text(&name, &text),
            Err(problem) => loader.loaded.problems.push(*problem),
        }
    }
    loader.loaded
}

/// Reads texts as if each were a file of this name, in this order, as one cluster.
#[must_use]
pub fn load_texts<'t>(texts: impl IntoIterator<Item = (&'t str, &'t str)>) -> Loaded {
    load_texts_in(texts, None)
}

/// [`load_texts`]; a policy that names no namespace is of this one, as `kubectl apply -n` has it.
#[must_use]
pub fn load_texts_in<'t>(
    texts: impl IntoIterator<Item = (&'t str, &'t str)>,
    namespace: Option<&str>,
) -> Loaded {
    let mut loader = Loader { namespace: namespace.map(Into::into), ..Loader::default() };
    for (name, text) in texts {
        loader.text(&name.into(), text);
    }
    loader.loaded
}

/// Reads a text as if it were a file of this name.
#[must_use]
pub fn load_str(name: &str, text: &str) -> Loaded {
    let mut loader = Loader::default();
    loader.text(&name.into(), text);
    loader.loaded
}

/// Reads objects that came as values, from an API server or a test.
#[must_use]
pub fn load_value<'v>(values: impl IntoIterator<Item = &'v Value>) -> Loaded {
    let mut loader = Loader::default();
    let source = Source { file: "".into(), spans: Arc::default(), prefix: "".into(), object: None };
    for value in values {
        loader.value(value, &source, &[]);
    }
    loader.loaded
}

fn bare_problem(file: &Arc<str>, at: (u32, u32), reason: String, remedy: &str) -> Problem {
    Problem {
        file: file.clone(),
        line: at.0,
        column: at.1,
        severity: Severity::Error,
        object: None,
        path: String::new(),
        reason,
        remedy: remedy.to_owned(),
        end_column: 0,
        category: Category::Unreadable,
    }
}

/// The manifests that [`load_dir`] reads, in its order.
///
/// # Errors
/// The directory cannot be read, or has too many of them.
pub fn manifests(path: &Path) -> Result<Vec<PathBuf>, Box<Problem>> {
    let name: Arc<str> = path.display().to_string().into();
    let fail = |error: std::io::Error| {
        let reason = format!("cannot be read: {error}");
        Box::new(bare_problem(&name, (0, 0), reason, "give a directory of manifests, or one manifest"))
    };
    if std::fs::metadata(path).map_err(fail)?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let manifest = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        // Following links: a mounted ConfigMap is made of them. One that leads nowhere is a problem, not nothing.
        let directory = std::fs::metadata(&path).is_ok_and(|meta| meta.is_dir());
        if manifest && !hidden && !directory {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            let reason = format!("more than {MAX_FILES} manifests; none of them is read");
            return Err(Box::new(bare_problem(&name, (0, 0), reason, "put several objects into one file")));
        }
    }
    files.sort();
    Ok(files)
}

/// The text of one file.
///
/// # Errors
/// It cannot be read, is larger than [`MAX_FILE_BYTES`], or is not UTF-8.
pub fn read_manifest(path: &Path) -> Result<String, Box<Problem>> {
    read(path).map_err(|reason| {
        let name: Arc<str> = path.display().to_string().into();
        Box::new(bare_problem(&name, (0, 0), reason, "nothing in it is in force: correct it"))
    })
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("has more than {MAX_FILE_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("is not UTF-8: line {line}")
    })
}

/// The place of an object with this kind and name before.
type Seen = HashMap<(Box<str>, Box<str>, Box<str>), String>;

/// The object in a namespace, if it is a policy of one and names none.
fn placed(fields: &Map<String, Value>, form: Form, namespace: &Value) -> Option<Map<String, Value>> {
    let namespaced = matches!(form, Form::Namespaced(_) | Form::Cilium(CiliumKind::Namespaced));
    let metadata = fields.get("metadata").and_then(Value::as_object)?;
    let absent = metadata.get("namespace").is_none_or(Value::is_null);
    (namespaced && absent).then(|| {
        let (mut fields, mut metadata) = (fields.clone(), metadata.clone());
        metadata.insert("namespace".into(), namespace.clone());
        fields.insert("metadata".into(), Value::Object(metadata));
        fields
    })
}

#[derive(Default)]
struct Loader {
    loaded: Loaded,
    seen: Seen,
    /// The namespace of policies that name none.
    namespace: Option<Value>,
}

impl Loader {
    fn file_problem(&mut self, file: &Arc<str>, at: (u32, u32), reason: String, remedy: &str) {
        self.loaded.problems.push(bare_problem(file, at, reason, remedy));
    }

    fn text(&mut self, file: &Arc<str>, text: &str) {
        for document in yaml::documents(text) {
            let source =
                Source { file: file.clone(), spans: document.spans, prefix: "".into(), object: None };
            match document.broken {
                None => self.value(&document.value, &source, &document.flaws),
                Some(broken) => self.broken(&document.value, &source, document.flaws, &broken),
            }
        }
    }

    /// A document that stops being YAML. A policy that is known by its kind and namespace does not go out of
    /// force by it: what it would have said is taken on the closed side; nor does a namespace leave the dataplane. Of other
    /// objects nothing is taken.
    fn broken(&mut self, value: &Value, source: &Source, mut flaws: Vec<Flaw>, broken: &Broken) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api, kind) = (text("apiVersion"), text("kind"));
        let namespace = (api, kind) == ("v1", "Namespace");
        let policy = policy_form(api, kind);
        let reason = format!("the document is not YAML: {}", broken.reason);
        let (true, Value::Object(fields)) = (namespace || policy.is_some(), value) else {
            let remedy = "nothing in this document is in force, the others are: correct it";
            self.file_problem(&source.file, broken.at, reason, remedy);
            return;
        };
        let effect = if namespace {
            "until it is corrected the namespace has the labels before the break, and is in the dataplane"
        } else {
            "until it is corrected the policy closes what it selects"
        };
        flaws.push(Flaw {
            path: broken.path.clone(),
            at: broken.at,
            reason: format!("{reason}; {effect}"),
            remedy: "correct it; the other documents are in force".to_owned(),
        });
        let source = Source { object: label(fields), ..source.clone() };
        self.flaws(&source, &flaws);
        match policy {
            Some(form) => self.policy(fields, form, &source, &flaws, true),
            None => self
                .typed(&broken_namespace(value), &source, &flaws, false, |objects| &mut objects.namespaces),
        }
    }

    fn value(&mut self, value: &Value, source: &Source, flaws: &[Flaw]) {
        let Value::Object(fields) = value else {
            self.flaws(source, flaws);
            let reason = "a Kubernetes object is expected here; this is not in force";
            let problem =
                source.problem(Severity::Error, "", reason, "write apiVersion, kind, metadata and spec");
            self.loaded.problems.push(problem.of(Category::Shape));
            return;
        };
        let text = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api, kind) = (text("apiVersion"), text("kind"));
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(Value::Array(items)) = fields.get("items")
            && source.prefix.is_empty()
        {
            self.flaws(source, flaws);
            self.items(items, api, item_kind, source, flaws);
            return;
        }
        let placed =
            self.namespace.as_ref().and_then(|namespace| placed(fields, policy_form(api, kind)?, namespace));
        let fields = placed.as_ref().unwrap_or(fields);
        let source = Source { object: label(fields), ..source.clone() };
        self.flaws(&source, flaws);
        self.object(api, kind, fields, value, &source, flaws);
    }

    /// Reports what was odd in the text, once: an item of a list has its list's.
    fn flaws(&mut self, source: &Source, flaws: &[Flaw]) {
        for flaw in flaws.iter().filter(|_| source.prefix.is_empty()) {
            let path = flaw.path.strip_suffix(yaml::BREAK).unwrap_or(&flaw.path);
            let mut problem = source.problem(Severity::Error, path, &flaw.reason, &flaw.remedy);
            if flaw.at != (problem.line, problem.column) {
                (problem.line, problem.column) = flaw.at;
                problem.end_column = 0;
            }
            self.loaded.problems.push(problem.of(Category::Unreadable));
        }
    }

    fn items(&mut self, items: &[Value], api: &str, kind: &str, source: &Source, flaws: &[Flaw]) {
        for (index, item) in items.iter().enumerate() {
            let source = Source { prefix: format!("items[{index}].").into(), ..source.clone() };
            match item {
                // Typed lists leave the kind of their items out.
                Value::Object(fields) if !fields.contains_key("kind") && !kind.is_empty() => {
                    let mut fields = fields.clone();
                    fields.insert("apiVersion".into(), api.into());
                    fields.insert("kind".into(), kind.into());
                    self.value(&Value::Object(fields), &source, flaws);
                }
                other => self.value(other, &source, flaws),
            }
        }
    }

    fn object(
        &mut self,
        api: &str,
        kind: &str,
        fields: &Map<String, Value>,
        value: &Value,
        source: &Source,
        flaws: &[Flaw],
    ) {
        match (api, kind) {
            ("v1", "Namespace") => self.typed(value, source, flaws, false, |objects| &mut objects.namespaces),
            ("v1", "Node") => self.typed(value, source, flaws, false, |objects| &mut objects.nodes),
            ("v1", "Pod") => self.typed(value, source, flaws, true, |objects| &mut objects.pods),
            ("v1", "Service") => self.typed(value, source, flaws, true, |objects| &mut objects.services),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.typed(value, source, flaws, true, |objects| &mut objects.endpoint_slices);
            }
            _ => match policy_form(api, kind) {
                Some(form) => self.policy(fields, form, source, flaws, false),
                None => self.loaded.problems.push(unread(api, kind, source).of(Category::NotRead)),
            },
        }
    }

    /// Whether this is the first object of its kind and name; a problem if not.
    fn is_first(&mut self, source: &Source, effect: &str) -> bool {
        let object = source.object.as_deref().unwrap_or_default();
        let mut parts = object.splitn(3, '/').map(Box::from);
        let mut part = || parts.next().unwrap_or_default();
        let here = source.problem(Severity::Error, "", "", "");
        let place = format!("{}:{}", here.file, here.line);
        let first = match self.seen.entry((part(), part(), part())) {
            Entry::Vacant(entry) => {
                entry.insert(place);
                return true;
            }
            Entry::Occupied(entry) => entry.get().clone(),
        };
        let reason = format!("the object is given twice, first at {first}; {effect}");
        let problem = source.problem(Severity::Error, "", reason, "remove one, or give it another name");
        self.loaded.problems.push(problem.of(Category::Twice));
        false
    }

    fn typed<T: DeserializeOwned>(
        &mut self,
        value: &Value,
        source: &Source,
        flaws: &[Flaw],
        namespaced: bool,
        place: impl FnOnce(&mut Objects) -> &mut Vec<Sourced<T>>,
    ) {
        let named =
            |field: &str| value.get("metadata").and_then(|m| m.get(field)).is_some_and(Value::is_string);
        for (field, needed) in [("name", true), ("namespace", namespaced)] {
            if needed && !named(field) {
                let reason = format!("the object has no {field}; it is left out");
                let path = format!("metadata.{field}");
                let remedy = format!("write metadata.{field}");
                let problem = source.problem(Severity::Error, &path, reason, remedy);
                self.loaded.problems.push(problem.of(Category::Shape));
                return;
            }
        }
        if !self.is_first(source, "this one is left out") {
            return;
        }
        let mut reader = Reader::new(source, flaws);
        let object = reader.typed(value);
        self.loaded.problems.extend(reader.into_problems());
        if let Some(object) = object {
            place(&mut self.loaded.objects).push(Sourced { object: Arc::new(object), source: source.slim() });
        }
    }

    fn policy(
        &mut self,
        fields: &Map<String, Value>,
        form: Form,
        source: &Source,
        flaws: &[Flaw],
        broken: bool,
    ) {
        let mut reader = Reader::new(source, flaws);
        match form {
            Form::Namespaced(kind) => {
                let policy = reader.policy(fields, kind);
                self.loaded.problems.extend(reader.into_problems());
                let Some(mut policy) = policy else { return };
                policy.sound &= self.is_first(source, "this one isolates and denies, and grants nothing");
                if broken {
                    policy.close();
                }
                policy.clean &= policy.sound && flaws.is_empty();
                self.loaded.objects.policies.push(policy);
            }
            Form::ClusterNetwork => {
                let policy = reader.cluster_network(fields);
                self.loaded.problems.extend(reader.into_problems());
                let policy = self.tiered(policy, source, flaws, broken);
                self.loaded.objects.cluster_network_policies.push(policy);
            }
            Form::ClusterL7 => {
                let policy = reader.cluster_l7(fields);
                self.loaded.problems.extend(reader.into_problems());
                let policy = self.tiered(policy, source, flaws, broken);
                self.loaded.objects.cluster_l7_policies.push(policy);
            }
            Form::Cilium(kind) => self.cilium(reader, fields, kind, flaws, broken),
            Form::CiliumCidrGroup => self.cidr_group(reader, fields, broken),
        }
    }

    fn cilium(
        &mut self,
        mut reader: Reader<'_>,
        fields: &Map<String, Value>,
        kind: CiliumKind,
        flaws: &[Flaw],
        broken: bool,
    ) {
        let policy = reader.cilium(fields, kind);
        self.loaded.problems.extend(reader.into_problems());
        let Some(mut policy) = policy else { return };
        let source = policy.source.clone();
        policy.sound &= self.is_first(&source, "this one isolates and denies, and grants nothing");
        if broken {
            policy.close();
        }
        policy.clean &= policy.sound && flaws.is_empty();
        self.loaded.objects.cilium.push(policy);
    }

    /// Of two groups with one name nobody knows which is meant: the second makes the first doubtful, too.
    fn cidr_group(&mut self, mut reader: Reader<'_>, fields: &Map<String, Value>, broken: bool) {
        let mut group = reader.cilium_group(fields);
        self.loaded.problems.extend(reader.into_problems());
        let source = group.source.clone();
        let first = self.is_first(&source, "neither grants anything, and both are everything to a deny");
        group.sound &= first && !broken;
        let groups = &mut self.loaded.objects.cidr_groups;
        if !first {
            groups.iter_mut().filter(|other| other.name == group.name).for_each(|other| other.sound = false);
        }
        if broken && group.labels.as_ref().is_some_and(|labels| labels.is_empty()) {
            // They may have stood behind the break.
            group.labels = None;
        }
        groups.push(group);
    }

    fn tiered<R>(
        &mut self,
        mut policy: TieredObject<R>,
        source: &Source,
        flaws: &[Flaw],
        broken: bool,
    ) -> TieredObject<R> {
        policy.sound &= self.is_first(source, "this one accepts nothing, and denies what it would pass");
        if broken {
            policy.close();
        }
        policy.clean &= policy.sound && flaws.is_empty();
        policy
    }
}

/// `Kind/namespace/name`, as far as they are given.
fn label(fields: &Map<String, Value>) -> Option<Arc<str>> {
    let meta = fields.get("metadata");
    let parts = [fields.get("kind"), meta.and_then(|m| m.get("namespace")), meta.and_then(|m| m.get("name"))];
    let given: Vec<&str> =
        parts.into_iter().flatten().filter_map(Value::as_str).filter(|p| !p.is_empty()).collect();
    (!given.is_empty()).then(|| given.join("/").into())
}
