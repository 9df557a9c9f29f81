//! Which objects are meant: label selectors, as text and as objects, and field selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::kinds::Kind;
use crate::limits::SELECTOR_BYTES_MAX;
use crate::names;
use crate::status::Status;

/// What an object's labels must be: all of the requirements. Without any it selects everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// What one label must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// What it is compared with.
    pub values: BTreeSet<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operator {
    /// It is there and has one of the values.
    In,
    /// It is absent or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
    /// It is there and a whole number above the only value.
    Gt,
    /// It is there and a whole number below the only value.
    Lt,
}

/// The text or object is no selector.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unable to parse requirement: {why}")]
pub struct ParseError {
    why: String,
}

impl ParseError {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl From<ParseError> for Status {
    fn from(error: ParseError) -> Self {
        Status::bad_request(error.to_string())
    }
}

impl Selector {
    /// Reads `app=web,tier in (a,b),!old,zone!=x`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(ParseError::new(format!("it is longer than {SELECTOR_BYTES_MAX} bytes")));
        }
        let mut tokens = Tokens::new(text);
        let mut requirements = Vec::new();
        if tokens.peek() == Token::End {
            return Ok(Self::default());
        }
        loop {
            requirements.push(tokens.requirement()?);
            match tokens.next() {
                Token::End => return Ok(Self { requirements }),
                Token::Comma => {}
                other => return Err(ParseError::new(format!("found {other}, expected: ',' or the end"))),
            }
        }
    }

    /// Makes one of the object form. An empty object selects everything; upstream says of an absent one
    /// that it selects nothing, which the caller decides.
    pub fn from_object(selector: &LabelSelector) -> Result<Self, ParseError> {
        let mut requirements: Vec<Requirement> = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::In, [value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(ParseError::new(format!("{other:?} is not a valid label selector operator")));
                }
            };
            let values = expression.values.iter().flatten().cloned();
            requirements.push(Requirement::new(&expression.key, operator, values)?);
        }
        Ok(Self { requirements })
    }

    /// One that asks for exactly these labels.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: BTreeSet::from([value.clone()]),
        };
        Self { requirements: labels.iter().map(requirement).collect() }
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// What it asks for.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether labels, looked up by `label`, are as asked.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Whether these labels are as asked; no labels at all are an empty map.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_by(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
    }

    /// Whether the object's labels are as asked.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.matches_by(|key| labels.get(key).and_then(Value::as_str))
    }
}

impl Requirement {
    /// Checks key, values and their number.
    pub fn new(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = String>,
    ) -> Result<Self, ParseError> {
        names::qualified(key).map_err(|fault| ParseError::new(format!("key {key:?}: {fault}")))?;
        let values: BTreeSet<String> = values.into_iter().collect();
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return Err(ParseError::new("for 'in', 'notin' operators, values set can't be empty"));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return Err(ParseError::new("values set must be empty for exists and does not exist"));
            }
            Operator::Gt | Operator::Lt if !single_integer(&values) => {
                return Err(ParseError::new("for 'Gt', 'Lt' operators, the value must be one integer"));
            }
            _ => {}
        }
        for value in &values {
            names::label_value(value)
                .map_err(|fault| ParseError::new(format!("value {value:?}: {fault}")))?;
        }
        Ok(Self { key: key.into(), operator, values })
    }

    /// Whether the label, or its absence, is as asked.
    pub fn matches(&self, label: Option<&str>) -> bool {
        match (self.operator, label) {
            (Operator::In, Some(value)) => self.values.contains(value),
            (Operator::In, None) => false,
            (Operator::NotIn, Some(value)) => !self.values.contains(value),
            (Operator::NotIn, None) => true,
            (Operator::Exists, label) => label.is_some(),
            (Operator::DoesNotExist, label) => label.is_none(),
            (Operator::Gt, label) => self.compare(label).is_some_and(|(found, bound)| found > bound),
            (Operator::Lt, label) => self.compare(label).is_some_and(|(found, bound)| found < bound),
        }
    }

    fn compare(&self, label: Option<&str>) -> Option<(i64, i64)> {
        Some((label?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

fn single_integer(values: &BTreeSet<String>) -> bool {
    values.len() == 1 && values.iter().all(|value| value.parse::<i64>().is_ok())
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        let key = &self.key;
        match (self.operator, values.as_slice()) {
            (Operator::In, [value]) => write!(f, "{key}={value}"),
            (Operator::NotIn, [value]) => write!(f, "{key}!={value}"),
            (Operator::In, values) => write!(f, "{key} in ({})", values.join(",")),
            (Operator::NotIn, values) => write!(f, "{key} notin ({})", values.join(",")),
            (Operator::Exists, _) => write!(f, "{key}"),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::Gt, values) => write!(f, "{key}>{}", values.join(",")),
            (Operator::Lt, values) => write!(f, "{key}<{}", values.join(",")),
        }
    }
}

/// What an object's fields must be. Each kind allows a few.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Term {
    path: String,
    equal: bool,
    value: String,
    /// What an absent field counts as.
    absent: &'static str,
}

/// Fields that every kind can be selected by.
const COMMON: &[(&str, &str)] = &[("metadata.name", ""), ("metadata.namespace", "")];

impl FieldSelector {
    /// Reads `metadata.name=web,status.phase!=Running`. A field that the kind does not allow is an error.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, Status> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(Status::bad_request("the field selector is too long"));
        }
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (path, equal, value) = split_term(term).ok_or_else(|| {
                Status::bad_request(format!("invalid field selector {term:?}; it must be field=value"))
            })?;
            let Some((_, absent)) = COMMON.iter().chain(kind.fields).find(|(known, _)| *known == path) else {
                return Err(Status::bad_request(format!(
                    "field label not supported: {path} (resource {})",
                    kind.resource()
                )));
            };
            terms.push(Term { path: path.into(), equal, value: unescape(value)?, absent });
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The one name that can match, where the selector says it: such a list is a single read.
    pub fn name(&self) -> Option<&str> {
        self.equal_to("metadata.name")
    }

    /// The one value that the field can have.
    pub fn equal_to(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.path == path).map(|term| term.value.as_str())
    }

    /// Whether the object's fields are as asked.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (field(object, &term.path, term.absent) == term.value) == term.equal)
    }
}

fn field(object: &Value, path: &str, absent: &str) -> String {
    if path == "source" {
        // An Event's reporter, by either of the two fields that name it.
        let source = field(object, "source.component", "");
        return if source.is_empty() { field(object, "reportingComponent", "") } else { source };
    }
    let found = path.split('.').try_fold(object, |value, step| value.get(step));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        _ => absent.to_owned(),
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Field, whether it must be equal, value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find(['=', '!'])?;
    let (path, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((path, false, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((path, true, value))
}

fn unescape(value: &str) -> Result<String, Status> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => text.push(c),
                _ => return Err(Status::bad_request("invalid escape in field selector")),
            },
            ',' | '=' => {
                return Err(Status::bad_request("',' and '=' in a field selector's value must be escaped"));
            }
            c => text.push(c),
        }
    }
    Ok(text)
}

/// The words of a label selector's text.
struct Tokens<'a> {
    rest: &'a str,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Open,
    Close,
    Not,
    Equal,
    NotEqual,
    Gt,
    Lt,
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Word(word) => return write!(f, "'{word}'"),
            Self::Comma => "','",
            Self::Open => "'('",
            Self::Close => "')'",
            Self::Not => "'!'",
            Self::Equal => "'='",
            Self::NotEqual => "'!='",
            Self::Gt => "'>'",
            Self::Lt => "'<'",
            Self::End => "the end",
        };
        f.write_str(text)
    }
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn peek(&mut self) -> Token<'a> {
        Self { rest: self.rest }.next()
    }

    fn next(&mut self) -> Token<'a> {
        const MARKS: &[(&str, Token<'static>)] = &[
            ("==", Token::Equal),
            ("!=", Token::NotEqual),
            ("=", Token::Equal),
            ("!", Token::Not),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
            (">", Token::Gt),
            ("<", Token::Lt),
        ];
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if self.rest.is_empty() {
            return Token::End;
        }
        for (mark, token) in MARKS {
            if let Some(rest) = self.rest.strip_prefix(mark) {
                self.rest = rest;
                return token.clone();
            }
        }
        let is_end =
            |c: char| matches!(c, ' ' | '\t' | '\r' | '\n' | '=' | '!' | ',' | '(' | ')' | '>' | '<');
        let end = self.rest.find(is_end).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Token::Word(word)
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let (key, absent) = match self.next() {
            Token::Not => match self.next() {
                Token::Word(key) => (key, true),
                other => return Err(ParseError::new(format!("found {other}, expected: identifier"))),
            },
            Token::Word(key) => (key, false),
            other => {
                return Err(ParseError::new(format!("found {other}, expected: !, identifier, or the end")));
            }
        };
        if absent {
            return Requirement::new(key, Operator::DoesNotExist, []);
        }
        match self.peek() {
            Token::End | Token::Comma => Requirement::new(key, Operator::Exists, []),
            Token::Word("in") => {
                self.next();
                let values = self.values()?;
                Requirement::new(key, Operator::In, values)
            }
            Token::Word("notin") => {
                self.next();
                let values = self.values()?;
                Requirement::new(key, Operator::NotIn, values)
            }
            mark => {
                self.next();
                let operator = match mark {
                    Token::Equal => Operator::In,
                    Token::NotEqual => Operator::NotIn,
                    Token::Gt => Operator::Gt,
                    Token::Lt => Operator::Lt,
                    other => {
                        let expected = "expected: in, notin, =, ==, !=, >, <";
                        return Err(ParseError::new(format!("found {other}, {expected}")));
                    }
                };
                let value = self.value()?;
                Requirement::new(key, operator, [value])
            }
        }
    }

    /// The value after a mark; nothing at all is the empty value.
    fn value(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(word) => {
                self.next();
                Ok(word.to_owned())
            }
            other => Err(ParseError::new(format!("found {other}, expected: identifier"))),
        }
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        match self.next() {
            Token::Open => {}
            other => return Err(ParseError::new(format!("found {other}, expected: '('"))),
        }
        let mut values = Vec::new();
        let mut after_word = false;
        loop {
            match self.next() {
                Token::Word(word) if !after_word => {
                    values.push(word.to_owned());
                    after_word = true;
                }
                Token::Comma if after_word => after_word = false,
                Token::Comma => values.push(String::new()),
                Token::Close => {
                    if !after_word {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                other => return Err(ParseError::new(format!("found {other}, expected: ',' or ')'"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::kinds;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Selector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}")).matches(Some(&labels))
    }

    #[test]
    fn a_label_selector_selects_as_its_grammar_says() {
        let web = &[("app", "web"), ("tier", "front"), ("n", "5")][..];
        for (selector, expect) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            (" app = web , tier in (front, back) ", true),
            ("app=other", false),
            ("app!=other", true),
            ("missing!=x", true),
            ("missing notin (x)", true),
            ("tier notin (front)", false),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("missing=", false),
            ("app in (web,)", true),
            ("n>4", true),
            ("n<5", false),
            ("missing>1", false),
            ("in in (a)", false),
        ] {
            assert_eq!(matches(selector, web), expect, "{selector}");
        }
    }

    #[test]
    fn a_text_that_is_no_selector_is_refused() {
        for text in [
            "=", "a=b=c", "a in b", "a in (b", "a in ()x", ",", "a,,b", "a b", "!", "!a=b", "a>x", "-a",
            "a=-b", "(a)",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_selector_object_and_its_text_are_one() {
        let object: LabelSelector = serde_json::from_value(json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["b", "a"] }, { "key": "old", "operator": "DoesNotExist" }],
        }))
        .unwrap();
        let selector = Selector::from_object(&object).unwrap();
        assert_eq!(selector.to_string(), "app=web,tier in (a,b),!old");
        assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn a_field_selector_knows_the_fields_of_its_kind_and_no_others() {
        let pods = kinds::by_kind("", "Pod").unwrap();
        let nodes = kinds::by_kind("", "Node").unwrap();
        let pod = json!({ "metadata": { "name": "web" }, "spec": { "nodeName": "kitchen" }, "status": { "phase": "Running" } });
        for (text, expect) in [
            ("metadata.name=web", true),
            ("spec.nodeName=kitchen,status.phase!=Pending", true),
            ("spec.nodeName!=", true),
            ("spec.nodeName=", false),
            ("status.phase==Running", true),
            ("", true),
        ] {
            assert_eq!(FieldSelector::parse(pods, text).unwrap().matches(&pod), expect, "{text}");
        }
        for text in ["spec.unknown=1", "metadata.name", "metadata.name=a=b", "metadata.name=a\\x"] {
            assert!(FieldSelector::parse(pods, text).is_err(), "{text}");
        }
        let schedulable = FieldSelector::parse(nodes, "spec.unschedulable=false").unwrap();
        assert!(schedulable.matches(&json!({ "spec": {} })));
        assert!(!schedulable.matches(&json!({ "spec": { "unschedulable": true } })));
        assert_eq!(FieldSelector::parse(pods, "metadata.name=web").unwrap().name(), Some("web"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z=!,()<> ]{0,40}|.{0,40}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
            }
            let _ = FieldSelector::parse(kinds::by_kind("", "Pod").unwrap(), &text);
        }
    }
}
