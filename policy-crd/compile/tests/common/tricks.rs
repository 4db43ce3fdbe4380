//! Published ways round a policy, as data: what is sent, what becomes of it and why.
//!
//! Knows nothing of the engine. `bypass.rs` asks it of each and keeps docs/bypasses.md by it.

use serde_json::{Value, json};

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) http2: bool,
    pub(crate) method: &'static str,
    /// Path and query.
    pub(crate) target: &'static str,
    pub(crate) host: Option<&'static str>,
    pub(crate) headers: &'static [(&'static str, &'static str)],
}

const fn get(target: &'static str) -> Sent {
    Sent { http2: false, method: "GET", target, host: Some("shop.example"), headers: &[] }
}

const fn with(target: &'static str, headers: &'static [(&'static str, &'static str)]) -> Sent {
    Sent { headers, ..get(target) }
}

const fn method(method: &'static str, headers: &'static [(&'static str, &'static str)]) -> Sent {
    Sent { method, ..with("/", headers) }
}

const fn host(host: Option<&'static str>) -> Sent {
    Sent { host, ..get("/") }
}

const fn call(target: &'static str, headers: &'static [(&'static str, &'static str)]) -> Sent {
    Sent { http2: true, method: "POST", target, host: Some("shop.example"), headers }
}

/// What the policy that opens a part says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It is not let in.
    Shut,
    /// It is let in, and goes on to the server with this path: what was judged is what is served.
    As(&'static str),
}

use Opening::{As, Shut};

/// One trick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trick {
    pub(crate) name: &'static str,
    pub(crate) sent: Sent,
    pub(crate) into: Opening,
    pub(crate) why: &'static str,
}

const fn trick(name: &'static str, sent: Sent, into: Opening, why: &'static str) -> Trick {
    Trick { name, sent, into, why }
}

/// Tricks about one thing, with the two policies that they are tried on.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    /// What the deny names; everything else is open.
    pub(crate) deny: fn() -> Value,
    /// What alone is open.
    pub(crate) allow: fn() -> Value,
    /// In words.
    pub(crate) policies: &'static str,
    /// Passes both, so that neither is shut altogether.
    pub(crate) honest: Sent,
    pub(crate) tricks: &'static [Trick],
}

pub(crate) const GROUPS: &[Group] = &[
    Group {
        title: "Paths",
        deny: || json!({"http": [{"path": {"type": "PathPrefix", "value": "/admin"}}]}),
        allow: || json!({"http": [{"path": {"type": "PathPrefix", "value": "/public"}}]}),
        policies: "deny PathPrefix `/admin`; allow PathPrefix `/public`",
        honest: get("/public/a.b?next=/admin"),
        tricks: PATHS,
    },
    Group {
        title: "Methods",
        deny: || json!({"http": [{"methods": ["DELETE"]}]}),
        allow: || json!({"http": [{"methods": ["GET", "POST"]}]}),
        policies: "deny `DELETE`; allow `GET` and `POST`",
        honest: method("POST", &[]),
        tricks: METHODS,
    },
    Group {
        title: "Hosts",
        deny: || json!({"http": [{"hosts": [{"type": "Exact", "value": "admin.example"}]}]}),
        allow: || json!({"http": [{"hosts": [{"type": "Exact", "value": "shop.example"}]}]}),
        policies: "deny host `admin.example`; allow host `shop.example`",
        honest: host(Some("Shop.Example.:8080")),
        tricks: HOSTS,
    },
    Group {
        title: "Headers",
        deny: || json!({"http": [{"headers": [{"name": "x-role", "type": "Exact", "value": "admin"}]}]}),
        allow: || json!({"http": [{"headers": [{"name": "x-role", "type": "Exact", "value": "user"}]}]}),
        policies: "deny header `x-role: admin`; allow header `x-role: user`",
        honest: with("/", &[("x-role", "user")]),
        tricks: HEADERS,
    },
    Group {
        title: "Query parameters",
        deny: || json!({"http": [{"queryParams": [{"name": "d-bug", "type": "Exact", "value": "1"}]}]}),
        allow: || json!({"http": [{"queryParams": [{"name": "d-bug", "type": "Exact", "value": "0"}]}]}),
        policies: "deny parameter `d-bug=1`; allow parameter `d-bug=0`",
        honest: get("/?a=1&d-bug=0"),
        tricks: QUERIES,
    },
    Group {
        title: "gRPC",
        deny: || json!({"grpc": [{"service": "shop.v1.Admin"}]}),
        allow: || json!({"grpc": [{"service": "shop.v1.Cart"}]}),
        policies: "deny service `shop.v1.Admin`; allow service `shop.v1.Cart`",
        honest: call("/shop.v1.Cart/Get", GRPC),
        tricks: CALLS,
    },
];

const ENCODED: &str = "an escape of a letter is the letter (RFC 3986 §6.2.2.2)";
const TWICE: &str =
    "who decodes twice reads another path: denies look through three rounds, no allow takes it";
const DEEP: &str = "beyond the rounds that denies look through: any deny takes it";
const SLASH: &str = "a slash to who decodes before parting, a letter to who does not";
const BACK: &str = "a slash on Windows and to browsers' parsers (WHATWG URL)";
const DOTS: &str = "dot segments are resolved after decoding (RFC 3986 §6.2.2.3)";
const PARAMETER: &str = "Tomcat and others drop what follows `;` before they resolve dots";
const MERGED: &str = "nginx and others merge slashes, others part empty segments";
const OVERLONG: &str = "overlong UTF-8: ASCII to decoders that do not check (CVE-2000-0884)";
const LOOKS: &str = "NFKC and Windows' best fit make ASCII of it";
const CASE: &str = "Express, ASP.NET and file systems route without regard to case";
const END: &str = "cut off by what ends a text, a line or a name there";
const ROOT: &str = "`..` at the root: some stay there, some refuse";
const FORM: &str = "goes on as it came; seen through all the same";

const PATHS: &[Trick] = &[
    trick("as it is", get("/admin"), Shut, "the deny says so"),
    trick("below it", get("/admin/x"), Shut, "a prefix is of segments"),
    trick("encoded letter", get("/%61dmin"), Shut, ENCODED),
    trick("encoded letter, upper-case hex", get("/adm%69n%2Fx"), Shut, ENCODED),
    trick("encoded twice", get("/%2561dmin"), Shut, TWICE),
    trick("encoded three times", get("/%252561dmin"), Shut, TWICE),
    trick("encoded five times", get("/%2525252561dmin"), Shut, DEEP),
    trick("encoded escape", get("/public/%25%32%65%25%32%65/admin"), Shut, TWICE),
    trick("encoded slash", get("/public%2f..%2fadmin"), Shut, SLASH),
    trick("encoded slash before it", get("/%2fadmin"), Shut, SLASH),
    trick("encoded slash behind it", get("/admin%2Fx"), Shut, SLASH),
    trick("slash encoded twice", get("/public%252f..%252fadmin"), Shut, TWICE),
    trick("encoded backslash", get("/public%5c..%5cadmin"), Shut, BACK),
    trick("backslash", get("/public\\..\\admin"), Shut, BACK),
    trick("backslash first", get("\\admin"), Shut, BACK),
    trick("dot segments", get("/public/../admin"), Shut, DOTS),
    trick("a dot segment", get("/./admin"), Shut, DOTS),
    trick("dot segments inside", get("/public/./../admin"), Shut, DOTS),
    trick("encoded dots", get("/public/%2e%2e/admin"), Shut, DOTS),
    trick("half encoded dots", get("/public/.%2E/admin"), Shut, DOTS),
    trick("the other half", get("/public/%2e./admin"), Shut, DOTS),
    trick("dots and slash encoded", get("/public/%2e%2e%2fadmin"), Shut, SLASH),
    trick("dots encoded twice", get("/public/%252e%252e/admin"), Shut, TWICE),
    trick("dots and slash encoded twice", get("/public/%252e%252e%252fadmin"), Shut, TWICE),
    trick("beyond the root", get("/../admin"), Shut, ROOT),
    trick("far beyond the root", get("/public/../../admin"), Shut, ROOT),
    trick("three dots", get("/public/.../admin"), Shut, "a parent to some servers"),
    trick("dots and a blank", get("/public/..%20/admin"), Shut, "Windows drops blanks at the end of a name"),
    trick("dots and NUL", get("/public/..%00/admin"), Shut, END),
    trick("`..;`", get("/public/..;/admin"), Shut, PARAMETER),
    trick("`..;` with a parameter", get("/public/..;a=b/admin"), Shut, PARAMETER),
    trick("`..` and an encoded `;`", get("/public/..%3b/admin"), Shut, PARAMETER),
    trick("parameter in another segment", get("/public;/../admin"), Shut, PARAMETER),
    trick("parameter on it", get("/admin;a=b"), Shut, PARAMETER),
    trick("parameter before it", get("/;a=b/admin"), Shut, PARAMETER),
    trick("two slashes", get("//admin"), Shut, MERGED),
    trick("many slashes", get("////admin"), Shut, MERGED),
    trick("two slashes and dots", get("/public//../admin"), Shut, MERGED),
    trick("two slashes and more dots", get("/public//../../admin"), Shut, MERGED),
    trick(
        "network-path reference",
        get("//evil.example/admin"),
        Shut,
        "`//host/path` to who resolves a reference (RFC 3986 §4.2)",
    ),
    trick("the same with backslashes", get("/\\evil.example/admin"), Shut, BACK),
    trick("absolute-form target", get("http://shop.example/admin"), Shut, FORM),
    trick("absolute-form, allowed path as host", get("http://public/admin"), Shut, FORM),
    trick(
        "no slash first (HTTP/2 `:path`)",
        get("admin"),
        Shut,
        "the proxy refuses it; some servers add the slash",
    ),
    trick("overlong dots", get("/public/%c0%ae%c0%ae/admin"), Shut, OVERLONG),
    trick("overlong slash", get("/public%c0%af..%c0%afadmin"), Shut, OVERLONG),
    trick("overlong backslash", get("/public%c1%9c..%c1%9cadmin"), Shut, OVERLONG),
    trick("overlong slash of three bytes", get("/public%e0%80%af..%e0%80%afadmin"), Shut, OVERLONG),
    trick("overlong dots of four bytes", get("/public/%f0%80%80%ae%f0%80%80%ae/admin"), Shut, OVERLONG),
    trick("overlong letter", get("/%c1%a1dmin"), Shut, OVERLONG),
    trick("overlong dots encoded twice", get("/public/%25c0%25ae%25c0%25ae/admin"), Shut, OVERLONG),
    trick(
        "lead byte without continuation",
        get("/public/%c0%2e%c0%2e/admin"),
        Shut,
        "the second byte is masked into a dot by some",
    ),
    trick("`%u` escapes", get("/public/%u002e%u002e/admin"), Shut, "IIS and old scripts decode them"),
    trick("`%u` full-width", get("/public/%uff0e%uff0e/admin"), Shut, "the same, then best fit"),
    trick("full-width dots", get("/public/%ef%bc%8e%ef%bc%8e/admin"), Shut, LOOKS),
    trick("full-width slashes", get("/public%ef%bc%8f..%ef%bc%8fadmin"), Shut, LOOKS),
    trick("full-width slash, not encoded", get("/public／..／admin"), Shut, LOOKS),
    trick("full-width letter", get("/%ef%bd%81dmin"), Shut, LOOKS),
    trick("division slash", get("/public%e2%88%95..%e2%88%95admin"), Shut, LOOKS),
    trick("two-dot leader", get("/public/%e2%80%a5/admin"), Shut, LOOKS),
    trick("upper case", get("/ADMIN"), Shut, CASE),
    trick("mixed case below", get("/Admin/x"), Shut, CASE),
    trick("dotless i", get("/adm%c4%b1n"), Shut, "upper case of `ı` is `I`"),
    trick("slash at its end", get("/admin/"), Shut, "below it"),
    trick("dot at its end", get("/admin."), Shut, "Windows drops dots at the end of a name"),
    trick("blank at its end", get("/admin%20"), Shut, END),
    trick("tab at its end", get("/admin%09"), Shut, END),
    trick("tab inside", get("/ad%09min"), Shut, "taken out by parsers of the WHATWG's kind"),
    trick(
        "tab inside, not encoded",
        get("/ad\tmin"),
        Shut,
        "the proxy refuses it; taken out by some parsers",
    ),
    trick("line feed at its end", get("/admin%0a"), Shut, END),
    trick(
        "CR LF and a header",
        get("/admin%0d%0aX-A:%20b"),
        Shut,
        "a line's end to who writes it into a head",
    ),
    trick("NUL at its end", get("/admin%00"), Shut, END),
    trick("NUL and an extension", get("/admin%00.png"), Shut, END),
    trick("fragment", get("/admin#x"), Shut, "the proxy refuses it; no part of a target (RFC 9112 §3.2)"),
    trick(
        "fragment before dots",
        get("/public#/../../admin"),
        Shut,
        "who keeps the fragment resolves its dots",
    ),
    trick("encoded `#`", get("/admin%23x"), Shut, "a fragment to who decodes first"),
    trick("encoded `?`", get("/admin%3fx"), Shut, "a query to who decodes first"),
    trick("encoded `?` before dots", get("/public%3f/../admin"), Shut, DOTS),
    trick("query", get("/admin?x=/public"), Shut, "the query is no part of the path"),
    trick("`?` twice", get("/admin??x"), Shut, "the query begins at the first"),
    trick("broken escape and dots", get("/%zz/../admin"), Shut, DOTS),
    trick(
        "X-Original-URL",
        with("/public", &[("x-original-url", "/admin")]),
        As("/public"),
        "IIS and old frameworks serve that path instead (CVE-2018-14773). Denies look at it. Reverse proxies send it honestly, so an allow does not refuse it: add `headers: [{name: x-original-url, type: Absent}]` where a server obeys it",
    ),
    trick(
        "X-Rewrite-URL",
        with("/public", &[("x-rewrite-url", "/x/%2e%2e/admin")]),
        As("/public"),
        "as X-Original-URL",
    ),
    trick("nothing wrong, spelt oddly", get("/public/%61/../admin/../%2e/b%7e"), As("/public/b~"), ""),
];

const METHODS: &[Trick] = &[
    trick("as it is", method("DELETE", &[]), Shut, "the deny says so"),
    trick(
        "lower case",
        method("delete", &[]),
        Shut,
        "methods are case-sensitive (RFC 9110 §9.1); some servers fold them",
    ),
    trick("mixed case", method("Delete", &[]), Shut, "the same"),
    trick(
        "X-HTTP-Method-Override",
        method("POST", &[("x-http-method-override", "DELETE")]),
        Shut,
        "Rails, Laravel, Symfony and others obey it: it must be allowed as well",
    ),
    trick(
        "the same with `_`",
        method("POST", &[("x_http_method_override", "delete")]),
        Shut,
        "the same header to CGI",
    ),
    trick("X-HTTP-Method", method("POST", &[("x-http-method", "DELETE")]), Shut, "Microsoft's name of it"),
    trick("X-Method-Override", method("POST", &[("x-method-override", "DELETE")]), Shut, "IBM's name of it"),
    trick(
        "`_method`",
        Sent { method: "POST", ..get("/?_method=DELETE") },
        Shut,
        "Laravel's and Symfony's parameter",
    ),
    trick("`_method`, encoded", Sent { method: "POST", ..get("/?a=1&%5fmethod=%44ELETE") }, Shut, "the same"),
];

const UNREADABLE: &str = "two servers read two hosts: no allow takes it, every host deny does";

const HOSTS: &[Trick] = &[
    trick("as it is", host(Some("admin.example")), Shut, "the deny says so"),
    trick("upper case", host(Some("ADMIN.Example")), Shut, "hosts have no case (RFC 9110 §4.2.3)"),
    trick("dot at its end", host(Some("admin.example.")), Shut, "the same name, rooted"),
    trick("port", host(Some("admin.example:80")), Shut, "the port is no part of it"),
    trick("empty port", host(Some("admin.example:")), Shut, "the same"),
    trick("dot and port", host(Some("admin.example.:443")), Shut, "the same"),
    trick("two dots at its end", host(Some("shop.example..")), Shut, UNREADABLE),
    trick("userinfo", host(Some("shop.example@admin.example")), Shut, UNREADABLE),
    trick("userinfo with a port", host(Some("shop.example:80@admin.example")), Shut, UNREADABLE),
    trick("userinfo the other way", host(Some("admin.example@shop.example")), Shut, UNREADABLE),
    trick("two ports", host(Some("shop.example:80:admin.example")), Shut, UNREADABLE),
    trick("list", host(Some("shop.example, admin.example")), Shut, UNREADABLE),
    trick("path in it", host(Some("shop.example/admin.example")), Shut, UNREADABLE),
    trick("fragment in it", host(Some("shop.example#@admin.example")), Shut, UNREADABLE),
    trick("query in it", host(Some("shop.example?admin.example")), Shut, UNREADABLE),
    trick("backslash in it", host(Some("shop.example\\admin.example")), Shut, UNREADABLE),
    trick("encoded dot", host(Some("admin%2eexample")), Shut, UNREADABLE),
    trick("tab", host(Some("shop.example\tadmin.example")), Shut, UNREADABLE),
    trick("NUL", host(Some("shop.example\0.admin.example")), Shut, UNREADABLE),
    trick("blank before it", host(Some(" shop.example")), Shut, UNREADABLE),
    trick("full-width letters", host(Some("ａｄｍｉｎ.example")), Shut, UNREADABLE),
    trick("ideographic full stop", host(Some("admin。example")), Shut, "a dot to IDNA (UTS 46 §4)"),
    trick("broken address", host(Some("[::1]shop.example")), Shut, UNREADABLE),
    trick("no host", host(None), Shut, "it may be any: no allow, every host deny"),
];

const OCCURRENCES: &str = "an allow needs exactly one, a deny looks at each";
const UNDERSCORE: &str = "the same header to CGI, WSGI and PHP";

const HEADERS: &[Trick] = &[
    trick("as it is", with("/", &[("x-role", "admin")]), Shut, "the deny says so"),
    trick("`_`", with("/", &[("x_role", "admin")]), Shut, UNDERSCORE),
    trick("`_` beside `-`", with("/", &[("x-role", "user"), ("x_role", "admin")]), Shut, UNDERSCORE),
    trick(
        "`.`",
        with("/", &[("x-role", "user"), ("x.role", "admin")]),
        Shut,
        "what is no letter is `_` to some (lighttpd)",
    ),
    trick("twice, the last wins", with("/", &[("x-role", "user"), ("x-role", "admin")]), Shut, OCCURRENCES),
    trick("twice, the first wins", with("/", &[("x-role", "admin"), ("x-role", "user")]), Shut, OCCURRENCES),
    trick(
        "list",
        with("/", &[("x-role", "user, admin")]),
        Shut,
        "one field of a list is several (RFC 9110 §5.3)",
    ),
    trick("list without blank", with("/", &[("x-role", "admin,user")]), Shut, "the same"),
    trick(
        "quoted",
        with("/", &[("x-role", "\"admin\"")]),
        Shut,
        "a quoted string is its text to some (RFC 9110 §5.6.4)",
    ),
    trick("encoded", with("/", &[("x-role", "%61dmin")]), Shut, "frameworks decode"),
    trick("encoded list", with("/", &[("x-role", "user%2cadmin")]), Shut, "the same"),
    trick(
        "blanks",
        with("/", &[("x-role", "\tadmin ")]),
        Shut,
        "blanks round a value are no part of it (RFC 9110 §5.5)",
    ),
    trick("encoded blank", with("/", &[("x-role", "admin%20")]), Shut, "both"),
];

const POLLUTION: &str = "first, last or list, by server: an allow needs exactly one, a deny looks at each";

const QUERIES: &[Trick] = &[
    trick("as it is", get("/?d-bug=1"), Shut, "the deny says so"),
    trick("twice, the last wins", get("/?d-bug=0&d-bug=1"), Shut, POLLUTION),
    trick("twice, the first wins", get("/?d-bug=1&d-bug=0"), Shut, POLLUTION),
    trick("parted by `;`", get("/?d-bug=0;d-bug=1"), Shut, "some part at `;` too"),
    trick("list", get("/?d-bug=0,1"), Shut, "ASP joins and parts at commas"),
    trick("`[]`", get("/?d-bug=0&d-bug[]=1"), Shut, "PHP, Rails and Express make one parameter of both"),
    trick("`[key]`", get("/?d-bug%5bx%5d=1"), Shut, "the same"),
    trick("encoded value", get("/?d-bug=%31"), Shut, "values are decoded"),
    trick("encoded name", get("/?%64-bug=1"), Shut, "names are decoded"),
    trick("encoded twice", get("/?d-bug=%2531"), Shut, "who decodes twice"),
    trick("upper case", get("/?D-BUG=1"), Shut, "ASP.NET and Spring bind without regard to case"),
    trick("`_`", get("/?d_bug=1"), Shut, "PHP makes `_` of `.` and of blanks"),
    trick("`.`", get("/?d.bug=1"), Shut, "the same"),
    trick("blank before the name", get("/?d-bug=0&%20d-bug=1"), Shut, "PHP drops it"),
    trick("NUL behind the name", get("/?d-bug%00x=1"), Shut, "it ends the name in C"),
    trick("NUL behind the value", get("/?d-bug=1%00x"), Shut, "it ends the value in C"),
    trick("fragment", get("/?d-bug=1#x"), Shut, "no part of the query"),
    trick(
        "encoded `&`",
        get("/?d-bug=0%26d-bug=1"),
        Shut,
        "a part of its own to who decodes before parting: no allow takes it, and denies look inside",
    ),
    trick("plus", get("/?d-bug=+1"), Shut, "a plus or a blank, which some trim: denies look at both"),
    trick("`&&`", get("/?&&d-bug=1"), Shut, "empty parts are none"),
];

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];
const MARKS: &str =
    "a deny holds under any method, version and content type; an allow needs every mark of gRPC";

const CALLS: &[Trick] = &[
    trick("as it is", call("/shop.v1.Admin/Get", GRPC), Shut, "the deny says so"),
    trick("no content type", call("/shop.v1.Admin/Get", &[]), Shut, MARKS),
    trick("gRPC-Web", call("/shop.v1.Admin/Get", &[("content-type", "application/grpc-web")]), Shut, MARKS),
    trick("HTTP/1.1", Sent { http2: false, ..call("/shop.v1.Admin/Get", GRPC) }, Shut, MARKS),
    trick("GET", Sent { method: "GET", ..call("/shop.v1.Admin/Get", GRPC) }, Shut, MARKS),
    trick("case", call("/SHOP.v1.admin/Get", GRPC), Shut, CASE),
    trick(
        "encoded letter",
        call("/shop.v1.%41dmin/Get", GRPC),
        Shut,
        "gRPC servers decode nothing, gateways do",
    ),
    trick("two slashes", call("//shop.v1.Admin/Get", GRPC), Shut, MERGED),
    trick("dot segments", call("/shop.v1.Cart/../shop.v1.Admin/Get", GRPC), Shut, DOTS),
    trick("encoded slashes", call("/shop.v1.Cart/..%2fshop.v1.Admin%2fGet", GRPC), Shut, SLASH),
    trick("parameter", call("/shop.v1.Admin/Get;x", GRPC), Shut, PARAMETER),
];

/// What is not seen through, so that nobody relies on it: the deny lets it pass.
pub(crate) struct Limit {
    pub(crate) title: &'static str,
    pub(crate) deny: fn() -> Value,
    pub(crate) allow: fn() -> Value,
    pub(crate) trick: Trick,
}

const fn path_limit(name: &'static str, sent: Sent, why: &'static str) -> Limit {
    Limit { title: "Path", deny: GROUPS[0].deny, allow: GROUPS[0].allow, trick: trick(name, sent, Shut, why) }
}

pub(crate) const LIMITS: &[Limit] = &[
    path_limit(
        "an extension",
        get("/admin.json"),
        "Spring before 5.3 and Rails serve `/admin` for it. Name it: RegularExpression `/admin([./].*)?`",
    ),
    path_limit(
        "letters of other alphabets",
        get("/%d0%b0dmin"),
        "a Cyrillic `а` is another letter to every server",
    ),
    path_limit(
        "mathematical letters",
        get("/%f0%9d%90%9admin"),
        "of the forms that NFKC folds the full-width ones alone are seen through",
    ),
    path_limit(
        "another path in the query",
        get("/index.php?path=/admin"),
        "what a server makes of a parameter is its own",
    ),
    Limit {
        title: "Method",
        deny: || json!({"http": [{"methods": ["GET"]}]}),
        allow: || json!({"http": [{"methods": ["GET"]}]}),
        trick: trick(
            "`HEAD` for `GET`",
            method("HEAD", &[]),
            Shut,
            "neither a deny nor an allow of `GET` takes `HEAD`: name both",
        ),
    },
    Limit {
        title: "Path by regular expression",
        deny: || json!({"http": [{"path": {"type": "RegularExpression", "value": "/Admin/.*"}}]}),
        allow: || json!({"http": [{"path": {"type": "RegularExpression", "value": "/Public/.*"}}]}),
        trick: trick(
            "case",
            get("/admin/x"),
            Shut,
            "a regular expression is tried on the path as it is and in lower case: write `/admin/.*`, or `(?i)/admin/.*`",
        ),
    },
    Limit {
        title: "Header",
        deny: GROUPS[3].deny,
        allow: GROUPS[3].allow,
        trick: trick(
            "base64",
            with("/", &[("x-role", "YWRtaW4=")]),
            Shut,
            "encodings of an application are its own",
        ),
    },
];
