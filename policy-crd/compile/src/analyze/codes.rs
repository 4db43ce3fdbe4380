//! Every code: what it means, how bad it usually is, what to do, and its page.
//!
//! A code that was given out keeps its meaning; one that is no longer given is never given another. By hundreds:
//! 00 loading and lowering, 01 whom a policy names, 02 ports, 03 what is said, 04 rules against rules, 05 what
//! comes of it. Knows nothing of how a finding is made.

use sluice_crd::{Category, Severity};

/// One code.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// As `SLU0101`.
    pub id: &'static str,
    /// How bad it usually is.
    pub severity: Severity,
    /// What it means.
    pub title: &'static str,
    /// What to do, in general.
    pub remedy: &'static str,
    /// Its page in the documentation, Markdown.
    pub page: &'static str,
}

macro_rules! codes {
    ($($name:ident = $id:literal, $severity:ident, $title:literal, $remedy:literal;)*) => {
        $(
            pub(super) static $name: Code = Code {
                id: $id,
                severity: Severity::$severity,
                title: $title,
                remedy: $remedy,
                page: include_str!(concat!("../../../../docs/analyze/", $id, ".md")),
            };
        )*

        /// Every code, in order.
        pub static CODES: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    UNREADABLE = "SLU0001", Error, "what cannot be read", "correct the YAML";
    UNKNOWN_FIELD = "SLU0002", Error, "a field that nobody knows", "write the field that was meant";
    SHAPE = "SLU0003", Error, "a field of the wrong shape", "write a value of the type expected";
    VALUE = "SLU0004", Error, "a value that cannot be taken", "correct the value";
    UNSUPPORTED = "SLU0005", Error, "a field that is not honoured", "say it without the field";
    NOT_READ = "SLU0006", Error, "an object that is not read", "write a kind and version that are read";
    TWICE = "SLU0007", Error, "an object that is given twice", "remove one, or give it another name";
    CLUSTER = "SLU0008", Error, "pods and nodes that contradict each other", "remove what is out of date";
    SURPRISE = "SLU0009", Warning, "something that does not do what it seems to", "say what was meant";
    NOTE = "SLU0010", Info, "worth knowing", "nothing, if it was meant";
    SELECTS_NOBODY = "SLU0101", Warning, "the policy selects no pod", "correct the selector";
    NAMES_NOBODY = "SLU0102", Warning, "a peer that is no pod", "correct the selector";
    LABEL_TYPO = "SLU0103", Warning, "a label that is nearly one that exists", "write the label that exists";
    HOST_NETWORK = "SLU0104", Warning, "the policy selects pods on the host's network only", "select other pods";
    POD_CIDR = "SLU0105", Info, "an address block of pods", "select the pods by their labels";
    PORT_NAME = "SLU0201", Warning, "a port name that nobody has", "write a name or number that the pods have";
    NOT_TCP = "SLU0202", Warning, "a rule about requests where there is no TCP", "name TCP ports";
    TLS_PORT = "SLU0203", Warning, "a rule about requests on a port that carries TLS", "write rules.tls";
    HEAD = "SLU0301", Info, "GET and HEAD are two methods", "name both, or leave methods out";
    ANCHORS = "SLU0302", Warning, "a regular expression that is a full match", "write all that it shall match";
    HOST_DOT = "SLU0303", Warning, "a dot in a host that matches any character", "write \\. for a dot";
    TRAILING_SLASH = "SLU0304", Info, "an exact path that ends with a slash", "write PathPrefix, or both paths";
    METHOD_CASE = "SLU0305", Warning, "a method that is not in upper case", "write it in upper case";
    GRPC_CASE = "SLU0306", Info, "a gRPC name that begins in lower case", "write it as the .proto file does";
    CLIENT_SAYS = "SLU0307", Warning, "a name that the client says, to anybody", "name the addresses, too";
    UNREACHABLE = "SLU0401", Warning, "a rule that is never reached", "put it first, or remove it";
    SHADOWED = "SLU0402", Warning, "an allow that denies shadow", "narrow the deny, or remove the allow";
    L7_CANCELLED = "SLU0403", Warning, "an allow that a wider one cancels", "narrow the allow without conditions";
    TIER_DECIDES = "SLU0404", Warning, "a rule that the Admin tier decides before", "Pass it in the Admin tier";
    REDUNDANT = "SLU0405", Info, "a rule that adds nothing", "remove it";
    CLOSED = "SLU0406", Warning, "an allow that another layer closes", "allow it in both layers";
    PASS_IDLE = "SLU0407", Info, "a Pass that leaves nothing out", "remove it, or put it first";
    TIE = "SLU0408", Warning, "two policies of a tier with one priority", "give one another priority";
    DNS = "SLU0501", Warning, "the policy cuts off DNS", "allow port 53 to the name server";
    AUDIT_ALL = "SLU0502", Warning, "an audit that would deny everything", "write the rules that shall be tried";
    NOT_ENFORCED = "SLU0503", Warning, "the policy is not in force", "set the namespace's labels";
}

/// The code of what loading or lowering found.
pub(super) fn of_category(category: Category) -> &'static Code {
    match category {
        Category::Unreadable => &UNREADABLE,
        Category::UnknownField => &UNKNOWN_FIELD,
        Category::Shape => &SHAPE,
        Category::Value => &VALUE,
        Category::Unsupported => &UNSUPPORTED,
        Category::NotRead => &NOT_READ,
        Category::Twice => &TWICE,
        Category::Cluster => &CLUSTER,
        Category::NotTcp => &NOT_TCP,
        Category::MethodCase => &METHOD_CASE,
        Category::Surprise => &SURPRISE,
        Category::Note => &NOTE,
    }
}

/// The code of this name, in whatever case.
#[must_use]
pub fn find(id: &str) -> Option<&'static Code> {
    CODES.iter().copied().find(|code| code.id.eq_ignore_ascii_case(id))
}
