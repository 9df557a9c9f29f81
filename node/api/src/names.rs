//! What things may be called: the DNS names and label syntax of Kubernetes.

/// Which syntax the names of a kind follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rule {
    /// RFC 1123 label: `web-1`, up to 63 characters.
    Label,
    /// RFC 1035 label: begins with a letter.
    ServiceLabel,
    /// RFC 1123 subdomain: labels with dots, up to 253 characters.
    Subdomain,
}

/// How long a prefix of a generated name may be, so that the suffix still fits into 63 characters.
const GENERATED_PREFIX_MAX: usize = 58;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// What is wrong with a text, in upstream's words.
pub type Fault = String;

impl Rule {
    /// Checks a name.
    pub fn check(self, name: &str) -> Result<(), Fault> {
        match self {
            Self::Label => label(name),
            Self::ServiceLabel => label_1035(name),
            Self::Subdomain => subdomain(name),
        }
    }

    /// The name made of `generateName` and a suffix.
    pub fn generate(self, prefix: &str, suffix: &str) -> String {
        let end = prefix.char_indices().nth(GENERATED_PREFIX_MAX).map_or(prefix.len(), |(at, _)| at);
        format!("{}{suffix}", &prefix[..end])
    }
}

/// RFC 1123 label.
pub fn label(name: &str) -> Result<(), Fault> {
    length(name, 63)?;
    if is_label(name) { Ok(()) } else { Err(LABEL.into()) }
}

/// RFC 1035 label.
pub fn label_1035(name: &str) -> Result<(), Fault> {
    length(name, 63)?;
    if is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()) {
        Ok(())
    } else {
        Err(LABEL_1035.into())
    }
}

/// RFC 1123 subdomain.
pub fn subdomain(name: &str) -> Result<(), Fault> {
    length(name, 253)?;
    if name.split('.').all(is_label) { Ok(()) } else { Err(SUBDOMAIN.into()) }
}

/// The key of a label or an annotation: an optional subdomain, a slash, and a name.
pub fn qualified(key: &str) -> Result<(), Fault> {
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return Err(format!("a qualified name {}", QUALIFIED.trim_start_matches("name part ")));
        }
        Some(("", _)) => return Err("prefix part must be non-empty".into()),
        Some((prefix, name)) => {
            subdomain(prefix).map_err(|fault| format!("prefix part {fault}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".into());
    }
    length(name, 63).map_err(|fault| format!("name part {fault}"))?;
    if is_loose(name) { Ok(()) } else { Err(QUALIFIED.into()) }
}

/// The value of a label.
pub fn label_value(value: &str) -> Result<(), Fault> {
    length(value, 63)?;
    if value.is_empty() || is_loose(value) { Ok(()) } else { Err(VALUE.into()) }
}

/// The name of an environment variable.
pub fn env(name: &str) -> Result<(), Fault> {
    if name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        Ok(())
    } else {
        Err(ENV_NAME.into())
    }
}

/// A key of a config map's or secret's data, which becomes a file's name.
pub fn config_key(key: &str) -> Result<(), Fault> {
    length(key, 253)?;
    match key {
        "." => Err("must not be '.'".into()),
        ".." => Err("must not be '..'".into()),
        _ if key.starts_with("..") => Err("must not start with '..'".into()),
        _ if !key.is_empty()
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) =>
        {
            Ok(())
        }
        _ => Err(CONFIG_KEY.into()),
    }
}

/// The name of a port: an IANA service name.
pub fn port(name: &str) -> Result<(), Fault> {
    if name.is_empty() || name.len() > 15 {
        return Err("must be no more than 15 characters".into());
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        return Err("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err("must not begin or end with a hyphen".into());
    }
    Ok(())
}

fn length(text: &str, max: usize) -> Result<(), Fault> {
    if text.len() > max { Err(format!("must be no more than {max} characters")) } else { Ok(()) }
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
}

fn is_loose(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule_of_their_kind() {
        for (rule, good, bad) in [
            (Rule::Label, &["a", "web-1", "1web"][..], &["", "Web", "-a", "a-", "a.b", "a_b", "ü"][..]),
            (Rule::ServiceLabel, &["web-1"], &["1web", "a.b", ""]),
            (Rule::Subdomain, &["a.b-c.d", "kitchen"], &["", ".", "a..b", "a.", "A.b", "a/b"]),
        ] {
            for name in good {
                assert_eq!(rule.check(name), Ok(()), "{name}");
            }
            for name in bad {
                assert!(rule.check(name).is_err(), "{name}");
            }
        }
        assert!(label(&"a".repeat(64)).is_err());
        assert!(subdomain(&"a".repeat(254)).is_err());
    }

    #[test]
    fn label_keys_and_values_follow_their_syntax() {
        for key in ["app", "app.kubernetes.io/name", "A_b.c-d", "example.com/0"] {
            assert_eq!(qualified(key), Ok(()), "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "Example.com/a", "a b"] {
            assert!(qualified(key).is_err(), "{key}");
        }
        for value in ["", "v1.2_3", "A"] {
            assert_eq!(label_value(value), Ok(()), "{value}");
        }
        for value in ["-a", "a b", "a/b"] {
            assert!(label_value(value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_generated_name_keeps_its_suffix_within_a_label() {
        let name = Rule::Label.generate(&"x".repeat(100), "abcde");
        assert_eq!(name.len(), 63);
        assert!(name.ends_with("abcde"));
    }
}
